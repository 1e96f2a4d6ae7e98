"""Crop, flip, Cutout, normalisation, MixUp and CutMix against PyTorch and NumPy, given the same draws.

Each comparison has a twin: a known wrong variant of the reference must not agree.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tolerances import assert_close

from jax_cifar.augment import Cutout, HorizontalFlip, Normalize, RandomCrop, cutmix, mixup

RNG = np.random.default_rng(0)
IMAGES = RNG.random((81, 32, 32, 3), dtype=np.float32)
TARGETS = np.eye(10, dtype=np.float32)[RNG.integers(0, 10, 81)]
OFFSETS = np.stack(np.meshgrid(np.arange(9), np.arange(9))).reshape(2, 81).astype(np.int32)
LAMBDAS = np.concatenate([[0.0, 0.75, 1.0], RNG.beta(0.5, 0.5, 997)]).astype(np.float32)
CENTRES = RNG.integers(0, 32, (1000, 2)).astype(np.int32)


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def nhwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def torch_crop(images: np.ndarray, mode: str, shift: int = 0) -> np.ndarray:
    """torchvision's `RandomCrop(32, padding=4)` at the places of `OFFSETS`."""
    padded = torch.nn.functional.pad(nchw(images), (4, 4, 4, 4), mode=mode)
    windows = [
        image[:, top : top + 32, left : left + 32]
        for image, top, left in zip(padded, *(OFFSETS + shift).clip(0, 8), strict=True)
    ]
    return nhwc(torch.stack(windows))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop(mode):
    crop = RandomCrop(padding=4, padding_mode=mode).crop
    result = np.asarray(jax.jit(crop)(jnp.asarray(IMAGES), jnp.asarray(OFFSETS)))
    np.testing.assert_array_equal(result, torch_crop(IMAGES, mode))
    for wrong in (torch_crop(IMAGES, mode, shift=1), torch_crop(IMAGES, "replicate")):
        assert not np.array_equal(result, wrong)


def test_crop_then_normalise():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    cropped = RandomCrop(padding=4).crop(jnp.asarray(IMAGES), jnp.asarray(OFFSETS))
    result = np.asarray(Normalize(mean, std)(jax.random.key(0), cropped))

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    assert_close(result, nhwc(normalise(nchw(torch_crop(IMAGES, "constant")))), "float32 operation")
    padded_last = torch_crop(nhwc(normalise(nchw(IMAGES))), "constant")
    assert np.abs(result - padded_last).max() > 1.5


def test_flip():
    result = np.asarray(HorizontalFlip(p=1.0)(jax.random.key(0), jnp.asarray(IMAGES)))
    np.testing.assert_array_equal(result, nhwc(nchw(IMAGES).flip(-1)))
    assert not np.array_equal(result, nhwc(nchw(IMAGES).flip(-2)))


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


def test_cutout():
    result = np.asarray(Cutout(length=8).erase(jnp.asarray(IMAGES), jnp.asarray(CENTRES[:81].T)))
    np.testing.assert_array_equal(result, published_cutout(IMAGES, 8))
    assert not np.array_equal(result, published_cutout(IMAGES, 8, clip=False))


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.9])
def test_mixup(lam):
    images, targets = mixup(jnp.asarray(IMAGES), jnp.asarray(TARGETS), jnp.asarray(lam, jnp.float32))
    for ours, given in ((images, IMAGES), (targets, TARGETS)):
        tensor = torch.from_numpy(given)
        theirs = tensor.roll(1, 0).mul_(1.0 - lam).add_(tensor.mul(lam))
        assert_close(ours, theirs.numpy(), "float32 operation")
        other_partner = tensor.flip(0).mul_(1.0 - lam).add_(tensor.mul(lam))
        assert np.abs(np.asarray(ours) - other_partner.numpy()).max() > 0.05


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
    apply = jax.jit(jax.vmap(cutmix, in_axes=(None, None, 0, 0)))
    ours = apply(jnp.asarray(images), jnp.asarray(targets), jnp.asarray(LAMBDAS), jnp.asarray(centres))
    uncorrected = 0
    for mixed, labels, lam, centre in zip(*map(np.asarray, ours), LAMBDAS, centres, strict=True):
        box = torchvision_box(float(lam), centre, *size)
        expected, expected_labels = torch_cutmix(images, targets, float(lam), box)
        np.testing.assert_array_equal(mixed, expected)
        assert_close(labels, expected_labels, "float32 operation", "labels")
        wrong = torch_cutmix(images, targets, float(lam), box, corrected=False)[1]
        uncorrected += np.abs(labels - wrong).max() > 0.01
    assert uncorrected > 500
