"""Any value in any field of a configuration, of every transform, and odd data: it trains, or a message names it."""

from typing import Any

import numpy as np
import pytest
from fuzzing import BASE, fuzz, judge, make_config

from jax_cifar.augment import CLAHE, CoarseDropout, Cutout, ElasticTransform, GridDistortion, RandomCrop
from jax_cifar.augment import TrivialAugmentWide as Trivial
from jax_cifar.errors import ConfigError

NAN, INF = float("nan"), float("inf")


def test_whatever_a_few_fields_are_it_can_be_trained_or_a_message_names_one_of_them():
    cases = fuzz(12, 1)
    assert [case for case in cases if case.wrong] == []
    assert {case.end for case in cases} == {"refused", "traced"}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_three_hundred_cases_are_trained_or_refused(number):
    cases = fuzz(100, 100 + number, train_every=10)
    assert [case for case in cases if case.wrong] == []
    assert {case.end for case in cases} > {"refused", "trained"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optim.lr", NAN),
        ("optim.lr", INF),
        ("optim.lr", 1e39),
        ("optim.lr", 1e-300),
        ("optim.lr", 10**12),
        ("optim.lr", np.zeros(3)),
        ("optim.lookahead_every", 2**31),
        ("schedule.unit", np.zeros(3)),
        ("train.skip_nonfinite", 2**31),
        ("train.epochs", 1e9),
        ("train.steps", 10**30),
        ("train.batch_size", 41),
        ("train.resolutions", ((2, 1.0),)),
        ("train.resolutions", ((64, 1.0),)),
        ("model.width", 2**16),
        ("model.width", 2**31),
        ("augment.Cutout.length", 10**30),
        ("augment.CLAHE.clip_limit", 2**31),
        ("augment.CLAHE.tile_grid_size", (10**6, 10**6)),
        ("augment.CoarseDropout.num_holes_range", (1, 10**9)),
        ("augment.ElasticTransform.sigma", 1e9),
        ("augment.GridDistortion.num_steps", 10**9),
        ("augment.RandomCrop.padding", 11),
        ("augment.RandomCrop.padding", 10**9),
        ("augment.TrivialAugmentWide.num_magnitude_bins", 10**9),
    ],
)
def test_what_would_end_in_a_traceback_or_in_gigabytes_is_refused_by_its_field(field, value):
    kinds = {kind.__name__: kind for kind in (CLAHE, CoarseDropout, Cutout, ElasticTransform, GridDistortion)}
    kinds |= {"RandomCrop": RandomCrop, "TrivialAugmentWide": Trivial}
    transform = {"augment": kinds[field.split(".")[1]]()} if field.startswith("augment") else {}
    others = {"model.name": "speedrun_net"} if field == "train.resolutions" else {}
    case = judge({**transform, **others, field: value}, whole=False)
    assert (case.end, case.wrong) == ("refused", "")
    assert field.removeprefix("augment.") in case.message and case.seconds < 10


@pytest.mark.parametrize(
    "splits",
    [(1, 1, 10, 0, 3, 1), (40, 7, 10, 16, 2, 1)]
    + [pytest.param(each, marks=pytest.mark.slow) for each in ((2, 1, 10, 0, 1, 2), (1, 40, 33, 0, 4, 10))]
    + [pytest.param((7, 2, 12, 0, 3, 10), marks=pytest.mark.slow)],
)
def test_odd_data_are_trained_on(splits):
    batch = min(4, splits[0])
    case = judge({"splits": splits, "train.batch_size": batch, "eval.batch_size": 3}, whole=False)
    assert (case.end, case.wrong) == ("traced", "")


@pytest.mark.slow
@pytest.mark.parametrize("splits", [(1, 1, 10, 0, 3, 1), (3, 2, 10, 12, 1, 2)])
def test_a_batch_of_one_image_is_trained_with_batch_norm(splits):
    case = judge({"splits": splits, "train.batch_size": 1, "eval.batch_size": 1}, whole=True)
    assert (case.end, case.wrong) == ("trained", "")


def test_the_sound_experiment_is_changed_where_it_is_asked_to_be():
    changes: dict[str, Any] = {"optim.lr": 0.5, "augment": Cutout(), "augment.Cutout.length": 3, "train.epochs": 2.0}
    config = make_config(changes)
    assert (config.optim.lr, config.augment, config.train.epochs, config.train.steps) == (0.5, (Cutout(3),), 2.0, None)
    assert make_config({}).model.width == BASE["model"]["width"]
    with pytest.raises(ConfigError):
        make_config({"optim.lr": -1})
