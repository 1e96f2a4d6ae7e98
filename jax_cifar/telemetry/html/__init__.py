"""One HTML file that shows runs to a person: needs no network, executes nothing but its own few lines of script."""
