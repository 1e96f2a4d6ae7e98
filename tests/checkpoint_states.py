"""States to save, a folder with three checkpoints, and what harms one: for the tests of checkpoints."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from jax_cifar.run.checkpoint import Checkpoints


def make_state(seed: int = 0, **changes):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 32, 64)).astype(np.float32))
    state = {
        "step": jnp.int32(seed),
        "params": {"conv1": {"kernel": kernel}, "head": {"bias": jnp.asarray([seed, 2.5, -0.0], jnp.bfloat16)}},
        "batch_stats": {},
        "opt_state": ((), (jnp.float32(np.nan), None)),
        "ema": None,
    }
    return {**state, **changes}


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()


@contextmanager
def three_checkpoints(directory, warn):
    """Checkpoints 1, 2, 3 of three different states."""
    with Checkpoints(directory, keep=3, warn=warn) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {"seconds": step / 3})
        checkpoints.wait()
        yield checkpoints


def folders(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def biggest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_one_byte(folder):
    path = biggest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
