"""Looking into networks and comparing runs."""
