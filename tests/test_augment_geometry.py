"""Transforms that resample images: what each does, how its draws are distributed, how they compose."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_cifar.augment import HorizontalFlip, compose
from jax_cifar.augment.affine import AffineDraws, CropDraws, RandomAffine, RandomResizedCrop, RandomRotation
from jax_cifar.augment.sampling import Move, pixel_grid, resample, sample
from jax_cifar.augment.warp import ElasticTransform, GridDistortion
from jax_cifar.backend.precision import float64

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
# No pixel is 0, so that every filled one can be told; rows and columns differ in number.
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (32, 12, 16, 3)), jnp.float32)
AFFINE = RandomAffine(20.0, translate=(0.2, 0.1), scale=(0.7, 1.4), shear=(-10.0, 10.0, -5.0, 5.0))
GRID, ROTATION = GridDistortion(p=1.0), RandomRotation(30.0, fill=0.5)
STILL = (
    RandomAffine(0.0, (0.0, 0.0), (1.0, 1.0), 0.0, fill=0.5),
    RandomRotation(0.0, fill=0.5),
    RandomResizedCrop(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3)),
    ElasticTransform(p=0.0, fill=0.5),
    GridDistortion(p=0.0),
)


@functools.partial(jax.jit, static_argnums=0)
def drawn(method: Callable[..., jax.Array], images: jax.Array, *draws) -> jax.Array:
    """A transform of given draws, compiled."""
    return method(images, *draws)


def moved(images: jax.Array, moves: list[Move]) -> jax.Array:
    return jax.jit(lambda images: resample(images, moves))(images)


def batched(value: float, shape: tuple[int, ...] = (32,)) -> jax.Array:
    return jnp.full(shape, value, jnp.float32)


def affine(degrees=0.0, translate=(0.0, 0.0), scale=1.0, shear=(0.0, 0.0)) -> AffineDraws:
    """The same draws for every image."""
    pairs = [jnp.broadcast_to(jnp.asarray([pair], jnp.float32), (32, 2)) for pair in (translate, shear)]
    return AffineDraws(batched(degrees), pairs[0], batched(scale), pairs[1])


def test_without_movement_every_bit_stays():
    np.testing.assert_array_equal(jax.jit(compose(STILL))(KEY, IMAGES), IMAGES)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_stay(dtype):
    augment = jax.jit(compose((ROTATION, GRID)))
    images = np.asarray(IMAGES.astype(jnp.bfloat16))
    expected = augment(KEY, jnp.asarray(images, jnp.float32))
    with float64(dtype == "float64"):
        result = augment(KEY, jnp.asarray(images, dtype))
    assert result.dtype == dtype
    np.testing.assert_allclose(np.asarray(result, np.float32), expected, atol=4e-3 if dtype == "bfloat16" else 1e-4)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1, 5])
def test_quarter_turns_move_pixels_onto_pixels(quarters):
    square, turned = IMAGES[:, :, :12], batched(90.0 * quarters)
    expected = np.rot90(np.asarray(square), quarters, axes=(1, 2))
    np.testing.assert_array_equal(drawn(ROTATION.transform, square, turned), expected)
    # RandomAffine turns clockwise.
    np.testing.assert_array_equal(drawn(AFFINE.transform, square, affine(-90.0 * quarters)), expected)


def test_translation_by_whole_pixels_is_a_shift():
    filled = RandomAffine(0.0, (1.0, 1.0), fill=0.25)
    result = np.asarray(drawn(filled.transform, IMAGES, affine(translate=(3.0, -2.0))))
    np.testing.assert_array_equal(result[:, :-2, 3:], np.asarray(IMAGES)[:, 2:, :-3])
    np.testing.assert_array_equal(result[:, -2:], 0.25)
    np.testing.assert_array_equal(result[:, :, :3], 0.25)


def test_affine_draws_fill_their_ranges_each_by_itself():
    draws = AFFINE.draw(KEY, (4096, 12, 16, 3))
    right, down = np.asarray(draws.translate).T
    np.testing.assert_array_equal(np.unique(right), np.arange(-3, 4))  # 0.2 * 16 = 3.2
    np.testing.assert_array_equal(np.unique(down), np.arange(-1, 2))  # 0.1 * 12 = 1.2
    columns = (draws.degrees, draws.scale, draws.shear[:, 0], draws.shear[:, 1])
    for values, low, high in zip(columns, (-20, 0.7, -10, -5), (20, 1.4, 10, 5), strict=True):
        assert stats.kstest(np.asarray(values), "uniform", (low, high - low)).pvalue > 1e-3
    assert np.abs(np.corrcoef([*columns, right, down]) - np.eye(6)).max() < 4 / np.sqrt(4096)


@pytest.mark.parametrize(
    ("shear", "expected"),
    [(None, (0, 0, 0, 0)), (7.0, (-7, 7, 0, 0)), ((1.0, 2.0), (1, 2, 0, 0)), ((1.0, 2.0, 3.0, 4.0), (1, 2, 3, 4))],
)
def test_shear_is_one_two_or_four_numbers(shear, expected):
    assert RandomAffine(0.0, shear=shear).shears() == expected


def test_resized_crop_draws_boxes_that_fit():
    crop, draws = RandomResizedCrop(), np.random.default_rng(0)
    area, ratio = draws.uniform(0.08, 1, (4096, 10)), draws.uniform(np.log(3 / 4), np.log(4 / 3), (4096, 10))
    sizes, found = crop.sizes(jnp.asarray(area, jnp.float32), jnp.asarray(ratio, jnp.float32), 32, 32)
    assert (np.asarray(sizes) >= 1).all()
    assert (np.asarray(sizes) <= 32).all()
    assert np.asarray(found).mean() > 0.999
    # What is rejected is large: small boxes are as frequent as drawn.
    shares = np.asarray(sizes).prod(1) / 1024
    assert shares.min() > 0.06
    assert np.corrcoef(shares, area[:, 0])[0, 1] > 0.8


def test_resized_crop_draws_area_shape_and_place_each_by_itself():
    # So small a share fits at once, whatever its shape.
    draws = RandomResizedCrop((0.3, 0.5), ratio=(0.75, 2.0)).draw(KEY, (4096, 240, 320, 3))
    corners, sizes = np.asarray(draws.corners), np.asarray(draws.sizes)
    height, width = sizes.T
    places = (corners + 0.5) / ([240, 320] - sizes + 1)
    found = np.stack([sizes.prod(1) / (240 * 320), np.log(width / height), *places.T])
    ends = ((0.3, 0.5), np.log([0.75, 2.0]), (0, 1), (0, 1))
    for values, (low, high) in zip(found, ends, strict=True):
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 4 / np.sqrt(4096)
    np.testing.assert_array_equal(corners.min(0), [0, 0])
    np.testing.assert_array_equal((corners + sizes).max(0), [240, 320])


@pytest.mark.parametrize(
    ("ratio", "size", "expected"),
    [((3 / 4, 4 / 3), (32, 10), (13, 10)), ((3 / 4, 4 / 3), (10, 32), (10, 13)), ((0.5, 2.0), (9, 8), (9, 8))],
)
def test_resized_crop_falls_back_on_the_middle(ratio, size, expected):
    nothing_fits = jnp.full((3, 10), 4.0), jnp.zeros((3, 10))
    sizes, found = RandomResizedCrop(ratio=ratio).sizes(*nothing_fits, *size)
    np.testing.assert_array_equal(sizes, [expected] * 3)
    assert not np.asarray(found).any()


def test_resized_crop_stays_inside_its_box():
    # A white box on black: its enlargement is white to the border.
    images = jnp.zeros((1, 12, 16, 1)).at[:, 3:8, 5:12].set(1.0)
    crop, boxes = RandomResizedCrop(), CropDraws(jnp.asarray([[3, 5]], jnp.int32), jnp.asarray([[5, 7]], jnp.int32))
    np.testing.assert_array_equal(drawn(crop.transform, images, boxes), jnp.ones((1, 12, 16, 1)))
    beside = boxes._replace(corners=boxes.corners - 1)
    assert (np.asarray(drawn(crop.transform, images, beside)) < 1).any()


def test_elastic_displacement_has_the_stated_size():
    noise = jax.random.uniform(KEY, (64, 32, 32, 2), jnp.float32, -1.0, 1.0)
    for alpha, sigma in ((34.0, 4.0), (10.0, 2.0)):
        measured = np.asarray(ElasticTransform(alpha, sigma).displacement(noise))[:, 8:-8, 8:-8].std()
        assert abs(measured / (alpha / (6 * sigma)) - 1) < 0.1


def test_grid_distortion_draws_every_band_from_its_range():
    bands = np.asarray(GridDistortion(4, 0.3, p=1.0).draw(KEY, (1024, 12, 16, 3))).reshape(1024, 8)
    assert stats.kstest(bands.ravel(), "uniform", (-0.3, 0.6)).pvalue > 1e-3
    assert np.abs(np.corrcoef(bands.T) - np.eye(8)).max() < 4 / np.sqrt(1024)


def test_grid_distortion_leaves_the_border_in_place():
    stretch = jnp.asarray(np.random.default_rng(2).uniform(-0.9, 0.9, (32, 5, 2)), jnp.float32)
    places = np.asarray(GridDistortion().move(stretch, IMAGES.shape).mapping(pixel_grid(32, 12, 16)))
    rows, columns = places[..., 0], places[..., 1]
    np.testing.assert_allclose(rows[:, [0, -1]], np.broadcast_to([[0], [11]], (32, 2, 16)), atol=1e-5)
    np.testing.assert_allclose(columns[:, :, [0, -1]], np.broadcast_to([0, 15], (32, 12, 2)), atol=1e-5)
    assert (np.diff(rows, axis=1) > 0).all()
    assert (np.diff(columns, axis=2) > 0).all()


def test_sampling_beyond_the_border():
    line = jnp.asarray([0.2, 0.4, 0.8, 0.6, 0.1], jnp.float32).reshape(1, 1, 5, 1)
    places = np.asarray([-2.5, -0.75, 0.5, 4.25, 7.0], np.float32)
    grid = jnp.asarray(np.stack([np.zeros(5, np.float32), places], -1)[None, None])
    expected = {
        "constant": [1, 0.75 + 0.25 * 0.2, 0.3, 0.25 + 0.75 * 0.1, 1],
        "edge": [0.2, 0.2, 0.3, 0.1, 0.1],
        "reflect": [0.7, 0.35, 0.3, 0.225, 0.4],
    }
    for padding_mode, values in expected.items():
        result = sample(line, grid, padding_mode, fill=1.0)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(np.asarray(result).ravel(), values, rtol=1e-6, err_msg=f"{padding_mode}")


def test_neighbours_are_sampled_once():
    # Two opposite turns: sampled twice they blur, once they cancel. A flip between them keeps them apart.
    there, back = RandomRotation((20.0, 20.0)), RandomRotation((-20.0, -20.0))
    images = np.asarray(IMAGES)
    middle = (slice(None), slice(5, 7), slice(5, 11))
    once = np.asarray(jax.jit(compose((there, back)))(KEY, IMAGES))
    np.testing.assert_allclose(once[middle], images[middle], atol=1e-5)
    turned = np.asarray(jax.jit(compose((there, HorizontalFlip(p=0.0), back)))(KEY, IMAGES))
    assert np.abs(turned[middle] - images[middle]).mean() > 0.02


def test_compose_applies_neighbours_in_order_with_separate_keys():
    def directly(images: jax.Array, step: int) -> jax.Array:
        keyed = [(jax.random.fold_in(KEY, i), transform) for i, transform in enumerate((ROTATION, GRID))]
        moves = [transform.move(transform.draw(key, images.shape), images.shape) for key, transform in keyed]
        return resample(images, moves[::step])

    forward, backward = (np.asarray(jax.jit(directly, static_argnums=1)(IMAGES, step)) for step in (1, -1))
    result = np.asarray(jax.jit(compose((ROTATION, GRID)))(KEY, IMAGES))
    np.testing.assert_allclose(result, forward, atol=1e-6)
    assert np.abs(result - backward).mean() > 0.01


def test_what_left_the_image_does_not_come_back():
    # Shifts by whole pixels need no interpolation, so that once and one after another agree to the last bit.
    def shift(rows: int, columns: int, fill: float) -> Move:
        offset = jnp.asarray([rows, columns], jnp.float32)[None, None, None, :]
        return Move(lambda grid: grid - offset, fill=fill)

    moves = [shift(3, -4, 0.0), shift(-5, 2, 0.25), shift(1, 1, 0.5)]
    expected = IMAGES
    for move in moves:
        expected = moved(expected, [move])
    np.testing.assert_array_equal(moved(IMAGES, moves), expected)
    assert {0.0, 0.25, 0.5} <= set(np.unique(np.asarray(expected)))
    assert not np.array_equal(moved(IMAGES, moves[::-1]), expected)
