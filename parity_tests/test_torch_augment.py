"""The reference trainer's augmentation and mixing against JAX's, given the same draws; and what it draws."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_runs import small_config
from tolerances import agree, assert_close

from jax_cifar import augment as jax_augment
from jax_cifar.augment.crop_flip import alternating
from jax_cifar.augment.mixing import cutmix_share, mix_with_partner, mixup_share
from jax_cifar.config import MixConfig
from jax_cifar.data import load_data
from jax_cifar.models.network import downsample
from torch_ref import augment, steps

RNG = np.random.default_rng(0)
IMAGES = RNG.random((81, 32, 32, 3), dtype=np.float32)
TARGETS = np.eye(10, dtype=np.float32)[RNG.integers(0, 10, 81)]
CORNERS = np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(81, 2).astype(np.int32)
CENTRES = RNG.integers(0, 32, (81, 2)).astype(np.int32)


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def nhwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("mode", "fill"), [("constant", 0.0), ("constant", 0.25), ("reflect", 0.0)])
def test_crop(mode, fill):
    ours = jax_augment.RandomCrop(4, mode, fill).transform(jnp.asarray(IMAGES), jnp.asarray(CORNERS))
    assert_close(nhwc(augment.crop(nchw(IMAGES), torch.from_numpy(CORNERS), 4, mode, fill)), ours, "exact")
    wrong = augment.crop(nchw(IMAGES), torch.from_numpy(CORNERS[:, ::-1].copy()), 4, mode, fill)
    assert not agree(nhwc(wrong), ours, "exact")


def test_flips():
    index = np.concatenate([np.arange(5000), 2**31 - 1 - np.arange(5000)]).astype(np.int32)
    for epoch in range(3):
        ours = np.asarray(alternating(jnp.asarray(index), jnp.asarray(epoch)))
        assert_close(augment.alternating(torch.from_numpy(index), epoch).numpy(), ours, "exact")
        assert not agree(augment.alternating(torch.from_numpy(index), epoch + 1).numpy(), ours, "exact")
    flipped = np.arange(81) % 3 == 0
    ours = jax_augment.HorizontalFlip().transform(jnp.asarray(IMAGES), jnp.asarray(flipped))
    assert_close(nhwc(augment.flip(nchw(IMAGES), torch.from_numpy(flipped))), ours, "exact")
    assert not agree(nhwc(augment.flip(nchw(IMAGES), torch.from_numpy(~flipped))), ours, "exact")


@pytest.mark.parametrize("length", [7, 8])
def test_cutout(length):
    ours = jax_augment.Cutout(length, 0.5).transform(jnp.asarray(IMAGES), jnp.asarray(CENTRES))
    assert_close(nhwc(augment.cutout(nchw(IMAGES), torch.from_numpy(CENTRES), length, 0.5)), ours, "exact")
    assert not agree(nhwc(augment.cutout(nchw(IMAGES), torch.from_numpy(CENTRES - 1), length, 0.5)), ours, "exact")


@pytest.mark.parametrize("lam", [0.0, 0.375, 0.9, 1.0])
def test_mixing(lam):
    centre = (30, 7)  # its box is clipped
    shares = mixup_share(jnp.float32(lam), 32, 32), cutmix_share(jnp.float32(lam), jnp.asarray(centre), 32, 32)
    for share, function, rest in zip(shares, (augment.mixup, augment.cutmix), ((), (centre,)), strict=True):
        ours = mix_with_partner(jnp.asarray(IMAGES), jnp.asarray(TARGETS), share)
        theirs = function(nchw(IMAGES), torch.from_numpy(TARGETS), lam, *rest)
        other = function(nchw(IMAGES), torch.from_numpy(TARGETS), abs(lam - 0.2), *rest)
        assert_close(nhwc(theirs[0]), ours[0], "float32 operation")
        assert_close(theirs[1].numpy(), ours[1], "float32 operation")
        assert not agree(nhwc(other[0]), ours[0], "float32 operation")
        assert not agree(other[1].numpy(), ours[1], "float32 operation")


def test_pixels_and_normalisation():
    part = load_data(small_config().data).train
    scaled = jnp.asarray(part.images, jnp.float32) / 255
    mean, std = (np.asarray(values, np.float32) for values in steps.channel_statistics(part.images))
    ours = (np.asarray(scaled) - mean) / std
    pixels = steps.pixels(torch.tensor(part.images))
    assert_close(nhwc(pixels), scaled, "float32 operation")
    assert not agree(nhwc(pixels * 255 / 256), scaled, "float32 operation")
    for judge, same in ((part, True), (part.take(np.arange(100)), False)):
        inputs = steps.make_inputs(judge, torch.device("cpu"))
        assert agree(nhwc(inputs(nchw(np.array(scaled)), None)), ours, "float32 operation") == same
    inputs = steps.make_inputs(part, torch.device("cpu"))
    for side in (14, 18, 31):
        smaller = downsample(jnp.asarray(ours), side)
        assert_close(nhwc(inputs(nchw(np.array(scaled)), side)), smaller, "float32 operation")
        rough = torch.nn.functional.interpolate(nchw(ours), (side, side), mode="bilinear")
        assert not agree(nhwc(rough), smaller, "float32 operation")


def test_draws_cover_their_range():
    torch.manual_seed(0)
    count, index = 4000, torch.arange(4000)
    places = (torch.arange(64).view(8, 8) + 1.0).expand(count, 1, 8, 8)
    cropped = augment.make_augment([jax_augment.RandomCrop(1)])(places, index, 0)
    assert set(cropped[:, 0, 1, 1].tolist()) == {1, 2, 3, 9, 10, 11, 17, 18, 19}
    for p in (0.0, 0.3, 1.0):
        flipped = augment.make_augment([jax_augment.HorizontalFlip(p)])(places, index, 0)[:, 0, 0, 0] == 8
        assert flipped.float().mean().item() == pytest.approx(p, abs=0.04 * (0 < p < 1))
    erased = augment.make_augment([jax_augment.Cutout(1)])(places, index, 0) == 0
    assert erased.sum().item() == count
    assert erased.any(0).all()
    alternate = augment.make_augment([jax_augment.HorizontalFlip(mode="alternate")])
    assert torch.equal(alternate(places, index, 1), alternate(places, index, 0).flip(-1))


@pytest.mark.parametrize(
    ("mix", "mixed", "cut"),
    [
        (MixConfig(mixup_alpha=1.0, probability=0.5), 0.5, 0.0),
        (MixConfig(cutmix_alpha=1.0), 1.0, 1.0),
        (MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0, switch_probability=0.25), 1.0, 0.25),
    ],
)
def test_every_batch_gets_its_share_of_mixing(mix, mixed, cut):
    torch.manual_seed(0)
    mixer = augment.make_mixer(mix)
    assert mixer is not None
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    results = [mixer(images, torch.eye(2)) for _ in range(600)]
    # MixUp gives one value everywhere; CutMix leaves only zeros and ones.
    blended = [bool((pixels > 0).any() and (pixels < 1).all()) for pixels in (images[:1] for images, _ in results)]
    untouched = [torch.equal(pixels, images) for pixels, _ in results]
    for pixels, targets in results:
        assert targets[0, 1].item() == pytest.approx(pixels[0].mean().item(), abs=1e-6)
    assert np.mean(blended) == pytest.approx(mixed - cut, abs=0.07 * (0 < mixed - cut < 1))
    assert np.mean(untouched) == pytest.approx(1 - mixed, abs=0.07)  # a box may be empty


def test_no_mixing_unless_asked_for():
    assert augment.make_mixer(MixConfig()) is None
    assert augment.make_mixer(MixConfig(mixup_alpha=1.0, probability=0.0)) is None
