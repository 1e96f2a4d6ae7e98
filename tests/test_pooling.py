"""Max-pooling against XLA's own operation, NumPy and hand-made windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_cifar.ops.pooling import max_pool


def lax_max_pool(x, window, stride, padding=0):
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), edges)


@pytest.mark.parametrize(
    ("shape", "window", "dtype"),
    [(shape, side, jnp.float32) for shape, side in (((5, 8, 6, 3), 2), ((2, 10, 9, 3), 3), ((1, 20, 12, 2), 5))]
    + [((2, 9, 7, 3), 2, dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float64)],
)
def test_max_pool_and_its_ties_match_lax(shape, window, dtype, x64):
    # Few distinct values and a relu: most windows hold their maximum more than once.
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 3, shape), dtype)

    def run(pool):
        out, vjp = jax.vjp(lambda x: pool(jax.nn.relu(x)), x)
        return out, *vjp(jnp.arange(1, out.size + 1).reshape(out.shape).astype(dtype))

    ours = jax.jit(lambda: run(lambda x: max_pool(x, window)))()
    expected = jax.jit(lambda: run(lambda x: lax_max_pool(x, window, window)))()
    for got, want in zip(ours, expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(got, np.float64), np.asarray(want, np.float64))


@pytest.mark.parametrize(
    ("window", "gradient"),
    [
        ([[0, 0], [0, 0]], [[1, 0], [0, 0]]),
        ([[0, 7], [7, 0]], [[0, 1], [0, 0]]),
        ([[-5, -4], [-3, -3]], [[0, 0], [1, 0]]),
        ([[1, 2], [3, 4]], [[0, 0], [0, 1]]),
    ],
)
def test_max_pool_gradient_goes_to_the_first_maximum(window, gradient):
    x = jnp.asarray(window, jnp.float32)[None, :, :, None]
    np.testing.assert_array_equal(jax.grad(lambda x: max_pool(x, 2).sum())(x)[0, :, :, 0], gradient)


def test_max_pool_pads_with_minus_infinity_and_overlaps():
    x = -1.0 - np.random.default_rng(0).random((2, 8, 7, 3), np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.empty((2, 4, 4, 3), np.float32)
    for i in range(4):
        for j in range(4):
            expected[:, i, j] = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), 3, stride=2, padding=1), expected)


def test_max_pool_with_a_stride_below_the_window_overlaps():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(max_pool(x, 2, stride=1)[0, :, :, 0], [[4, 5], [7, 8]])


def test_max_pool_under_vmap_in_scan():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 3, 4, 6, 6, 2)), jnp.float32)
    gradient = jax.vmap(jax.grad(lambda x: (max_pool(x, 2) ** 2).sum()))
    together = jax.jit(lambda x: lax.scan(lambda carry, part: (carry, gradient(part)), 0, x)[1])(x)
    expected = jax.jit(jax.grad(lambda x: (lax_max_pool(x, 2, 2) ** 2).sum()))(x[1, 2])
    np.testing.assert_array_equal(together[1, 2], expected)
