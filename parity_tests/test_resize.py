"""Downsampling against PyTorch's antialiased bilinear interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tolerances import assert_close

from jax_cifar.models.network import downsample


@pytest.mark.parametrize("side", [7, 16, 20, 24, 31])
def test_downsampling_is_antialiased_bilinear(side):
    images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    judge = torch.from_numpy(images).permute(0, 3, 1, 2)
    options = {"size": (side, side), "mode": "bilinear", "align_corners": False}
    expected, aliased = (
        torch.nn.functional.interpolate(judge, **options, antialias=antialias).permute(0, 2, 3, 1).numpy()
        for antialias in (True, False)
    )
    ours = jax.jit(downsample, static_argnums=1)(jnp.asarray(images), side)
    assert_close(ours, expected, "float32 operation")
    assert np.abs(ours - aliased).max() > 0.02
