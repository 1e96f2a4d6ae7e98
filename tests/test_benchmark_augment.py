"""benchmarks/augment.py: its references do the work of the transforms, and its table says what was measured."""

import argparse
import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from one_by_one import one_by_one
from pages import ROOT

import jax_cifar.augment as library
from benchmarks import augment
from benchmarks.augment import TRANSFORMS
from benchmarks.networks import network_config
from benchmarks.per_image import chain, mix_reference, reference
from benchmarks.timing import Case, Timing
from benchmarks.torchvision_peer import load_torchvision, torchvision_transform
from jax_cifar.augment import (
    CLAHE,
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
    Sometimes,
    ToGray,
    Transform,
)
from jax_cifar.config import DataConfig, MixConfig
from jax_cifar.data import Dataset, load_data
from jax_cifar.errors import ConfigError
from jax_cifar.lab.pictures import describe
from jax_cifar.training.steps import DeviceData


def photographs(count: int) -> np.ndarray:
    """Smooth coloured shades with some noise, as uint8 [count, 32, 32, 3]."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32][..., None]
    waves, phases = rng.uniform(0.05, 0.4, (2, count, 1, 1, 3)), rng.uniform(0, 6, (2, count, 1, 1, 3))
    shades = np.sin(waves[0] * rows + phases[0]) * np.cos(waves[1] * columns + phases[1])
    return (128 + 90 * shades + rng.normal(0, 4, shades.shape)).clip(0, 255).astype(np.uint8)


IMAGES = photographs(64)
OTHERS = (
    RandomCrop(padding=4, padding_mode="reflect"),
    HorizontalFlip(mode="alternate"),
    ColorJitter(hue=0.5),
    RandomErasing(p=1.0, value="random"),
    CoarseDropout(p=1.0, fill=(0.2, 0.4, 0.6)),
    ElasticTransform(alpha=20.0, sigma=4.0, p=1.0, padding_mode="reflect"),
)
NEUTRAL = (
    RandomCrop(padding=0),
    HorizontalFlip(p=0.0),
    RandomResizedCrop((1.0, 1.0), (1.0, 1.0)),
    RandomAffine(0.0),
    RandomRotation(0.0),
    ElasticTransform(p=0.0),
    ElasticTransform(alpha=0.0, p=1.0),
    GridDistortion(p=0.0),
    GridDistortion(distort_limit=0.0, p=1.0),
    ColorJitter(),
    ToGray(p=0.0),
    CLAHE(p=0.0),
    RandomErasing(p=0.0),
    CoarseDropout(p=0.0),
    OneOf((ToGray(p=1.0), Cutout()), p=0.0),
    Sometimes(ToGray(p=1.0), p=0.0),
)


def drawn_here(transform: Transform, images: np.ndarray = IMAGES, seed: int = 0) -> np.ndarray:
    """What the reference makes of every image with its own draws."""
    (draw, apply), rng = reference(transform), np.random.default_rng(seed)
    return np.stack([apply(image, draw(rng, image.shape)) for image in images])


def test_every_transform_of_the_library_is_measured():
    exported = [getattr(library, name) for name in library.__all__]
    kinds = {k for k in exported if inspect.isclass(k) and issubclass(k, Transform) and not inspect.isabstract(k)}
    assert {type(transform) for transform in TRANSFORMS} == kinds
    assert {type(mix) for mix in augment.MIXES} == {MixUp, CutMix}
    assert len({augment.describe(transform) for transform in TRANSFORMS}) == len(TRANSFORMS)


@pytest.mark.parametrize("transform", [*TRANSFORMS, *OTHERS], ids=repr)
def test_references_draw_as_the_transforms_do(transform):
    """The parity tests judge what references make of draws; here it is the draws."""
    info = library.SampleInfo(jnp.arange(64), jnp.asarray(0))
    before = IMAGES.copy()
    draws = jax.jit(lambda key: transform.draw(key, IMAGES.shape, info))(jax.random.key(0))
    ours = one_by_one(transform, IMAGES, draws)
    theirs = drawn_here(transform)
    np.testing.assert_array_equal(IMAGES, before)
    assert (theirs.shape, theirs.dtype) == (IMAGES.shape, np.uint8)
    ours, changed = (np.abs(images.astype(np.float64) - IMAGES).mean() for images in (ours, theirs))
    assert 0.5 < changed / ours < 2
    if not isinstance(transform, HorizontalFlip | ToGray | CLAHE):
        assert not np.array_equal(theirs, drawn_here(transform, seed=1))


@pytest.mark.parametrize("transform", NEUTRAL, ids=repr)
def test_references_leave_images_alone_where_nothing_is_to_be_done(transform):
    np.testing.assert_array_equal(drawn_here(transform), IMAGES)


def test_groups_choose_with_their_probabilities():
    dark = np.full((2000, 8, 8, 3), 200, np.uint8)
    holes = [CoarseDropout((1, 1), (8, 8), (8, 8), fill=level / 255, p=1.0) for level in (10, 20, 30)]
    group = OneOf((holes[0], Sometimes(holes[1], 0.5), holes[2]), (1.0, 2.0, 0.0), 0.9)
    levels = drawn_here(group, dark)[:, 0, 0, 0]
    shares = [np.mean(levels == level) for level in (10, 20, 30, 200)]
    np.testing.assert_allclose(shares, [0.3, 0.3, 0.0, 0.4], atol=0.04)
    both = chain((holes[0], holes[1]))(np.random.default_rng(0), dark[0])
    assert (both == 20).all()


@pytest.mark.parametrize("mix", [MixUp(0.7), CutMix(0.7)], ids=repr)
def test_mixing_keeps_images_of_8_bits(mix):
    targets, (draw, apply) = np.eye(10, dtype=np.float32)[np.arange(64) % 10], mix_reference(mix)
    images, soft = apply(IMAGES, targets, draw(np.random.default_rng(0), IMAGES.shape))
    assert (images.dtype, soft.dtype) == (np.uint8, np.float32)
    kept = soft[0, 0] * IMAGES + (1 - soft[0, 0]) * np.roll(IMAGES, 1, 0)
    assert abs(images.mean() - kept.mean()) < 2
    assert 0 < soft[0, 0] < 1


def test_a_transform_without_a_reference_is_named():
    with pytest.raises(ConfigError, match=r"MixUp has no reference in benchmarks/per_image"):
        reference(MixUp())


def options_for(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    augment.add_options(parser)
    parser.set_defaults(rounds=1)
    return parser.parse_args([*arguments, "--data", "synthetic"])


@pytest.fixture
def without_torchvision(monkeypatch):
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def untimed(monkeypatch):
    """Every way does its work twice and takes a second."""

    def interleave(ways: dict[str, Any], rounds: int) -> dict[str, Timing]:
        for work in ways.values():
            work(2)
        return {name: Timing((1.0,) * rounds) for name in ways}

    monkeypatch.setattr(augment, "interleave", interleave)


def test_without_torchvision_its_column_stays_empty(without_torchvision, capsys):
    assert load_torchvision() is None
    assert "torchvision is left out" in capsys.readouterr().err
    ways = augment.image_ways((ToGray(),), Dataset(IMAGES[:2], np.zeros(2, np.int32)), None)
    assert list(ways) == ["jax", "per image"]


def test_the_suite_measures_transforms_mixing_and_pipelines(quick_compile, without_torchvision, untimed, monkeypatch):
    monkeypatch.setattr(augment, "TRANSFORMS", (HorizontalFlip(), ToGray(p=1.0)))
    cases = list(augment.measure(options_for("--batch", "4", "--what", "transforms", "mixing")))
    ways = {case.name: list(case.timings) for case in cases}
    assert ways["HorizontalFlip"] == ways["MixUp"] == ways["CutMix"] == ["jax", "per image", "torch_ref"]
    assert ways["ToGray"] == ["jax", "per image"]
    assert {case.images for case in cases} == {4}
    config = f"{augment.CONFIGS / 'cifar10_simple_cnn.py'}:augmented"
    (case,) = augment.measure(options_for("--batch", "4", "--what", "pipelines", "--config", config))
    assert case.name == "cifar10_simple_cnn_augmented"


@pytest.mark.slow
def test_the_suite_measures_train_steps(quick_compile, without_torchvision, untimed, monkeypatch):
    seen, step_way = [], augment.step_way
    monkeypatch.setattr(augment, "step_way", lambda config, *rest: seen.append(config) or step_way(config, *rest))
    config = f"{augment.CONFIGS / 'cifar100_resnet34.py'}:plain"
    options = options_for("--batch", "4", "--what", "steps", "--models", "simple_cnn", "--config", config)
    step, share = augment.measure(options)
    assert step.name == "simple_cnn, train step"
    assert list(step.timings) == ["step with cifar100_resnet34_plain", "step without"]
    assert list(share.timings) == ["augmentation alone", "step without"]
    assert step.best_other == share.best_other == "step without"
    with_it, without = seen
    assert (with_it.augment, with_it.mix) == (augment.load_config(config).augment, augment.load_config(config).mix)
    assert (without.augment, without.mix) == ((), MixConfig())
    assert with_it.model == without.model


def test_the_train_step_is_compiled_as_the_products_is(monkeypatch):
    shared, config = [], network_config("simple_cnn", 4)
    splits = load_data(DataConfig(name="synthetic"))
    data = DeviceData(jnp.asarray(splits.train.images), jnp.asarray(splits.train.labels))
    monkeypatch.setattr(augment, "initial_state", lambda *_: (jnp.zeros(()), None))
    monkeypatch.setattr(augment, "make_train_steps", lambda *_: lambda state, sums, *_, count: (state, sums))
    monkeypatch.setattr(augment, "by_shares", lambda function, mesh: shared.append(function) or function)
    monkeypatch.setattr(augment, "compiler_options", lambda *_: {"no_such_option": True})
    for way in (augment.step_way, augment.prepare_way):
        with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'no_such_option'"):
            way(config, splits, data)(1)
    assert len(shared) == 2


def test_the_usual_pipelines_have_references():
    for path in augment.PIPELINES:
        change = chain(augment.load_config(path).augment)
        assert change(np.random.default_rng(0), IMAGES[0]).shape == IMAGES[0].shape


def test_the_table_has_images_per_second_and_how_many_times_the_references():
    rates = Case("RandomCrop", {"jax": Timing((0.01, 0.02)), "per image": Timing((0.1, 0.1))}, 150)
    other = Case("CLAHE", {"jax": Timing((0.1,)), "per image": Timing((0.1,)), "torchvision": Timing((0.2,))}, 150)
    step = Case("cifar_cnn, train step", {"step with strong": Timing((1.1,)), "step without": Timing((1.0,))}, 150)
    lines = augment.table([rates, other, step]).splitlines()
    assert lines[0] == "| images/s | jax | per image | torchvision | times per image | times torchvision |"
    assert lines[2] == "| RandomCrop | 10,000 | 1,500 |  | **7.5** (5-10) |  |"
    assert lines[3] == "| CLAHE | 1,500 | 1,500 | 750 | **1** (1-1) | **2** (2-2) |"
    assert lines[4] == ""
    assert lines[7].startswith("| cifar_cnn, train step | 1.1 s") and "**1.10**" in lines[7]
    assert augment.table([step]) == "\n".join(lines[5:])


def test_results_have_the_rows_that_the_suite_prints():
    _, _, table = (ROOT / "RESULTS.md").read_text().partition("| images/s | jax |")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.partition("\n\n")[0].splitlines()[2:]]
    names = [*map(describe, TRANSFORMS), *(type(mix).__name__ for mix in augment.MIXES)]
    assert rows == [*names, *(augment.load_config(path).name for path in augment.PIPELINES)]


@pytest.mark.parametrize("batch", ["1", "100000"])
def test_a_batch_that_cannot_be_is_refused(batch, without_torchvision):
    with pytest.raises(ConfigError, match=rf"--batch = {batch} is not allowed"):
        next(augment.measure(options_for("--batch", batch)))


def test_torchvision_changes_images_as_much():
    v2 = load_torchvision()
    if v2 is None:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    images = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    found = {transform: torchvision_transform(transform, v2) for transform in (*TRANSFORMS, *OTHERS)}
    found = {transform: theirs for transform, theirs in found.items() if theirs is not None}
    assert len(found) == 15
    for transform, theirs in found.items():
        result = torch.stack([theirs(image) for image in images])
        assert result.dtype == torch.uint8
        change = (result.float() - images).abs().mean().item()
        ours = np.abs(drawn_here(transform).astype(np.float64) - IMAGES).mean()
        assert 0.5 < change / ours < 2, transform
