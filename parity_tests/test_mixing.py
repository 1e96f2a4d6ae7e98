"""Crop, flip, Cutout, MixUp and CutMix against PyTorch and NumPy, given the same draws.

The references are those of benchmarks/per_image, beside them PyTorch's and the published arithmetic. Each comparison
has a twin: a known wrong variant of the reference must not agree.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from one_by_one import one_by_one, run
from tolerances import assert_close

from benchmarks.per_image import mix_reference
from jax_cifar.augment import CutMix, Cutout, HorizontalFlip, MixUp, RandomCrop
from jax_cifar.augment.mixing import cutmix_share, mix_with_partner, mixup_share

RNG = np.random.default_rng(0)
IMAGES = RNG.random((81, 32, 32, 3), dtype=np.float32)
TARGETS = np.eye(10, dtype=np.float32)[RNG.integers(0, 10, 81)]
CORNERS = np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(81, 2).astype(np.int32)
LAMBDAS = np.concatenate([[0.0, 0.75, 1.0], RNG.beta(0.5, 0.5, 997)]).astype(np.float32)
CENTRES = RNG.integers(0, 32, (1000, 2)).astype(np.int32)


def torch_crop(images: np.ndarray, mode: str) -> np.ndarray:
    """torchvision's `RandomCrop(32, padding=4)` at the places of `CORNERS`."""
    padded = torch.nn.functional.pad(torch.from_numpy(images).permute(0, 3, 1, 2), (4, 4, 4, 4), mode=mode)
    windows = [image[:, top : top + 32, left : left + 32] for image, (top, left) in zip(padded, CORNERS, strict=True)]
    return torch.stack(windows).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop(mode):
    crop = RandomCrop(padding=4, padding_mode=mode)
    result = run(crop, IMAGES, CORNERS)
    np.testing.assert_array_equal(result, one_by_one(crop, IMAGES, CORNERS))
    np.testing.assert_array_equal(result, torch_crop(IMAGES, mode))
    for wrong in (one_by_one(crop, IMAGES, (CORNERS + 1).clip(0, 8)), torch_crop(IMAGES, "replicate")):
        assert not np.array_equal(result, wrong)


def test_crop_fills_with_its_value():
    crop = RandomCrop(padding=4, fill=0.25)
    result = run(crop, IMAGES, CORNERS)
    np.testing.assert_array_equal(result, one_by_one(crop, IMAGES, CORNERS))
    assert not np.array_equal(result, one_by_one(RandomCrop(padding=4), IMAGES, CORNERS))


def test_flip():
    flipped = np.arange(81) % 3 == 0
    result = run(HorizontalFlip(), IMAGES, flipped)
    np.testing.assert_array_equal(result, one_by_one(HorizontalFlip(), IMAGES, flipped))
    np.testing.assert_array_equal(result, np.where(flipped[:, None, None, None], IMAGES[:, :, ::-1], IMAGES))
    for wrong in (one_by_one(HorizontalFlip(), IMAGES, ~flipped), IMAGES[:, ::-1]):
        assert not np.array_equal(result, wrong)


def published_cutout(images: np.ndarray, length: int, clip: bool = True) -> np.ndarray:
    """The arithmetic of the paper's code (uoguelph-mlrg/Cutout); without `clip`, squares are pushed inside instead."""
    images = images.copy()
    for image, (row, column) in zip(images, CENTRES, strict=False):
        if not clip:
            row, column = np.clip((row, column), length // 2, 32 - length // 2)
        top, bottom = np.clip((row - length // 2, row + length // 2), 0, 32)
        left, right = np.clip((column - length // 2, column + length // 2), 0, 32)
        image[top:bottom, left:right] = 0
    return images


@pytest.mark.parametrize("length", [7, 8])
def test_cutout(length):
    cutout = Cutout(length)
    result = run(cutout, IMAGES, CENTRES[:81])
    np.testing.assert_array_equal(result, one_by_one(cutout, IMAGES, CENTRES[:81]))
    assert np.array_equal(result, published_cutout(IMAGES, length)) == (length == 8)  # the paper's squares are even
    assert not np.array_equal(result, published_cutout(IMAGES, length, clip=False))


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.9])
def test_mixup(lam):
    share = mixup_share(jnp.asarray(lam, jnp.float32), 32, 32)
    ours = mix_with_partner(jnp.asarray(IMAGES), jnp.asarray(TARGETS), share)
    for mixed, expected in zip(ours, mix_reference(MixUp()).apply(IMAGES, TARGETS, lam), strict=True):
        assert_close(mixed, expected, "float32 operation")
    for mixed, values in zip(ours, (IMAGES, TARGETS), strict=True):
        tensor = torch.from_numpy(values)
        assert_close(mixed, tensor.roll(1, 0).mul_(1.0 - lam).add_(tensor.mul(lam)).numpy(), "float32 operation")
        other_partner = tensor.flip(0).mul_(1.0 - lam).add_(tensor.mul(lam))
        assert np.abs(np.asarray(mixed) - other_partner.numpy()).max() > 0.05


def torchvision_box(lam: float, centre: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right as torchvision's `CutMix` has them."""
    half = 0.5 * math.sqrt(1.0 - lam)
    half_height, half_width = int(half * height), int(half * width)
    top, bottom = max(int(centre[0]) - half_height, 0), min(int(centre[0]) + half_height, height)
    left, right = max(int(centre[1]) - half_width, 0), min(int(centre[1]) + half_width, width)
    return top, bottom, left, right


def torch_cutmix(images: np.ndarray, targets: np.ndarray, lam: float, box: tuple[int, int, int, int], corrected=True):
    top, bottom, left, right = box
    pixels, labels = torch.from_numpy(images), torch.from_numpy(targets)
    mixed = pixels.clone()
    mixed[:, top:bottom, left:right] = pixels.roll(1, 0)[:, top:bottom, left:right]
    weight = 1.0 - (bottom - top) * (right - left) / (images.shape[1] * images.shape[2]) if corrected else lam
    return mixed.numpy(), labels.roll(1, 0).mul_(1.0 - weight).add_(labels.mul(weight)).numpy()


@pytest.mark.parametrize("size", [(32, 32), (20, 32)])
def test_cutmix(size):
    images, targets = IMAGES[:3, : size[0], :, :1], np.eye(3, dtype=np.float32)
    centres = CENTRES % np.asarray(size, np.int32)

    def cutmix(lam: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mix_with_partner(jnp.asarray(images), jnp.asarray(targets), cutmix_share(lam, centre, *size))

    ours, apply = jax.jit(jax.vmap(cutmix))(LAMBDAS, centres), mix_reference(CutMix()).apply
    uncorrected = 0
    for mixed, labels, lam, centre in zip(*map(np.asarray, ours), LAMBDAS, centres, strict=True):
        expected, expected_labels = apply(images, targets, (float(lam), tuple(centre)))
        np.testing.assert_array_equal(mixed, expected)
        assert_close(labels, expected_labels, "float32 operation", "labels")
        box = torchvision_box(float(lam), centre, *size)
        np.testing.assert_array_equal(mixed, torch_cutmix(images, targets, float(lam), box)[0])
        wrong = torch_cutmix(images, targets, float(lam), box, corrected=False)[1]
        uncorrected += np.abs(labels - wrong).max() > 0.01
    assert uncorrected > 500
