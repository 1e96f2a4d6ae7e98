"""Configurations and data that nobody would write, to see what becomes of them.

print(fuzz(300, seed=1))

A case is a small sound experiment in which a few fields, of the configuration or of a transform, or the data are
changed to anything: what the annotation allows, its edges, and what it does not. What may become of it: it trains, or
a `UserError` says which of the changed things is at fault. Anything else is the case's `wrong`.
"""

import contextlib
import dataclasses
import io
import tempfile
import time
import typing
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from config_strategies import SECTIONS, TRANSFORMS, allowed
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jax_cifar.allocator import most_resident_memory
from jax_cifar.backend.stored import Stored
from jax_cifar.config import Config
from jax_cifar.config.checks import OnlyFor, annotations
from jax_cifar.data import Dataset, Splits, divide_training, load_data
from jax_cifar.errors import Diverged, UserError
from jax_cifar.optim.rules import Hyper
from jax_cifar.run.clock import Clock
from jax_cifar.training.loop import train
from jax_cifar.training.replicas import one_run
from jax_cifar.training.session import Session
from jax_cifar.training.state import initial_state
from jax_cifar.training.steps import DeviceData, make_train_steps, zero_sums

End = Literal["refused", "traced", "trained", "diverged"]
# What a changed field may be, whatever its type.
ODD: list[Any] = [None, True, -1, 0, 1, 2, 7, 10**6, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 0.0, 1.0, 1.5, 1e-300]
ODD += [1e-45, 1e6, 1e300, 1.7e308, float("nan"), float("inf"), -float("inf"), "", "x", "(", "None", "\0", "ä" * 300]
ODD += [(), (0,), (1, 2), (2, 1), (0.5, 0.5), (-1, 1), (1e308, 1e308), (float("nan"), 1.0), ((), ()), [], {}, b"x"]
ODD += [(10**6, 10**6), (1, 10**9), ((8, 1.0),), ((4, 0.5), (16, 0.5)), ((10**9, 1.0),), (("", 1e300),), (("(", 1.0),)]
ODD += [(1.0,), (1e308,), (0.001,), np.float32(0.5), np.int64(3), np.zeros(3), object(), len]
GIGABYTE = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """What was changed, by its name: `optim.lr`, `augment.Cutout.length`, `splits.shape`."""

    changes: dict[str, Any]
    end: End
    message: str = ""
    wrong: str = ""  # what must not be; "" where all is well
    seconds: float = 0.0  # of the processor


def fuzz(rounds: int, seed: int, *, train_every: int = 0) -> list[Case]:
    """Draw so many cases and see what becomes of each.

    Every `train_every`-th that is not refused is trained for a few steps, into a folder; the others are traced, which
    proves as much but what the numbers do. 0: none is trained.
    """
    cases: list[Case] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=rounds,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(changed_fields())
    def one(changes: dict[str, Any]) -> None:
        sound = sum(case.end != "refused" for case in cases)
        cases.append(judge(changes, bool(train_every) and sound % train_every == train_every - 1))

    one()
    return cases


def ends(cases: list[Case]) -> Counter[str]:
    """How many cases ended in which way."""
    return Counter((case.wrong and "wrong") or case.end for case in cases)


@st.composite
def changed_fields(draw: st.DrawFn) -> dict[str, Any]:
    """One to three fields with any value; a transform with one or two, now and then, and odd data."""
    changes: dict[str, Any] = {}
    for section in draw(st.lists(st.sampled_from(sorted(SECTIONS)), max_size=2)):
        field, expected = draw(st.sampled_from(list(annotations(SECTIONS[section]).items())))
        marks = [mark for mark in typing.get_args(expected) if isinstance(mark, OnlyFor)]
        if marks and draw(st.integers(0, 3)):  # mostly with a name that reads it
            changes[f"{section}.name"] = draw(st.sampled_from(marks[0].names))
        changes[f"{section}.{field}"] = draw(values(expected))
    if not changes or draw(st.booleans()):
        transform = draw(st.sampled_from(TRANSFORMS))
        kind = type(transform)
        for field in draw(st.lists(st.sampled_from(sorted(annotations(kind))), max_size=2)):
            changes[f"augment.{kind.__name__}.{field}"] = draw(values(annotations(kind)[field]))
        changes.setdefault("augment", transform)
    if draw(st.integers(0, 3)) == 0:
        sizes, sides = st.sampled_from([1, 2, 7, 40]), st.sampled_from([1, 2, 5, 8, 16, 33])
        shape = draw(sizes), draw(sizes), draw(sides), draw(st.just(0) | sides), draw(st.sampled_from([1, 2, 3, 4]))
        changes["splits"] = (*shape, draw(st.sampled_from([1, 2, 10])))
    return changes


def values(expected: Any) -> st.SearchStrategy[Any]:
    """Anything for a field: twice in three what its annotation allows, the likely and the far, else what is odd."""
    try:
        good = allowed(expected)
    except KeyError:  # not of a simple type
        return st.sampled_from(ODD)
    return st.one_of(good, st.sampled_from(ODD), good)


BASE: dict[str, dict[str, Any]] = {
    "data": {"name": "synthetic"},
    "model": {"name": "tiny_cnn", "width": 2},
    "optim": {"lr": 0.01},
    "train": {"steps": 2, "batch_size": 4, "compilation_cache": False},
    "log": {"tensorboard": False, "plots": False},
}


def make_config(changes: dict[str, Any]) -> Config:
    """The sound experiment with these changes; raises `ConfigError` where they are refused."""
    sections = {name: dict(BASE.get(name, {})) for name in SECTIONS}
    transform, fields = changes.get("augment"), {}
    for name, value in changes.items():
        first, *rest = name.split(".")
        if first in sections:
            sections[first][rest[0]] = value
        elif rest:
            fields[rest[1]] = value
    if "train.epochs" in changes:
        sections["train"].setdefault("steps", None)
        sections["train"]["steps"] = changes.get("train.steps")
    augment = () if transform is None else (dataclasses.replace(transform, **fields),)
    made = {name: SECTIONS[name](**values) for name, values in sections.items()}
    return Config(name="fuzzed", augment=augment, **made)


def make_splits(counts: tuple[int, ...] = (40, 20, 10, 0, 3, 4)) -> Splits:
    """Images and labels of so many for training and for testing, of height, width (0: the same), channels, classes."""
    train_count, test_count, height, width, channels, classes = counts
    random = np.random.default_rng(0)

    def part(count: int) -> Dataset:
        images = random.integers(0, 256, (count, height, width or height, channels), np.uint8)
        return Dataset(images, (np.arange(count) % classes).astype(np.int32))

    return Splits("fuzzed", part(train_count), part(test_count), None, tuple(map(str, range(classes))))


def judge(changes: dict[str, Any], whole: bool) -> Case:
    """What becomes of a case; trained as a whole, or traced."""
    begin, memory = time.process_time(), most_resident_memory()
    end, message, wrong = "traced", "", ""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        workdir = Path(folder) / "run"
        try:
            config = make_config(changes)
            splits = loaded(config, changes)
            trace(config, splits)
            if whole and Session(config, splits, one_run(config), Clock()).plan.total_steps <= 50:
                train(config, workdir, splits=splits)
                end = "trained"
        except Diverged as error:
            end, message = "diverged", str(error)
        except UserError as error:
            end, message = "refused", str(error)
            wrong = "" if is_named(changes, message) else "the message does not name what was changed"
            wrong = "it left a folder" if workdir.exists() else wrong
            wrong = "the message is too long" if len(message) > 1200 else wrong
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - begin
    grown = most_resident_memory() - memory
    wrong = wrong or (f"it took {grown / GIGABYTE:.1f} GB" if grown > GIGABYTE else "")
    wrong = wrong or (f"it took {seconds:.0f} s" if seconds > 120 else "")
    return Case(changes, end, message, wrong, seconds)


def loaded(config: Config, changes: dict[str, Any]) -> Splits:
    """The data: what `data` asks for where that was changed and needs no download, else a few images."""
    asked = "data.name" in changes and config.data.name not in ("cifar10", "cifar100")
    if asked or (config.data.dir is not None and config.data.name != "synthetic"):
        return load_data(config.data)
    return divide_training(make_splits(*[changes["splits"]] if "splits" in changes else []), config.data)


class Traced(Stored):
    """Programs that are traced as a part of their caller, neither compiled nor kept."""

    def call(self, name: str, function: Any, *arguments: Any) -> Any:
        """What the function returns, without its options for the compiler, which JAX takes for the outermost alone."""
        return jax.jit(function.__wrapped__)(*arguments)


def trace(config: Config, splits: Splits) -> None:
    """Everything up to compiling: a session, the initial state and a step at every side of the images, by shapes."""
    replicas = one_run(config)
    session = Session(config, splits, replicas, Clock())
    optimizers = []

    def begin() -> Any:
        state, optimizer = initial_state(config, session.network, splits.train.images[:1], stored=Traced())
        optimizers.append(optimizer)
        return state

    state = jax.eval_shape(begin)
    shape: Any = jax.ShapeDtypeStruct
    data = DeviceData(*(shape(array.shape, array.dtype) for array in (splits.train.images, splits.train.labels)))
    order = shape((session.plan.steps_per_epoch, config.train.batch_size), jnp.int32)
    tables = Hyper(*[shape((session.plan.total_steps,), jnp.float32)] * 3)
    for side in {side for side, _ in session.plan.phases} or {None}:
        steps = make_train_steps(session.network.at_side(side), optimizers[0], config, replicas.mesh)
        jax.eval_shape(partial(steps, count=1), state, zero_sums(config), data, order, tables, jax.random.key(0))


def is_named(changes: dict[str, Any], message: str) -> bool:
    """Whether a message names one of the changed fields; odd data it may call images, labels or classes."""
    names = [name.removeprefix("augment.") for name in changes if name not in ("augment", "splits")]
    data = ("image", "label", "class") if "splits" in changes else ()
    return any(name in message for name in (*names, *data))
