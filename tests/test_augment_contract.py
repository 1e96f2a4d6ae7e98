"""What holds for every transform, the library's and one's own: alone, in a pipeline, and inside a group."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jax_cifar.augment as library
from jax_cifar.augment import (
    CLAHE,
    AutoAugment,
    CoarseDropout,
    ColorJitter,
    CutMix,
    Cutout,
    ElasticTransform,
    GridDistortion,
    HorizontalFlip,
    MixUp,
    OneOf,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomRotation,
    Resampling,
    SampleInfo,
    Sometimes,
    ToGray,
    Transform,
    TrivialAugmentWide,
    compose,
)
from jax_cifar.augment.sampling import Move
from jax_cifar.backend.precision import float64
from jax_cifar.config.checks import at_least
from jax_cifar.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compile")


@dataclass(frozen=True)
class Brighten(Transform):
    """A transform of one's own."""

    most: Annotated[float, at_least(0)] = 0.5

    def draw(self, key, shape, info=None):
        return jax.random.uniform(key, shape[:1], jnp.float32, 0.0, self.most)

    def transform(self, images, draws):
        return jnp.minimum(images + draws[:, None, None, None].astype(images.dtype), 1)


@dataclass(frozen=True)
class Slide(Resampling):
    """A transform of one's own that only moves pixels."""

    most: Annotated[float, at_least(0)] = 3.0

    def draw(self, key, shape, info=None):
        return jax.random.uniform(key, (shape[0], 2), jnp.float32, -self.most, self.most)

    def move(self, draws, shape):
        return Move(lambda grid: grid + draws[:, None, None, :].astype(grid.dtype), "reflect")


KEY = jax.random.key(0)
BATCH = 256
# No pixel is 0, so that every filled one can be told.
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (BATCH, 8, 8, 3)), jnp.float32)
INFO = SampleInfo(jnp.arange(BATCH), jnp.asarray(0))
# Different results that one image is to have at least: half of those that there can be, or of the batch.
CASES = (
    (RandomCrop(padding=2), 12),
    (RandomCrop(padding=1, padding_mode="reflect", fill=0.5), 4),
    (HorizontalFlip(p=0.3), 2),
    (HorizontalFlip(mode="alternate"), 2),
    (RandomResizedCrop(), 100),
    (RandomAffine(20.0, (0.2, 0.1), (0.7, 1.4), (-10.0, 10.0, -5.0, 5.0)), 128),
    (RandomRotation((-30.0, 20.0), fill=0.5), 128),
    (ElasticTransform(alpha=20.0, sigma=2.0, p=0.3, padding_mode="reflect"), 40),
    (GridDistortion(num_steps=3, p=0.3), 40),
    (ColorJitter(0.4, (0.5, 1.5), 0.4, 0.1), 128),
    (ToGray(p=0.3), 2),
    (CLAHE(clip_limit=(1.0, 60.0), tile_grid_size=(2, 1), p=0.3), 2),
    (Cutout(length=3, fill=0.5), 32),
    (RandomErasing(p=0.3, scale=(0.1, 0.4), value=(0.0, 0.5, 0.75)), 40),
    (CoarseDropout((1, 3), (2, 5), (0.3, 0.5), "random", p=0.3), 40),
    (AutoAugment(), 25),
    (TrivialAugmentWide(fill=0.5), 100),
    (OneOf((ToGray(p=1.0), Cutout(3), Brighten()), (1.0, 2.0, 1.0), p=0.3), 40),
    (Sometimes(Cutout(3), p=0.3), 16),
    (Brighten(), 128),
    (Slide(), 128),
)
TRANSFORMS = [transform for transform, _ in CASES]
WITH_P = [each for each in TRANSFORMS if hasattr(each, "p") and getattr(each, "mode", "random") == "random"]


@functools.cache
def compiled(transform: Transform) -> Callable[..., jax.Array]:
    return jax.jit(lambda key, images, info: transform.transform(images, transform.draw(key, images.shape, info)))


def run(transform: Transform, seed: int = 0, images: jax.Array = IMAGES) -> np.ndarray:
    return np.asarray(compiled(transform)(jax.random.key(seed), images, INFO))


def in_every_way(transform: Transform) -> dict[str, jax.Array]:
    """A transform in a pipeline, and in groups that hand it every second image, with the draws that it has alone."""

    @jax.jit
    def every_way(key: jax.Array, images: jax.Array, info: SampleInfo) -> dict[str, jax.Array]:
        own = jax.random.fold_in(key, 0)  # that of the first of a pipeline
        draws, second = transform.draw(own, images.shape, info), jnp.arange(len(images)) % 2
        return {
            "alone": transform.transform(images, draws),
            "in a pipeline": compose((transform,))(key, images, info),
            "in OneOf": OneOf((transform, ToGray())).transform(images, (1 - second, [draws, second == 0])),
            "in Sometimes": Sometimes(transform).transform(images, (second == 1, draws)),
        }

    return every_way(KEY, IMAGES, INFO)


def test_every_transform_of_the_library_is_here():
    exported = [getattr(library, name) for name in library.__all__]
    kinds = {k for k in exported if inspect.isclass(k) and issubclass(k, Transform) and not inspect.isabstract(k)}
    assert kinds == {type(transform) for transform in TRANSFORMS} - {Brighten, Slide}


@pytest.mark.parametrize(("transform", "least"), CASES, ids=repr)
def test_the_key_decides_for_every_image_and_the_range_stays(transform, least):
    result = run(transform)
    assert (result.shape, result.dtype) == (IMAGES.shape, IMAGES.dtype)
    assert 0 <= result.min() <= result.max() <= 1
    assert not np.array_equal(result, IMAGES)
    np.testing.assert_array_equal(run(transform), result)
    decides = getattr(transform, "mode", "") != "alternate"
    assert np.array_equal(run(transform, seed=1), result) == (not decides)
    same = run(transform, images=jnp.broadcast_to(IMAGES[:1], IMAGES.shape))
    assert len(np.unique(same.reshape(BATCH, -1), axis=0)) >= least


# What there is of kinds: a choice of images, noise made late, boxes, groups, one's own, resampling.
KINDS = (HorizontalFlip, ElasticTransform, RandomErasing, OneOf, Sometimes, Brighten, Slide)


@pytest.mark.parametrize(
    "transform",
    [each if isinstance(each, KINDS) else pytest.param(each, marks=pytest.mark.slow) for each in TRANSFORMS],
    ids=repr,
)
def test_in_a_pipeline_and_in_groups_every_image_becomes_the_same(transform):
    results = in_every_way(transform)
    np.testing.assert_allclose(results["in a pipeline"], results["alone"], atol=1e-5)
    second = (np.arange(BATCH) % 2 == 1)[:, None, None, None]
    for group, otherwise in (("in Sometimes", IMAGES), ("in OneOf", ToGray().transform(IMAGES, jnp.ones(BATCH, bool)))):
        np.testing.assert_allclose(results[group], np.where(second, results["alone"], otherwise), atol=1e-5)


@pytest.mark.parametrize("transform", WITH_P, ids=repr)
def test_p_is_the_probability(transform):
    assert transform.p == 0.3
    changed = np.concatenate([(run(transform, seed) != IMAGES).any((1, 2, 3)) for seed in range(6)])
    assert stats.binomtest(int(changed.sum()), changed.size, 0.3).pvalue > 1e-3
    assert abs(np.corrcoef(changed[1:], changed[:-1])[0, 1]) < 4 / np.sqrt(changed.size)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize(("shape", "dtype"), [((2, 8, 8, 3), "bfloat16"), ((2, 9, 12, 1), "float64")])
def test_keeps_every_shape_and_dtype(transform, shape, dtype):
    if isinstance(getattr(transform, "value", 0), tuple):
        shape = (*shape[:3], 3)
    with float64(dtype == "float64"):
        result = jax.eval_shape(
            transform, KEY, jax.ShapeDtypeStruct(shape, dtype), SampleInfo(jnp.arange(2), jnp.int32(0))
        )
    assert (result.shape, result.dtype) == (shape, dtype)


NAN, INFINITY = float("nan"), float("inf")
REFUSED: list[tuple[type, str, list[Any]]] = [
    (RandomCrop, "padding", [-1, 4.0, True]),
    (RandomCrop, "padding_mode", ["edge"]),
    (RandomCrop, "fill", [255, -0.1]),
    (HorizontalFlip, "p", [1.5, NAN]),
    (HorizontalFlip, "mode", ["odd"]),
    (RandomResizedCrop, "scale", [(0.5, 1.5), 0.5, (0.0, 1.0)]),
    (RandomResizedCrop, "ratio", [(-1.0, 1.0), (2.0, 1.0)]),
    (RandomAffine, "degrees", [-1.0, (5.0, -5.0), NAN]),
    (RandomAffine, "translate", [(0.1, 1.1), 0.1]),
    (RandomAffine, "scale", [(0.0, 1.0), (1.2, 0.9)]),
    (RandomAffine, "shear", [(1.0, 2.0, 3.0), 90.0, (-90.0, 0.0)]),
    (RandomAffine, "fill", [255]),
    (RandomRotation, "degrees", ["30"]),
    (RandomRotation, "fill", [-1.0]),
    (ElasticTransform, "alpha", [-1.0]),
    (ElasticTransform, "sigma", [0.0]),
    (ElasticTransform, "p", [1.5]),
    (ElasticTransform, "padding_mode", ["wrap"]),
    (ElasticTransform, "fill", [2.0]),
    (GridDistortion, "num_steps", [0]),
    (GridDistortion, "distort_limit", [1.0]),
    (GridDistortion, "p", [-0.1]),
    (ColorJitter, "brightness", [-0.1, INFINITY]),
    (ColorJitter, "contrast", [(1.2, 0.8)]),
    (ColorJitter, "saturation", [(0.5, 0.6, 0.7)]),
    (ColorJitter, "hue", [0.6, (-0.6, 0.0), "0.1"]),
    (ToGray, "p", [1.1]),
    (CLAHE, "clip_limit", [0.5, (4.0, 2.0)]),
    (CLAHE, "tile_grid_size", [(0, 8), 8]),
    (CLAHE, "p", [-1.0]),
    (Cutout, "length", [0]),
    (Cutout, "fill", [-0.1]),
    (RandomErasing, "p", [True]),
    (RandomErasing, "scale", [(0.3, 1.3)]),
    (RandomErasing, "ratio", [(0.0, 2.0)]),
    (RandomErasing, "value", ["noise", 255, ()]),
    (CoarseDropout, "num_holes_range", [(0, 2), (1.0, 2.0)]),
    (CoarseDropout, "hole_height_range", [(0.5, 8)]),
    (CoarseDropout, "hole_width_range", [(0, 8), (0, 1)]),
    (CoarseDropout, "fill", [(0.5, 2.0)]),
    (CoarseDropout, "p", [-1.0]),
    (AutoAugment, "fill", [128.0]),
    (TrivialAugmentWide, "num_magnitude_bins", [1, 31.0]),
    (TrivialAugmentWide, "fill", [-0.1]),
    (OneOf, "transforms", [(), ToGray()]),
    (OneOf, "weights", [(1.0, 2.0), (-1.0,), (0.0,)]),
    (OneOf, "p", [2.0]),
    (Sometimes, "p", [-0.1]),
    (Brighten, "most", [-1.0, "1"]),
    (MixUp, "alpha", [0.0, INFINITY]),
    (CutMix, "alpha", [-1.0, "1"]),
]
NEEDED: dict[type, dict[str, Any]] = {
    RandomAffine: {"degrees": 0.0},
    RandomRotation: {"degrees": 0.0},
    OneOf: {"transforms": (ToGray(),)},
    Sometimes: {"inner": ToGray()},
}


@pytest.mark.parametrize(("kind", "field", "values"), REFUSED, ids=[f"{kind.__name__}.{f}" for kind, f, _ in REFUSED])
def test_a_parameter_out_of_range_is_refused_by_name(kind, field, values):
    for value in values:
        with pytest.raises(ConfigError) as refusal:
            kind(**{**NEEDED.get(kind, {}), field: value})
        assert str(refusal.value).startswith(f"{kind.__name__}.{field} = {value!r} is not allowed: ")


def test_every_parameter_has_a_range_that_is_checked():
    tried = {(kind, field) for kind, field, _ in REFUSED} | {(Sometimes, "inner")}
    kinds = {type(transform) for transform in TRANSFORMS} - {Slide}
    assert tried >= {(kind, field.name) for kind in kinds for field in dataclasses.fields(kind)}


class NoDataclass(Transform):
    """A transform that cannot be recorded."""

    def draw(self, key, shape, info=None):
        return ()

    def transform(self, images, draws):
        return images


WAYS = (
    ("augment[1]", lambda wrong: compose((ToGray(), wrong))),
    ("OneOf.transforms[1]", lambda wrong: OneOf((ToGray(), wrong))),
    ("Sometimes.inner", lambda wrong: Sometimes(wrong)),
)


@pytest.mark.parametrize(("name", "make"), WAYS, ids=[name for name, _ in WAYS])
def test_what_is_no_transform_is_refused(name, make):
    for wrong in (RandomCrop, "RandomCrop", lambda images: images, MixUp()):
        with pytest.raises(ConfigError) as refusal:
            make(wrong)
        assert str(refusal.value).startswith(f"{name} = {wrong!r} is not a transform: give an instance")
    with pytest.raises(ConfigError, match=r"is a NoDataclass, which cannot be recorded: write @dataclass"):
        make(NoDataclass())


def test_normalising_twice_is_refused():
    with pytest.raises(ConfigError, match=r"normalised by the run itself.*leave it out"):
        from jax_cifar.augment import Normalize  # noqa: F401  # pyright: ignore
    with pytest.raises(ImportError, match="Sharpen"):
        from jax_cifar.augment import Sharpen  # noqa: F401  # pyright: ignore


def test_a_resampling_of_ones_own_is_chained_with_the_librarys():
    @dataclass(frozen=True)
    class Half(Slide):
        def draw(self, key, shape, info=None):
            return jnp.full((shape[0], 2), self.most, jnp.float32)

    # Half a pixel there and back: sampled twice it blurs, chained it cancels.
    back_and_forth = compose((Half(0.5), RandomRotation(0.0), Half(0.5), Half(0.0)))
    shifted = np.asarray(jax.jit(back_and_forth)(KEY, IMAGES))
    np.testing.assert_allclose(shifted[:, :-1, :-1], np.asarray(IMAGES)[:, 1:, 1:], atol=1e-6)


@dataclass(frozen=True)
class Wrong(Brighten):
    """A transform whose author has made a mistake."""

    mistake: str = ""

    def draw(self, key, shape, info=None):
        return {}["rate"] if self.mistake == "draw" else super().draw(key, shape, info)

    def transform(self, images, draws):
        match self.mistake:
            case "broadcast":
                return images * draws[:, None]
            case "choice":
                return images if draws[0] > 0.5 else 1 - images
            case "pixels":
                return images[:, :-1]
            case "dtype":
                return images > 0.5
            case _:
                return None


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (
            "draw",
            r"failed on .*: KeyError: 'rate' \(test_augment_contract\.py, line \d+: return \{\}",
        ),
        (
            "broadcast",
            r"(Value|Type)Error: .* \(test_augment_contract\.py, line \d+: return images \* dr",
        ),
        ("choice", r"TracerBoolConversionError: .* \(test_augment_contract\.py, line \d+: return images if draws\[0\]"),
        (
            "pixels",
            r"transform Wrong made float32\[\d, 7, 8, 3\] of images float32\[\d, 8, 8, 3\]: shape and",
        ),
        ("dtype", r"transform Wrong made bool\[\d, 8, 8, 3\] of images"),
        ("nothing", r"transform Wrong made NoneType of images"),
    ],
)
@pytest.mark.parametrize("group", [lambda each: each, Sometimes, lambda each: OneOf((ToGray(), each))])
def test_a_mistake_in_a_transform_of_ones_own_is_one_message_with_its_line(mistake, words, group):
    augment = compose([RandomCrop(padding=1), group(Wrong(mistake=mistake))])
    with pytest.raises(ConfigError, match=words) as caught:
        jax.eval_shape(augment, jax.random.key(0), jnp.zeros((4, 8, 8, 3)))
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Drawn(Brighten):
    """A transform that draws whatever it is told to."""

    shapes: tuple[tuple[int, ...], ...] = ()

    def draw(self, key, shape, info=None):
        return [jax.random.uniform(key, each) for each in self.shapes] or None

    def transform(self, images, draws):
        return 1 - images


GROUPS = [lambda each: each, Sometimes, lambda each: Sometimes(OneOf((ToGray(), each)))]


@pytest.mark.parametrize("shape", [(), (1,), (2, 4)])
@pytest.mark.parametrize("group", GROUPS)
def test_draws_that_are_not_one_for_each_image_are_refused(shape, group):
    augment = compose([group(Drawn(shapes=((4, 2), shape)))])
    words = rf"Drawn drew float32{re.escape(str([*shape]))} for 4 images: .* begin with the axis batch, \[4, \.\.\.\]"
    with pytest.raises(ConfigError, match=words):
        jax.eval_shape(augment, jax.random.key(0), jnp.zeros((4, 8, 8, 3)))


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_has_to_be_drawn(group):
    result = compose([group(Drawn())])(jax.random.key(0), jnp.zeros((4, 8, 8, 3)))
    assert set(np.unique(result)) <= {0, 1}


def test_moves_are_not_made_by_draws_for_other_images():
    @dataclass(frozen=True)
    class Shaken(Slide):
        def draw(self, key, shape, info=None):
            return super().draw(key, (2, *shape[1:]), info)

    with pytest.raises(ConfigError, match=r"transform Shaken drew float32\[2, 2\] for 4 images"):
        jax.eval_shape(compose([Shaken()]), jax.random.key(0), jnp.zeros((4, 8, 8, 3)))


def test_a_fault_in_a_transform_of_the_librarys_stays_a_traceback(monkeypatch):
    def broken(*_):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(ToGray, "transform", broken)
    monkeypatch.setattr("jax_cifar.augment.base.own_line", lambda error: None)
    with pytest.raises(ValueError, match="a fault of ours"):
        compose([ToGray()])(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
