"""The transforms that resample images against PyTorch, SciPy and torchvision's formulas, given the same draws.

In float64, so that places between pixels leave no rounding. Each comparison has a twin: a known wrong variant of the
reference must not agree.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import ndimage
from tolerances import agree, assert_close

from jax_cifar.augment.affine import AffineDraws, RandomAffine, RandomResizedCrop, RandomRotation
from jax_cifar.augment.sampling import resample, sample
from jax_cifar.augment.warp import ElasticTransform, GridDistortion

RNG = np.random.default_rng(0)
BATCH, HEIGHT, WIDTH = 6, 12, 17
IMAGES = RNG.random((BATCH, HEIGHT, WIDTH, 3))
PLACES = np.stack(np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij"), -1).astype(np.float64)
NOISE = RNG.uniform(-1, 1, (BATCH, HEIGHT, WIDTH, 2))
DEGREES, SCALES = RNG.uniform(-200, 200, BATCH), RNG.uniform(0.6, 1.6, BATCH)
SHIFTS, SHEARS = RNG.integers(-4, 5, (BATCH, 2)).astype(np.float64), RNG.uniform(-40, 40, (BATCH, 2))
# Modes of PyTorch's and of SciPy's samplers.
TORCH_MODES = {"constant": "zeros", "reflect": "reflection", "edge": "border"}
SCIPY_MODES = {"constant": "grid-constant", "reflect": "mirror", "edge": "nearest"}
pytestmark = pytest.mark.usefixtures("x64")


def run(function: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(function)(*map(jnp.asarray, arrays)))


def torch_sample(images: np.ndarray, places: np.ndarray, mode="bilinear", padding="zeros", fill=0.0, corners=True):
    """`grid_sample` at places in pixels."""
    normalised = 2 * places[..., ::-1] / (np.asarray(images.shape[2:0:-1]) - 1) - 1
    values = torch.from_numpy(images - fill).permute(0, 3, 1, 2)
    grid = torch.from_numpy(normalised.copy())
    result = torch.nn.functional.grid_sample(values, grid, mode=mode, padding_mode=padding, align_corners=corners)
    return result.permute(0, 2, 3, 1).numpy() + fill


def scipy_sample(images: np.ndarray, places: np.ndarray, mode="grid-constant", fill=0.0) -> np.ndarray:
    """`map_coordinates` at places in pixels, image by image and channel by channel."""
    result = np.empty(images.shape)
    for image, place, out in zip(images, places, result, strict=True):
        for channel in range(images.shape[-1]):
            out[..., channel] = ndimage.map_coordinates(
                image[..., channel], np.moveaxis(place, -1, 0), order=1, mode=mode, cval=fill
            )
    return result


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "edge"])
def test_sampler(interpolation, padding_mode):
    places = RNG.uniform((-9, -12), (HEIGHT + 8, WIDTH + 11), (BATCH, HEIGHT, WIDTH, 2))
    fill = 0.3 if padding_mode == "constant" else 0.0
    result = run(lambda images, grid: sample(images, grid, interpolation, padding_mode, fill), IMAGES, places)
    expected = torch_sample(IMAGES, places, interpolation, TORCH_MODES[padding_mode], fill)
    assert_close(result, expected, "float64 operation")
    others = [mode for name, mode in TORCH_MODES.items() if name != padding_mode]
    for wrong in (
        torch_sample(IMAGES, places, interpolation, TORCH_MODES[padding_mode], fill, corners=False),
        torch_sample(IMAGES, places[..., ::-1], interpolation, TORCH_MODES[padding_mode], fill),
        *(torch_sample(IMAGES, places, interpolation, other, fill) for other in others),
    ):
        assert not agree(result, wrong, "float64 operation")


def test_sampler_in_float32():
    images = IMAGES.astype(np.float32)
    places = RNG.uniform(-2, HEIGHT + 1, (BATCH, HEIGHT, WIDTH, 2)).astype(np.float32).astype(np.float64)
    result = run(sample, images, places.astype(np.float32))
    expected, wrong = (torch_sample(images.astype(np.float64), places + off).astype(np.float32) for off in (0.0, 1e-4))
    assert_close(result, expected, "float32 operation")
    assert not agree(result, wrong, "float32 operation")


def torchvision_matrix(angle: float, translate, scale: float, shear, swapped: bool = False) -> np.ndarray:
    """torchvision's `_get_inverse_affine_matrix` around (0, 0), from its definition; `swapped` exchanges the shears."""
    rotation, (sx, sy) = math.radians(angle), np.radians(shear[::-1] if swapped else shear)
    a = math.cos(rotation - sy) / math.cos(sy)
    b = -math.cos(rotation - sy) * math.tan(sx) / math.cos(sy) - math.sin(rotation)
    c = math.sin(rotation - sy) / math.cos(sy)
    d = -math.sin(rotation - sy) * math.tan(sx) / math.cos(sy) + math.cos(rotation)
    matrix = np.asarray([[d, -b, 0], [-c, a, 0]]) / scale
    matrix[:, 2] -= matrix[:, :2] @ translate
    return matrix


def torch_affine(images: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """`affine_grid` and `grid_sample` of matrices in pixels (x, y) from the centre."""
    half = (np.asarray([WIDTH, HEIGHT]) - 1) / 2
    theta = matrices / half[:, None]
    theta[..., :2] *= half
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta), [BATCH, 3, HEIGHT, WIDTH], align_corners=True)
    pixels = (grid.numpy() + 1) * half
    return torch_sample(images, pixels[..., ::-1])


def test_affine():
    affine = RandomAffine(180.0)
    draws = (DEGREES, SHIFTS, SCALES, SHEARS)
    result = run(lambda images, *draws: affine.transform(images, AffineDraws(*draws)), IMAGES, *draws)
    matrices = np.stack([torchvision_matrix(*draw) for draw in zip(*draws, strict=True)])
    assert_close(result, torch_affine(IMAGES, matrices), "float64 operation")
    for wrong in (
        [torchvision_matrix(*draw, swapped=True) for draw in zip(*draws, strict=True)],
        [torchvision_matrix(*draw) for draw in zip(-DEGREES, SHIFTS, SCALES, SHEARS, strict=True)],
        [torchvision_matrix(*draw) for draw in zip(DEGREES, SHIFTS, 1 / SCALES, SHEARS, strict=True)],
        [torchvision_matrix(*draw) for draw in zip(DEGREES, SHIFTS[:, ::-1], SCALES, SHEARS, strict=True)],
    ):
        assert not agree(result, torch_affine(IMAGES, np.stack(wrong)), "float64 operation")


def test_rotation():
    result = run(RandomRotation(180.0).rotate, IMAGES, DEGREES)
    still = np.zeros(2)
    there, back = (np.stack([torchvision_matrix(s * d, still, 1.0, still) for d in DEGREES]) for s in (-1, 1))
    assert_close(result, torch_affine(IMAGES, there), "float64 operation")
    assert not agree(result, torch_affine(IMAGES, back), "float64 operation")
    square = IMAGES[:, :, :HEIGHT]
    for quarters in range(-4, 5):
        turned = run(RandomRotation(180.0).rotate, square, np.full(BATCH, 90.0 * quarters))
        np.testing.assert_array_equal(turned, np.rot90(square, quarters, axes=(1, 2)))


def torchvision_box(crop: RandomResizedCrop, areas: np.ndarray, log_ratios: np.ndarray, swapped: bool = False):
    """Height and width as torchvision's `RandomResizedCrop.get_params` has them, given its draws."""
    for area, log_ratio in zip(areas, log_ratios, strict=True):
        aspect = math.exp(-log_ratio if swapped else log_ratio)
        width = round(math.sqrt(HEIGHT * WIDTH * area * aspect))
        height = round(math.sqrt(HEIGHT * WIDTH * area / aspect))
        if 0 < width <= WIDTH and 0 < height <= HEIGHT:
            return height, width
    whole = WIDTH / HEIGHT
    if whole < min(crop.ratio):
        return round(WIDTH / min(crop.ratio)), WIDTH
    if whole > max(crop.ratio):
        return HEIGHT, round(HEIGHT * max(crop.ratio))
    return HEIGHT, WIDTH


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_resized_crop_sizes(scale):
    crop = RandomResizedCrop(scale=scale)
    areas = RNG.uniform(scale[0], scale[1], (500, 10))
    log_ratios = RNG.uniform(math.log(3 / 4), math.log(4 / 3), (500, 10))
    sizes, _ = jax.jit(crop.sizes, static_argnums=(2, 3))(jnp.asarray(areas), jnp.asarray(log_ratios), HEIGHT, WIDTH)
    draws = list(zip(areas, log_ratios, strict=True))
    np.testing.assert_array_equal(sizes, [torchvision_box(crop, *draw) for draw in draws])
    assert (np.asarray(sizes) != [torchvision_box(crop, *draw, swapped=True) for draw in draws]).mean() > 0.1


def test_resized_crop():
    sizes = np.asarray([[1, 1], [12, 17], [5, 9], [7, 2], [11, 16], [1, 17]], np.int32)
    corners = RNG.integers(0, np.asarray([HEIGHT, WIDTH]) + 1 - sizes).astype(np.int32)
    result = run(RandomResizedCrop().crop, IMAGES, corners, sizes)

    def torchvision_crop(align_corners: bool, antialias: bool = False) -> np.ndarray:
        crops = []
        for image, (top, left), (height, width) in zip(IMAGES, corners, sizes, strict=True):
            box = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None]
            enlarged = torch.nn.functional.interpolate(
                box, (HEIGHT, WIDTH), mode="bilinear", align_corners=align_corners, antialias=antialias
            )
            crops.append(enlarged[0].permute(1, 2, 0).numpy())
        return np.stack(crops)

    for antialias in (False, True):  # torchvision's default is True; it only matters where images shrink
        assert_close(result, torchvision_crop(align_corners=False, antialias=antialias), "float64 operation")
    assert not agree(result, torchvision_crop(align_corners=True), "float64 operation")


def displacement(alpha: float, sigma: float, mode: str = "reflect") -> np.ndarray:
    """What Simard's definition makes of `NOISE`, with SciPy's filter."""
    return alpha * ndimage.gaussian_filter(NOISE, (0, sigma, sigma, 0), mode=mode)


@pytest.mark.parametrize("padding_mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize(("alpha", "sigma"), [(30.0, 2.0), (60.0, 4.0), (600.0, 30.0)])
def test_elastic(alpha, sigma, padding_mode):
    fill = 0.3 if padding_mode == "constant" else 0.0
    result = run(ElasticTransform(alpha, sigma, 1.0, padding_mode, fill).displace, IMAGES, NOISE)
    places = PLACES + displacement(alpha, sigma)
    assert_close(result, scipy_sample(IMAGES, places, SCIPY_MODES[padding_mode], fill), "float64 operation")
    for wrong in (
        PLACES - displacement(alpha, sigma),
        PLACES + displacement(alpha, sigma)[..., ::-1],
        PLACES + displacement(alpha, sigma, mode="mirror"),
        PLACES + displacement(alpha, 1.01 * sigma),
    ):
        reference = scipy_sample(IMAGES, wrong, SCIPY_MODES[padding_mode], fill)
        assert not agree(result, reference, "float64 operation")


def distorted(stretch: np.ndarray, normalised: bool = True) -> np.ndarray:
    """Where every pixel of a distorted image comes from: interpolated between the bands' stretched borders."""
    places = np.empty((BATCH, HEIGHT, WIDTH, 2))
    for place, share in zip(places, stretch, strict=True):
        for axis, size in enumerate((HEIGHT, WIDTH)):
            borders = np.linspace(0, size - 1, len(share) + 1)
            stretched = np.concatenate([[0], np.cumsum(1 + share[:, axis])])
            stretched *= (size - 1) / (stretched[-1] if normalised else len(share))
            place[..., axis] = np.interp(PLACES[..., axis], borders, stretched)
    return places


@pytest.mark.parametrize("num_steps", [1, 3, 5, 20])
def test_grid_distortion(num_steps):
    stretch = RNG.uniform(-0.9, 0.9, (BATCH, num_steps, 2))
    result = run(GridDistortion(num_steps).distort, IMAGES, stretch)
    assert_close(result, scipy_sample(IMAGES, distorted(stretch), "nearest"), "float64 operation")
    for wrong in (distorted(stretch, normalised=False), distorted(stretch[:, ::-1]), distorted(stretch[..., ::-1])):
        reference = scipy_sample(IMAGES, wrong, "nearest")
        assert agree(result, reference, "float64 operation") == np.allclose(wrong, distorted(stretch))


def test_affine_then_elastic_in_one_resampling():
    affine, elastic = RandomAffine(180.0, fill=0.2), ElasticTransform(60.0, 4.0, fill=0.7)

    def both(images: jax.Array, noise: jax.Array, *draws: jax.Array) -> jax.Array:
        return resample(images, [affine.given(AffineDraws(*draws), images.shape), elastic.moved_by(noise)])

    draws = (DEGREES, SHIFTS, SCALES, SHEARS)
    result = run(both, IMAGES, NOISE, *draws)
    places = PLACES + displacement(60.0, 4.0)
    covered = scipy_sample(np.ones((BATCH, HEIGHT, WIDTH, 1)), places)
    middle, last = (np.asarray([HEIGHT, WIDTH]) - 1) / 2, np.asarray([HEIGHT, WIDTH]) - 1
    # (row, column) from (x, y) and back.
    matrices = np.stack([torchvision_matrix(*draw) for draw in zip(*draws, strict=True)])[:, None, None]

    def origins(places: np.ndarray) -> np.ndarray:
        from_centre = (places - middle)[..., ::-1, None]
        return (matrices[..., :2] @ from_centre + matrices[..., 2:])[..., 0][..., ::-1] + middle

    inside = scipy_sample(IMAGES, origins(places.clip(0, last)), fill=0.2)
    assert_close(result, covered * inside + (1 - covered) * 0.7, "float64 operation")
    beyond = scipy_sample(IMAGES, origins(places), fill=0.2)
    assert not agree(result, covered * beyond + (1 - covered) * 0.7, "float64 operation")
    assert not agree(result, inside, "float64 operation")
