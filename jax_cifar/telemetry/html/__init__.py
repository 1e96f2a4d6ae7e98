"""One HTML file that shows runs to a person: needs no network, executes nothing but its own few lines of script."""

from pathlib import Path

PALETTE = Path(__file__).parent / "palette.css"  # of all pages
