"""Of what a page is that a script writes: the commit and the day."""

from datetime import date
from pathlib import Path

from jax_cifar.telemetry.environment import git_commit

SHORT = 7  # digits of a commit, as the other pages have them


def stamp() -> str:
    """The commit that is checked out and the day, such as `1a2b3c4-dirty, 2026-11-30`."""
    commit, *dirty = (git_commit(Path(__file__).parents[1]) or "unknown").split("-")
    return f"{'-'.join([commit[:SHORT], *dirty])}, {date.today().isoformat()}"
