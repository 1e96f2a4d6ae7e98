"""From the initial state to the trained one."""
