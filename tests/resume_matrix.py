"""Every schedule with every update rule, stopped at every kind of moment: is the resumed run the same bit for bit?

Each pair of a schedule and a rule has one of the things that a resume could forget switched on (averaged weights, mixed
images, accumulation, growing images), in turn, so that each of those meets every schedule and every rule.
"""

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from small_runs import loop, same_bits, small_config

from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.reading import Which

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"warmup": 0.5},
    "cosine": {"warmup": 0.5},
    "onecycle": {"warmup": 0.0},
    "warm_restarts": {"warmup": 0.0, "t_0": 0.5, "t_mult": 2},
    "step": {"warmup": 0.5, "milestones": (1.0,)},
    "triangular": {"warmup": 0.0},
}
PLAIN = {"momentum": 0.9, "nesterov": False}
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "nesterov": True, "weight_decay": 1e-3},
    "adamw": {"name": "adamw", "lr": 1e-2, "weight_decay": 1e-2, **PLAIN},
    "muon": {"name": "muon", "lr": 0.1, **PLAIN},
    "optax.lion": {"name": optax.lion, "lr": 1e-3, **PLAIN},
}
EXTRAS: dict[str, dict[str, dict[str, Any]]] = {
    "ema": {"optim": {"ema_decay": 0.9}},
    "mix": {"mix": {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}},
    "accumulate": {"optim": {"accumulate": 2}},
    "growing": {
        "train": {"resolutions": ((16, 0.4), (32, 0.6))},
        # A network that takes any side.
        "model": {"name": "speedrun_net", "width": 4, "convs_per_group": 1},
    },
}
# Updates done when the run stops: none, within an epoch of 6, at its end, all.
MOMENTS = {"step 0": 0, "mid-epoch": 4, "end of epoch": 6, "last step": 12}

# Parts of a state that a faulty resume would start anew; of the step, one update is left out.
FORGETTABLE = ("opt_state", "batch_stats", "ema", "step")


class Case(NamedTuple):
    """One configuration."""

    schedule: str
    rule: str
    extra: str


class Result(NamedTuple):
    """What became of the rounds."""

    rounds: int
    survived: int
    lost: list[str]


CASES = [
    Case(schedule, rule, list(EXTRAS)[(i + j) % len(EXTRAS)])
    for (i, schedule), (j, rule) in itertools.product(enumerate(SCHEDULES), enumerate(RULES))
]


def config_of(case: Case) -> Any:
    """Digits and a tiny network with batch statistics and dropout; saved after every second of 12 updates."""
    extra = EXTRAS[case.extra]
    config = small_config(
        data={"name": "digits"},
        model=extra.get("model", {"width": 2}),
        schedule={"name": case.schedule, **SCHEDULES[case.schedule]},
        optim={**RULES[case.rule], **extra.get("optim", {})},
        mix=extra.get("mix", {}),
        train=extra.get("train", {}),
        checkpoint={"every": 1 / 3, "keep": 6},
        log={"every": 6},
        eval={"every": 0},
    )
    return dataclasses.replace(config, augment=(RandomCrop(padding=2), HorizontalFlip()))


def stop_at(whole: Path, step: int, folder: Path) -> Path:
    """The folder as it was when a run had been stopped after so many updates."""
    shutil.copytree(whole, folder)
    for name in ("summary.json", "report.json", *(() if step else ("metrics.jsonl",))):
        (folder / name).unlink()
    for path in (folder / "checkpoints").iterdir():
        if path.name != str(step):
            shutil.rmtree(path)
    if not step:
        (folder / "checkpoints").rmdir()
    return folder


def run_matrix(cases: Iterable[Case] = CASES, moments: Iterable[str] = tuple(MOMENTS)) -> Result:
    """Train every case whole, and from every moment on; a round is survived where the states have the same bits."""
    rounds, lost = 0, []
    for case in cases:
        with tempfile.TemporaryDirectory() as place:
            config = config_of(case)
            whole = loop.train(config, Path(place, "whole"))
            for moment in moments:
                folder = stop_at(whole.workdir, MOMENTS[moment], Path(place, moment))
                resumed = loop.train(config, folder)
                rounds += 1
                same = same_bits(whole.state, resumed.state) and whole.report.to_dict() == resumed.report.to_dict()
                if not same:
                    lost.append(f"{'/'.join(case)} at {moment}")
    return Result(rounds, rounds - len(lost), lost)


@contextlib.contextmanager
def forgetting(part: str) -> Iterator[None]:
    """A fault planted: inside, a restored state comes without this part."""
    restore = Checkpoints.restore

    def forgetful(self: Checkpoints, template: Any, which: Which = "last") -> Any:
        restored = restore(self, template, which)
        if restored is None:
            return None
        wrong = getattr(restored.state, part)
        wrong = wrong + 1 if part == "step" else jax.tree.map(jnp.zeros_like, wrong)
        return restored._replace(state=dataclasses.replace(restored.state, **{part: wrong}))

    with mock.patch.object(Checkpoints, "restore", forgetful):
        yield
