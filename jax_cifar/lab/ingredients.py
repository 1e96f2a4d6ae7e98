"""What a configuration is made of beyond network, rate, batch and length: each ingredient, and the same without it.

An ingredient is a field that differs from the value with which it does nothing: a transform, mixing, smoothing, decay,
momentum, a norm, dropout, a schedule, averaged weights. They are worked out from the configuration itself. What has no
neutral value is none: another update rule or width would need a rate of its own (scripts/sweep.py finds it).

What a plain configuration lacks can be added, with values as they are in common use: crops of 4 pixels of padding and
flips, BatchNorm, momentum 0.9, a cosine schedule, smoothing 0.1, dropout 0.25, decay 5e-4 (adamw: 0.01, PyTorch's).

All else stays as it is, the rate too: without momentum 0.9 the steps are about a tenth as long.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax_cifar.config import Config
from jax_cifar.config.checks import fault, is_idle
from jax_cifar.config.files import apply_overrides, field_types
from jax_cifar.errors import ConfigError, check
from jax_cifar.optim.rules import constant_momentum

# By the value of the first field with which the ingredient is not there; the others go with it, where they are read.
NEUTRAL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("MixUp", {"mix.mixup_alpha": 0.0}),
    ("CutMix", {"mix.cutmix_alpha": 0.0}),
    ("label smoothing", {"train.label_smoothing": 0.0}),
    ("norm", {"model.norm": "none", "model.zero_init_residual": False}),
    ("residual branches that start at zero", {"model.zero_init_residual": False}),
    ("dropout", {"model.dropout": 0.0}),
    ("whitening bias", {"model.whiten_bias": False}),
    (
        "momentum",
        {
            "optim.momentum": 0.0,
            "optim.nesterov": False,
            "optim.aux_momentum": 0.0,
            "schedule.cycle_momentum": False,
        },
    ),
    ("momentum", {"optim.b1": 0.0, "schedule.cycle_momentum": False}),
    ("Nesterov's momentum", {"optim.nesterov": False}),
    ("cycled momentum", {"schedule.cycle_momentum": False}),
    ("weight decay", {"optim.weight_decay": 0.0}),
    ("decay by parameter", {"optim.decay_multipliers": ()}),
    ("rates by parameter", {"optim.lr_multipliers": ()}),
    ("gradient clipping", {"optim.clip_norm": None}),
    ("gradient accumulation", {"optim.accumulate": 1}),
    ("averaged weights", {"optim.ema_decay": 0.0}),
    ("lookahead", {"optim.lookahead_every": 0}),
    ("warm-up", {"schedule.warmup": 0.0}),
    ("schedule", {"schedule.name": "constant"}),
    ("smaller images", {"train.resolutions": ()}),
)
# What is there but does nothing.
IDLE: dict[str, Callable[[Config], bool]] = {
    "decay by parameter": lambda config: config.optim.weight_decay == 0,
    "cycled momentum": lambda config: constant_momentum(config.optim) == 0,
}
# What most recipes have: field, value of one that lacks it, and the usual one.
STANDARD: tuple[tuple[str, str, Any, Any], ...] = (
    ("BatchNorm", "model.norm", "none", "batch"),
    ("momentum", "optim.momentum", 0.0, 0.9),
    ("cosine schedule", "schedule.name", "constant", "cosine"),
    ("label smoothing", "train.label_smoothing", 0.0, 0.1),
    ("dropout", "model.dropout", 0.0, 0.25),
    ("whitening bias", "model.whiten_bias", False, True),
)
# By update rule; there is no usual one for Muon, which gives its kernels their norm anew in every step.
DECAY: dict[object, float] = {"sgd": 5e-4, "adam": 5e-4, "adagrad": 5e-4, "adamw": 0.01}


@dataclass(frozen=True)
class Ingredient:
    """Something that an experiment has or lacks, and the experiment with just that changed."""

    name: str
    way: Literal["without", "with", "instead"]  # what the change does with it; instead: it is another experiment
    change: str  # as options on the command line, with what has to go with it
    config: Config  # the changed experiment
    figure: str | None = None  # of the results, what it is judged by, where that is not what all are judged by


def removable(config: Config) -> list[Ingredient]:
    """Every ingredient that the configuration has, each with the configuration without it."""
    return [*_transforms(config), *_loss(config), *_fields(config), *_views(config)]


def addable(config: Config) -> list[Ingredient]:
    """Every ingredient of the standard list that the configuration lacks and can have, each with the changed one."""
    found = []
    if not config.augment:
        from jax_cifar.augment import HorizontalFlip, RandomCrop

        augment = (RandomCrop(padding=4), HorizontalFlip())
        changed = dataclasses.replace(config, augment=augment)
        found.append(Ingredient("crops and flips", "with", "augment", changed))
    usual_decay = [("weight decay", "optim.weight_decay", 0.0, DECAY.get(config.optim.name))]
    for name, field, lacking, usual in (*STANDARD, *usual_decay):
        lacks = _takes(config, field, usual) and _current(config, field) == lacking
        if lacks and not (field == "train.label_smoothing" and config.train.loss is not None):
            with contextlib.suppress(ConfigError):  # what the rest of the configuration forbids
                found.append(_changed(config, name, "with", {field: usual}))
    return found


def choose(ingredients: Sequence[Ingredient], names: Sequence[str]) -> list[Ingredient]:
    """Those of these names; capitals do not count, and `weight-decay` is `weight decay`.

    Raises:
        ConfigError: none is called so.
    """

    def plain(name: str) -> str:
        return name.casefold().replace("-", " ").replace("_", " ")

    known = {plain(one.name): one for one in ingredients}
    for name in names:
        check(plain(name) in known, "--only", name, f"choose from {', '.join(one.name for one in ingredients)}")
    wanted = set(map(plain, names))
    return [one for name, one in known.items() if name in wanted]


def _transforms(config: Config) -> Iterator[Ingredient]:
    titles = list(map(_title, config.augment))
    for i, title in enumerate(titles):
        left = config.augment[:i] + config.augment[i + 1 :]
        name = f"{title} ({titles[:i].count(title) + 1})" if titles.count(title) > 1 else title
        yield Ingredient(name, "without", "augment", dataclasses.replace(config, augment=left))


def _title(transform: Any) -> str:
    """A transform's class, and of a group what is in it."""
    kind = type(transform).__name__
    inner = getattr(transform, "transforms", None) or [getattr(transform, "inner", None)]
    names = [_title(one) for one in inner if one is not None]
    return f"{kind}({', '.join(names)})" if names else kind


def _loss(config: Config) -> Iterator[Ingredient]:
    if (loss := config.train.loss) is not None:
        usual = dataclasses.replace(config, train=dataclasses.replace(config.train, loss=None))
        yield Ingredient(f"loss {getattr(loss, '__name__', 'of its own')}", "without", "train.loss", usual)


def _fields(config: Config) -> Iterator[Ingredient]:
    for name, values in NEUTRAL:
        field, value = next(iter(values.items()))
        if _has(config, field, value) and not (name in IDLE and IDLE[name](config)):
            there = {other: at for other, at in values.items() if _has(config, other, at)}
            yield _changed(config, _call(config, name), "without", there)


def _views(config: Config) -> Iterator[Ingredient]:
    """Test-time augmentation needs no training of its own: every run is judged with and without it."""
    if config.eval.tta != "none" and config.data.val_fraction == 0:
        yield Ingredient("test-time augmentation", "without", "--eval.tta none", config, "test_accuracy")


def _call(config: Config, name: str) -> str:
    """The name that a person would use for it."""
    if name == "norm":
        return f"{config.model.norm.capitalize()}Norm"
    schedule = config.schedule.name
    shown = schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "own")
    return f"{shown.replace('_', ' ')} schedule" if name == "schedule" else name


def _has(config: Config, field: str, value: Any) -> bool:
    return _takes(config, field, value) and _current(config, field) != value


def _takes(config: Config, field: str, value: Any) -> bool:
    """Whether there is such a field, it does something here, and it could hold this value."""
    kind = field_types(config).get(field)
    section, _, last = field.partition(".")
    part = getattr(config, section)
    idle = type(part).__module__ == Config.__module__ and is_idle(type(part), last, getattr(part, "name", None))
    return kind is not None and not idle and fault(value, kind) is None


def _current(config: Config, field: str) -> Any:
    """What a field holds, or what its default stands for."""
    section, _, last = field.partition(".")
    value = getattr(getattr(config, section), last)
    if field == "model.dropout" and value is None:
        from jax_cifar.models import create_model

        return getattr(create_model(config.model, num_classes=10), last)
    return value


def _changed(config: Config, name: str, way: Literal["without", "with"], values: Mapping[str, Any]) -> Ingredient:
    options = [word for field, value in values.items() for word in (f"--{field}", str(value)) if word != "()"]
    return Ingredient(name, way, " ".join(options), apply_overrides(config, options))
