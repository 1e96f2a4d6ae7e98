"""The folder of a run and everything kept in it."""
