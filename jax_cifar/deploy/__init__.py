"""Trained networks outside of their run folder: exported files read back, each with the same face as a run."""
