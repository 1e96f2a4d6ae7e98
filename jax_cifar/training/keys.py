"""Random keys without state: every key is `fold_in` of the run's seed, a purpose, and the step or epoch.

Nothing has to be saved for a resumed run to draw the numbers that an uninterrupted one draws.
"""

import enum

import jax
from jaxtyping import Array, Int, PRNGKeyArray


class Purpose(enum.IntEnum):
    """What a key is for. The numbers are part of every result: never renumber, only add."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    MIX = 3
    DROPOUT = 4


def run_key(seed: int | Int[Array, ""]) -> PRNGKeyArray:
    """The key that all others of a run are folded from."""
    return jax.random.key(seed)


def purpose_key(key: PRNGKeyArray, purpose: Purpose, count: int | Int[Array, ""] = 0) -> PRNGKeyArray:
    """The key for one purpose at one step or epoch."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), count)
