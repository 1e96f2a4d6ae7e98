"""How a batch is worked on: portions of it give what the whole gives, values are worked out once, noise comes late."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_cifar.augment import portions as augment_portions
from jax_cifar.augment.affine import RandomRotation
from jax_cifar.augment.base import SampleInfo, compose
from jax_cifar.augment.boxes import CoarseDropout, Cutout
from jax_cifar.augment.clahe import CLAHE
from jax_cifar.augment.colour import ColorJitter, ToGray
from jax_cifar.augment.crop_flip import HorizontalFlip, RandomCrop
from jax_cifar.augment.groups import OneOf, Sometimes
from jax_cifar.augment.portions import PORTION, change_chosen
from jax_cifar.augment.warp import ElasticTransform, GridDistortion
from jax_cifar.backend import portions
from jax_cifar.backend.portions import materialize, sum_chunks

KEY = jax.random.key(0)
JITTER = ColorJitter(0.4, (0.5, 1.5))
NESTED = Sometimes(OneOf((HorizontalFlip(mode="alternate"), OneOf((RandomCrop(2), Cutout(4)), p=1.0)), p=1.0), 0.7)
GROUPS = (
    OneOf((JITTER, ToGray()), (1.0, 2.0), 0.8),
    OneOf((CoarseDropout(fill="random", p=1.0), GridDistortion(p=1.0)), p=0.8),
    NESTED,
    CLAHE(tile_grid_size=(2, 2), p=0.6),
)


@pytest.fixture
def whole(monkeypatch):
    """A function that runs another one as on an accelerator, on whole batches."""

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            for module in (portions, augment_portions):
                patch.setattr(module, "on_one_cpu", lambda: False)
            return np.asarray(jax.jit(lambda *values: function(*values))(*arguments))

    return run


MANY, FEW = 2 * PORTION + 3, PORTION // 2


@pytest.mark.parametrize(
    ("group", "batch"),
    [(NESTED, MANY), (NESTED, FEW)]
    + [pytest.param(group, MANY, marks=pytest.mark.slow) for group in GROUPS if group != NESTED],
)
def test_portions_give_what_the_whole_batch_gives(whole, group, batch):
    images = jnp.asarray(np.random.default_rng(0).random((batch, 8, 8, 3)), jnp.float32)
    info = SampleInfo(jnp.arange(batch), jnp.asarray(1))
    result = np.asarray(jax.jit(group)(KEY, images, info))
    np.testing.assert_allclose(result, whole(group, KEY, images, info), atol=1e-5)
    changed = (result != np.asarray(images)).any((1, 2, 3))
    assert 0 < changed.sum() < batch


@pytest.mark.parametrize("seed", range(3))
def test_each_image_gets_its_change_with_its_own_draws(whole, seed):
    rng = np.random.default_rng(seed)
    images, added = (rng.random(size, np.float32) for size in ((3 * PORTION + 1, 2, 2, 1), 3 * PORTION + 1))
    choice = rng.integers(0, 2 + seed, len(images), np.int32)  # of the two changes; 2 and 3 are none
    draws = [jnp.asarray(added), (jnp.asarray(added), jnp.asarray(choice, jnp.float32))]
    changes = [
        lambda images, own: images + own[:, None, None, None],
        lambda images, own: images * own[0][:, None, None, None] - own[1][:, None, None, None],
    ]
    change = functools.partial(change_chosen, changes=changes, draws=draws)
    sums, products = images + added[:, None, None, None], images * added[:, None, None, None] - 1
    expected = np.stack([sums, products, images, images])[choice, np.arange(len(images))]
    for result in (jax.jit(change)(images, choice), whole(change, jnp.asarray(images), jnp.asarray(choice))):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_only_as_many_portions_are_worked_on_as_hold_chosen_images():
    seen = []

    def change(images, number):
        jax.debug.callback(lambda number: seen.append(np.asarray(number)), number)
        return images + 1

    images, choice = jnp.zeros((8 * PORTION, 1, 1, 1)), np.ones(8 * PORTION, np.int32)
    choice[3::PORTION] = 0  # eight images of the first change, one in every portion of the batch
    result = jax.jit(lambda images: change_chosen(images, jnp.asarray(choice), [change], [jnp.arange(8 * PORTION)]))(
        images
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(np.asarray(result).ravel(), 1 - choice)
    assert len(seen) == -(-8 // PORTION)


@pytest.mark.parametrize("values", [-np.ones((2, 3), np.float32), np.arange(4), np.full((2, 2), np.nan)], ids=str)
def test_materialize_keeps_every_value(values):
    np.testing.assert_array_equal(jax.jit(materialize)(jnp.asarray(values)), jnp.asarray(values))
    np.testing.assert_array_equal(jax.jit(jax.vmap(materialize))(jnp.asarray(values)), jnp.asarray(values))


def test_a_value_is_materialized_before_it_is_read():
    def read_twice(images, boundary):
        roots = boundary(jnp.sin(images))
        return roots + roots[:, ::-1]

    def together(boundary) -> bool:
        """Whether one loop both works values out and reads them in two places."""
        program = jax.jit(functools.partial(read_twice, boundary=boundary)).lower(jnp.ones((4, 8))).compile().as_text()
        return any(" sine(" in loop and " reverse(" in loop for loop in (program or "").split("\n\n"))

    assert portions.on_one_cpu()
    assert together(lambda values: values)
    assert not together(materialize)
    assert not together(lambda values: sum_chunks(lambda part: part, (values,), limit=4))  # the whole batch, one part


def test_opposite_turns_cancel_for_every_reader():
    # Places that cancel to whole pixels: rounded to either side, they must not lose a pixel.
    turns = compose((RandomRotation((20.0, 20.0)), RandomRotation((-20.0, -20.0))))
    images = jnp.asarray(np.random.default_rng(0).random((8, 12, 16, 3)), jnp.float32)
    read_twice = jax.jit(lambda images: (lambda turned: turned + turned[:, ::-1])(turns(KEY, images)))
    middle, images = (slice(None), slice(5, 7), slice(5, 11)), np.asarray(images)
    np.testing.assert_allclose(read_twice(images)[middle], (images + images[:, ::-1])[middle], atol=1e-5)


def test_noise_made_late_is_that_of_the_whole_batch(whole):
    images = jnp.asarray(np.random.default_rng(0).random((2 * PORTION + 3, 6, 7, 3)), jnp.float32)
    group = Sometimes(ElasticTransform(p=1.0), 0.5)
    result = np.asarray(jax.jit(group)(KEY, images))
    np.testing.assert_allclose(result, whole(group, KEY, images), atol=1e-5)
    moved = (result != np.asarray(images)).any((1, 2, 3))
    assert 0 < moved.sum() < len(images)
