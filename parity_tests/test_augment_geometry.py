"""The transforms that resample images against PyTorch, SciPy and torchvision's formulas, given the same draws.

The references are those of benchmarks/per_image. In float64, so that places between pixels leave no rounding. Each
comparison has a twin: a known wrong variant of the reference must not agree.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from one_by_one import one_by_one, run
from tolerances import agree, assert_close

from benchmarks.per_image import geometry
from jax_cifar.augment.affine import AffineDraws, CropDraws, RandomAffine, RandomResizedCrop, RandomRotation
from jax_cifar.augment.sampling import resample, sample
from jax_cifar.augment.warp import ElasticTransform, GridDistortion, NoiseDraws, make_noise

RNG = np.random.default_rng(0)
BATCH, HEIGHT, WIDTH = 6, 12, 17
IMAGES = RNG.random((BATCH, HEIGHT, WIDTH, 3))
PLACES = np.stack(np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij"), -1).astype(np.float64)
DEGREES, SCALES = RNG.uniform(-200, 200, BATCH), RNG.uniform(0.6, 1.6, BATCH)
SHIFTS, SHEARS = RNG.integers(-4, 5, (BATCH, 2)).astype(np.float64), RNG.uniform(-40, 40, (BATCH, 2))
DRAWS: Any = AffineDraws(DEGREES, SHIFTS, SCALES, SHEARS)  # pyright: ignore[reportArgumentType]
# Modes of PyTorch's sampler.
TORCH_MODES = {"constant": "zeros", "reflect": "reflection", "edge": "border"}
pytestmark = pytest.mark.usefixtures("x64")


def torch_sample(images: np.ndarray, places: np.ndarray, padding="zeros", fill=0.0, offset=0.0) -> np.ndarray:
    """`grid_sample` at places in pixels."""
    grid = torch.from_numpy(2 * (places[..., ::-1] + offset) / (np.asarray(images.shape[2:0:-1]) - 1) - 1)
    pairs = zip(images, grid, strict=True)
    return np.stack([geometry.torch_sample(image, place[None], fill, padding) for image, place in pairs])


def scipy_sample(images: np.ndarray, places: np.ndarray, mode="grid-constant", fill=0.0) -> np.ndarray:
    """`map_coordinates` at places in pixels."""
    pairs = zip(images, np.moveaxis(places, -1, 1), strict=True)
    return np.stack([geometry.scipy_sample(image, place, mode, fill) for image, place in pairs])


@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "edge"])
def test_sampler(padding_mode):
    places = RNG.uniform((-9, -12), (HEIGHT + 8, WIDTH + 11), (BATCH, HEIGHT, WIDTH, 2))
    fill = 0.3 if padding_mode == "constant" else 0.0
    result = np.asarray(jax.jit(sample, static_argnums=(2, 3))(IMAGES, places, padding_mode, fill))
    mode = TORCH_MODES[padding_mode]
    assert_close(result, torch_sample(IMAGES, places, mode, fill), "float64 operation")
    others = [mode for name, mode in TORCH_MODES.items() if name != padding_mode]
    for wrong in (
        torch_sample(IMAGES, places, mode, fill, offset=0.5),
        torch_sample(IMAGES, places[..., ::-1], mode, fill),
        *(torch_sample(IMAGES, places, other, fill) for other in others),
    ):
        assert not agree(result, wrong, "float64 operation")


def test_sampler_in_float32():
    images = IMAGES.astype(np.float32)
    places = RNG.uniform(-2, HEIGHT + 1, (BATCH, HEIGHT, WIDTH, 2)).astype(np.float32).astype(np.float64)
    result = np.asarray(jax.jit(sample)(images, places.astype(np.float32)))
    expected, wrong = (torch_sample(images.astype(np.float64), places + off).astype(np.float32) for off in (0.0, 1e-4))
    assert_close(result, expected, "float32 operation")
    assert not agree(result, wrong, "float32 operation")


def test_affine():
    affine = RandomAffine(180.0, fill=0.2)
    result = run(affine, IMAGES, DRAWS)
    assert_close(result, one_by_one(affine, IMAGES, DRAWS), "float64 operation")
    for wrong in (
        DRAWS._replace(shear=SHEARS[:, ::-1]),
        DRAWS._replace(degrees=-DEGREES),
        DRAWS._replace(scale=1 / SCALES),
        DRAWS._replace(translate=SHIFTS[:, ::-1]),
    ):
        assert not agree(result, one_by_one(affine, IMAGES, wrong), "float64 operation")


def torchvision_matrix(angle: float, translate, scale: float, shear) -> np.ndarray:
    """torchvision's `_get_inverse_affine_matrix` around (0, 0), from its definition."""
    rotation, (sx, sy) = math.radians(angle), np.radians(shear)
    a = math.cos(rotation - sy) / math.cos(sy)
    b = -math.cos(rotation - sy) * math.tan(sx) / math.cos(sy) - math.sin(rotation)
    c = math.sin(rotation - sy) / math.cos(sy)
    d = -math.sin(rotation - sy) * math.tan(sx) / math.cos(sy) + math.cos(rotation)
    matrix = np.asarray([[d, -b, 0], [-c, a, 0]]) / scale
    matrix[:, 2] -= matrix[:, :2] @ translate
    return matrix


def test_the_references_matrix_is_torchvisions():
    for draw in zip(DEGREES, SHIFTS, SCALES, SHEARS, strict=True):
        matrix = np.reshape(geometry.inverse_matrix(AffineDraws(*draw)), (2, 3))
        np.testing.assert_allclose(matrix, torchvision_matrix(*draw), atol=1e-12)


def test_rotation():
    rotation = RandomRotation(180.0, fill=0.3)
    result = run(rotation, IMAGES, DEGREES)
    assert_close(result, one_by_one(rotation, IMAGES, DEGREES), "float64 operation")
    assert not agree(result, one_by_one(rotation, IMAGES, -DEGREES), "float64 operation")
    square = IMAGES[:, :, :HEIGHT]
    for quarters in range(-4, 5):
        turned = run(rotation, square, np.full(BATCH, 90.0 * quarters))
        np.testing.assert_array_equal(turned, np.rot90(square, quarters, axes=(1, 2)))


def test_pillow_rotates_and_maps_the_same_way():
    """Pillow rounds, and at the border it does not blend."""
    levels = np.random.default_rng(0).integers(0, 256, (BATCH, 4, 5, 3)).repeat(6, 1).repeat(6, 2).astype(np.uint8)
    slight: Any = AffineDraws(DEGREES / 10, SHIFTS, SCALES, SHEARS / 4)  # pyright: ignore[reportArgumentType]
    for transform, draws, other in (
        (RandomAffine(20.0), slight, slight._replace(degrees=-DEGREES / 10)),
        (RandomRotation(20.0), DEGREES / 10, -DEGREES / 10),
    ):
        gap = np.abs(255 * run(transform, levels / 255.0, draws) - one_by_one(transform, levels, draws))
        assert (gap > 1.5).mean() < 0.1
        wrong = np.abs(255 * run(transform, levels / 255.0, draws) - one_by_one(transform, levels, other))
        assert (wrong > 1.5).mean() > 0.25


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_resized_crop_sizes(scale):
    crop = RandomResizedCrop(scale=scale)
    areas = RNG.uniform(scale[0], scale[1], (500, 10))
    log_ratios = RNG.uniform(math.log(3 / 4), math.log(4 / 3), (500, 10))
    sizes, found = jax.jit(crop.sizes, static_argnums=(2, 3))(areas, log_ratios, HEIGHT, WIDTH)

    def expected(sign: int = 1) -> np.ndarray:
        pairs = zip(areas, sign * log_ratios, strict=True)
        return np.asarray([geometry.crop_sides(crop, zip(*each, strict=True), (HEIGHT, WIDTH)) for each in pairs])

    np.testing.assert_array_equal(np.concatenate([sizes, found[:, None]], 1), expected())
    assert (np.asarray(sizes) != expected(sign=-1)[:, :2]).mean() > 0.1


def test_resized_crop():
    crop, sizes = RandomResizedCrop(), np.asarray([[1, 1], [12, 17], [5, 9], [7, 2], [11, 16], [1, 17]], np.int32)
    corners = RNG.integers(0, np.asarray([HEIGHT, WIDTH]) + 1 - sizes).astype(np.int32)
    draws: Any = CropDraws(corners, sizes)  # pyright: ignore[reportArgumentType]
    result = run(crop, IMAGES, draws)
    assert_close(result, one_by_one(crop, IMAGES, draws), "float64 operation")
    levels = (255 * IMAGES).astype(np.uint8)
    # Pillow rounds along the rows and then along the columns, by half a level each; its weights have 22 bits.
    assert np.abs(255 * run(crop, levels / 255.0, draws) - one_by_one(crop, levels, draws)).max() < 1.001
    # Corners aligned, where only the centres of pixels are.
    for image, out, (top, left), (height, width) in list(zip(IMAGES, result, corners, sizes, strict=True))[2:5]:
        box = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None]
        aligned = torch.nn.functional.interpolate(box, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
        assert not agree(out, aligned[0].permute(1, 2, 0).numpy(), "float64 operation")


def noise_draws() -> tuple[Any, np.ndarray]:
    """Draws for every image, and the noise that they stand for."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(BATCH))
    draws = NoiseDraws(keys, jnp.ones(BATCH, bool))
    return draws, np.asarray(make_noise(draws, IMAGES.shape))


def displaced(elastic: ElasticTransform, noise: np.ndarray, mode: str = "reflect") -> np.ndarray:
    """Where the pixels of every image come from."""
    return PLACES + np.stack([geometry.displacement(elastic, each, mode) for each in noise])


MODES = ("constant", "reflect", "edge")
SIZES = ((30.0, 2.0), (60.0, 4.0), (600.0, 30.0))
EACH = [(*size, mode) for size, mode in zip(SIZES, MODES, strict=True)]
OTHERS = [(*size, mode) for size in SIZES for mode in MODES if (*size, mode) not in EACH]


@pytest.mark.parametrize(
    ("alpha", "sigma", "padding_mode"), EACH + [pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS]
)
def test_elastic(alpha, sigma, padding_mode):
    elastic = ElasticTransform(alpha, sigma, 1.0, padding_mode, 0.3 if padding_mode == "constant" else 0.0)
    draws, noise = noise_draws()
    result = run(elastic, IMAGES, draws)
    assert_close(result, one_by_one(elastic, IMAGES, noise), "float64 operation")
    for wrong in (
        one_by_one(elastic, IMAGES, -noise),
        one_by_one(elastic, IMAGES, noise[..., ::-1]),
        one_by_one(dataclasses.replace(elastic, sigma=1.01 * sigma), IMAGES, noise),
        scipy_sample(IMAGES, displaced(elastic, noise, "mirror"), geometry.SCIPY_MODES[padding_mode], elastic.fill),
    ):
        assert not agree(result, wrong, "float64 operation")


@pytest.mark.parametrize("num_steps", [1, 3, 5, 20])
def test_grid_distortion(num_steps):
    distortion, stretch = GridDistortion(num_steps), RNG.uniform(-0.9, 0.9, (BATCH, num_steps, 2))
    result = run(distortion, IMAGES, stretch)
    assert_close(result, one_by_one(distortion, IMAGES, stretch), "float64 operation")
    for wrong in (stretch[:, ::-1], stretch[..., ::-1], -stretch):
        reference = one_by_one(distortion, IMAGES, wrong)
        assert agree(result, reference, "float64 operation") == (num_steps == 1)  # one band keeps its size


def test_affine_then_elastic_in_one_resampling():
    affine, elastic = RandomAffine(180.0, fill=0.2), ElasticTransform(60.0, 4.0, fill=0.7)
    draws, noise = noise_draws()

    def both(images: jax.Array) -> jax.Array:
        return resample(
            images, [affine.move(jax.tree.map(jnp.asarray, DRAWS), images.shape), elastic.move(draws, images.shape)]
        )

    result = np.asarray(jax.jit(both)(IMAGES))
    places = displaced(elastic, noise)
    covered = scipy_sample(np.ones((BATCH, HEIGHT, WIDTH, 1)), places)
    middle, last = (np.asarray([HEIGHT, WIDTH]) - 1) / 2, np.asarray([HEIGHT, WIDTH]) - 1
    # (row, column) from (x, y) and back.
    pairs = zip(DEGREES, SHIFTS, SCALES, SHEARS, strict=True)
    matrices = np.stack([torchvision_matrix(*draw) for draw in pairs])[:, None, None]

    def origins(places: np.ndarray) -> np.ndarray:
        from_centre = (places - middle)[..., ::-1, None]
        return (matrices[..., :2] @ from_centre + matrices[..., 2:])[..., 0][..., ::-1] + middle

    inside = scipy_sample(IMAGES, origins(places.clip(0, last)), fill=0.2)
    assert_close(result, covered * inside + (1 - covered) * 0.7, "float64 operation")
    beyond = scipy_sample(IMAGES, origins(places), fill=0.2)
    assert not agree(result, covered * beyond + (1 - covered) * 0.7, "float64 operation")
    assert not agree(result, inside, "float64 operation")
