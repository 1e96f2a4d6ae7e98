"""What each shipped experiment is made of, and that it can be trained without any one of it."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import optax
import pytest
from small_runs import Perceptron, small_config

from jax_cifar.augment import HorizontalFlip, RandomCrop, Sometimes
from jax_cifar.config import Config, ModelConfig
from jax_cifar.config.files import flat, load_config, to_dict, variants_of
from jax_cifar.errors import ConfigError
from jax_cifar.lab.ingredients import Ingredient, addable, choose, removable
from jax_cifar.training.plan import make_plan
from jax_cifar.training.session import plan_schedule

CONFIGS = Path(__file__).parents[1] / "configs"
FLIPS = "RandomCrop, HorizontalFlip"
SPEEDRUN = "BatchNorm, momentum, rates by parameter, triangular schedule"
SGD = "BatchNorm, momentum, Nesterov's momentum, weight decay"
# Of every experiment what it has, and what of the usual it lacks.
SHIPPED = {
    "cifar100_ablation.py:adam": (
        "BatchNorm, momentum",
        "crops and flips, cosine schedule, label smoothing, dropout, weight decay",
    ),
    "cifar100_ablation.py:adamw": (
        "BatchNorm, momentum, weight decay",
        "crops and flips, cosine schedule, label smoothing, dropout",
    ),
    "cifar100_cnn.py": (
        f"{FLIPS}, label smoothing, BatchNorm, dropout, momentum, cycled momentum, weight decay, gradient clipping,"
        " onecycle schedule",
        "",
    ),
    "cifar100_resnet34.py:strong": (
        f"{FLIPS}, OneOf(ColorJitter, ToGray, CLAHE), OneOf(CoarseDropout, GridDistortion, ElasticTransform), MixUp,"
        " CutMix, label smoothing, BatchNorm, momentum, weight decay, warm restarts schedule",
        "dropout",
    ),
    "cifar100_resnet34_200.py:mixed": (f"{FLIPS}, MixUp, CutMix, {SGD}, cosine schedule", "label smoothing, dropout"),
    "cifar100_resnet_modern.py:resnet18": (
        f"{FLIPS}, TrivialAugmentWide, RandomErasing, MixUp, CutMix, label smoothing, BatchNorm, residual branches that"
        " start at zero, momentum, Nesterov's momentum, weight decay, decay by parameter, averaged weights, warm-up,"
        " cosine schedule, test-time augmentation",
        "dropout",
    ),
    "cifar10_simple_cnn.py:plain": (
        "momentum",
        "crops and flips, BatchNorm, cosine schedule, label smoothing, dropout, weight decay",
    ),
    "cifar10_simple_cnn.py:augmented": (
        f"{FLIPS}, momentum, warm-up, cosine schedule",
        "BatchNorm, label smoothing, dropout, weight decay",
    ),
    "cifar10_speedrun.py:72": (f"label smoothing, {SPEEDRUN}, smaller images", "crops and flips"),
    "cifar10_speedrun.py:88": (
        f"HorizontalFlip, RandomCrop, label smoothing, {SPEEDRUN}, smaller images",
        "whitening bias",
    ),
    "cifar10_speedrun.py:96": (
        "HorizontalFlip, RandomCrop, Cutout, label smoothing, BatchNorm, whitening bias, momentum, rates by parameter,"
        " triangular schedule, smaller images, test-time augmentation",
        "",
    ),
    "cifar10_tiny_cnn.py": (
        f"{FLIPS}, AutoAugment, ColorJitter, RandomErasing, label smoothing, BatchNorm, dropout, momentum, Nesterov's"
        " momentum, weight decay, warm-up, cosine schedule",
        "",
    ),
    "overfit_tiny.py": (
        "momentum, cosine schedule",
        "crops and flips, BatchNorm, label smoothing, dropout, weight decay",
    ),
    "quickstart.py": (f"RandomCrop, {SGD}, warm-up, cosine schedule", "label smoothing, dropout"),
}


def names(ingredients: list[Ingredient]) -> str:
    return ", ".join(one.name for one in ingredients)


@pytest.mark.parametrize("name", SHIPPED)
def test_ingredients_of_what_ships_are_what_a_person_would_name(name):
    config = load_config(CONFIGS / name)
    assert (names(removable(config)), names(addable(config))) == SHIPPED[name]


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.py")))
def test_every_ingredient_of_what_ships_can_be_changed_alone(file):
    for variant in variants_of(CONFIGS / file) or [None]:
        config = load_config(CONFIGS / (file if variant is None else f"{file}:{variant}"))
        for one in [*removable(config), *addable(config)]:
            check_change(config, one)


def check_change(config: Config, one: Ingredient) -> None:
    """It differs in the fields that it says it does, and in those that mean nothing without them; it can be planned."""
    before, after = flat(to_dict(config)), flat(to_dict(one.config))
    differing = {field for field in before.keys() | after.keys() if before.get(field) != after.get(field)}
    told = {word.removeprefix("--") for word in one.change.split() if "." in word or word == "augment"}
    told = {field for field in told if field in before}
    assert told - {"eval.tta"} <= differing, one.name
    idle = {field for field in differing - told if field.startswith("schedule.") and "schedule.name" in told}
    assert differing == told - {"eval.tta"} | idle, one.name
    plan_schedule(one.config, make_plan(one.config, 2000, "cpu"))


@pytest.mark.parametrize(
    ("sections", "name", "change"),
    [
        ({}, "momentum", "--optim.momentum 0.0 --optim.nesterov False"),
        (
            {"schedule": {"name": "onecycle", "warmup": 0.0}, "optim": {"nesterov": False}},
            "momentum",
            "--optim.momentum 0.0 --schedule.cycle_momentum False",
        ),
        ({"optim": {"name": "adam", "momentum": 0.9, "nesterov": False}}, "momentum", "--optim.b1 0.0"),
        (
            {"model": ModelConfig(name="resnet18", zero_init_residual=True)},
            "BatchNorm",
            "--model.norm none --model.zero_init_residual False",
        ),
        ({"model": {"norm": "group"}}, "GroupNorm", "--model.norm none"),
        ({"optim": {"accumulate": 4}}, "gradient accumulation", "--optim.accumulate 1"),
        ({"optim": {"lookahead_every": 5}}, "lookahead", "--optim.lookahead_every 0"),
        ({"model": Perceptron(dropout=0.2)}, "dropout", "--model.dropout 0.0"),
    ],
)
def test_what_depends_on_an_ingredient_goes_with_it(sections, name, change):
    (found,) = choose(removable(small_config(**sections)), [name])
    assert found.change == change


def test_what_is_there_but_does_nothing_is_no_ingredient():
    config = small_config(optim={"decay_multipliers": (("bias$", 0.0),)}, model=Perceptron(dropout=0.0))
    assert names(removable(config)) == "momentum, Nesterov's momentum, warm-up, cosine schedule"


def test_transforms_of_one_kind_are_told_apart():
    augment = (RandomCrop(), Sometimes(HorizontalFlip()), RandomCrop(2))
    first, group, second, *_ = removable(small_config(augment=augment))
    assert [first.name, group.name, second.name] == ["RandomCrop (1)", "Sometimes(HorizontalFlip)", "RandomCrop (2)"]
    assert [first.config.augment, second.config.augment] == [augment[1:], augment[:2]]


class Plain(nn.Module):
    """A network without anything that could be taken out."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(10)(images.reshape(len(images), -1))


def halved(step: int, total: int) -> float:
    return 0.5


def test_parts_of_ones_own_are_ingredients_where_they_have_a_neutral_value():
    config = small_config(model=Plain(), optim={"name": optax.lion, "nesterov": False})
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, name=halved, warmup=0.0))
    assert names(removable(config)) == "halved schedule"
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, loss=optax.softmax_cross_entropy))
    first, *_ = removable(config)
    assert first.name == "loss softmax_cross_entropy" and first.config.train.loss is None
    assert names(addable(config)) == "crops and flips"  # such a loss does its own smoothing


def test_ingredients_are_chosen_by_their_names_however_they_are_spelled():
    found = removable(small_config(optim={"weight_decay": 0.1}))
    assert names(choose(found, ["Weight-decay", "batchnorm"])) == "BatchNorm, weight decay"
    with pytest.raises(ConfigError, match=r"--only = 'decay' is not allowed: choose from BatchNorm, dropout, momentum"):
        choose(found, ["decay"])


def test_a_step_schedule_without_its_milestones_is_constant():
    config = small_config(schedule={"name": "step", "milestones": (1.0,)})
    (found,) = choose(removable(config), ["step schedule"])
    assert (found.config.schedule.name, found.config.schedule.milestones) == ("constant", ())
    assert found.config.schedule.warmup == config.schedule.warmup
