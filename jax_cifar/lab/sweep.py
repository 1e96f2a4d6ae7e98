"""A search for the best setting of an experiment: proposed by Optuna or a grid, judged by held-out training images.

from jax_cifar import load_config
from jax_cifar.lab.sweep import sweep
found = sweep(load_config("configs/quickstart.py"), ["optim.lr=log(0.005,0.2)"], trials=20, workdir="runs/rates")

Every trial trains the configuration once, with its seed, and is judged by validation images: those that the data set
has, else those that `data.val_fraction` holds out, a tenth of the training images where it is 0. The test images are
not evaluated in any of them. Only the winner is: the configuration as it was given, with its own `data.val_fraction`,
so on all training images where that is 0, and with the swept fields set, is trained with several seeds that no trial
had, and each is judged once by the test images.

The folder of a sweep holds `sweep.db`, the store of its trials, `sweep.json`, what it is and what came of it, and
pictures. Started again, also at the same time by another process, the same sweep goes on (`jax_cifar.lab.trials`).
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.config import Config
from jax_cifar.config.files import check_recordable
from jax_cifar.data import Splits
from jax_cifar.errors import ConfigError, check
from jax_cifar.lab.lots import Lots
from jax_cifar.lab.space import Axis, Setting, grid_of, parse_space, with_setting
from jax_cifar.lab.sweep_folder import Search
from jax_cifar.lab.trials import WAIT_SECONDS, Pruning, Store, Trials, importance
from jax_cifar.progress import progress
from jax_cifar.telemetry.sweep_plots import Field, Tried, draw_sweep
from jax_cifar.training.many import check_for_lots
from jax_cifar.training.replicas import How
from jax_cifar.training.session import Part

HELD_OUT = 0.1  # share of the training images that trials are judged by, where the configuration holds out none
SEEDS = Axis("train.seed", "int", 0, 2**32 - 1)


@dataclass(frozen=True)
class Sweep:
    """What came of a sweep; everything in it is JSON values."""

    name: str  # the configuration's
    folder: Path
    axes: tuple[Axis, ...]
    grid: bool
    trials: list[dict[str, Any]]  # in the order of their indices: setting, outcome, accuracy, seconds, ...
    importance: dict[str, float]  # by field, the share of the variance that it explains
    winner: list[dict[str, Any]] = field(default_factory=list)  # the best with several seeds, by the test images
    baseline: list[dict[str, Any]] = field(default_factory=list)  # the configuration itself, with the same seeds

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The trials that came to their end, the best first; of equals the first."""
        done = [trial for trial in self.trials if trial["outcome"] == "finished"]
        return sorted(done, key=lambda trial: -trial["accuracy"])

    @property
    def setting(self) -> Setting:
        """The best."""
        return self.ranked[0]["setting"]

    @property
    def results(self) -> dict[str, Any]:
        """What sweep.json tells of it."""
        return {name: getattr(self, name) for name in ("trials", "importance", "winner", "baseline")}


def sweep(
    config: Config,
    space: Sequence[str],
    trials: int | None = None,
    workdir: str | Path | None = None,
    *,
    grid: bool = False,
    storage: str | None = None,
    seeds: int = 5,
    baseline: bool = False,
    pruning: Pruning | None = None,
    how: How | Literal["auto"] = "auto",
    chunk: int | None = None,
    splits: Splits | None = None,
    say: Callable[[str], object] = print,
    on_folder: Callable[[Path], object] = lambda folder: None,
) -> Sweep:
    """Search, then train the winner with several seeds.

    Args:
      config: the experiment.
      space: what varies (`jax_cifar.lab.space`).
      trials: how many are finished in all, those that diverged, were refused or pruned among them; of a grid all.
      workdir: the folder; default: runs/<config name>-sweep/<time>.
      grid: every combination once, in place of what Optuna's TPE sampler proposes.
      storage: URL of a store that several machines share; default: sweep.db in the folder.
      seeds: of the winner; 0 leaves it out, and the test images with it.
      baseline: train the configuration itself with these seeds too.
      pruning: by which rule trials are given up early, as often as `eval.every` says; default: "median", and none in a
        grid. A trial that is given up counts as one.
      how, chunk: as in `train_many`; "vmap" has so many trials proposed and trained at once, 8 by default.
      splits: images of one's own in place of those that `config.data` names.
      say: is told what a user should know, a line at a time.
      on_folder: is told the folder as soon as there is one.

    Raises:
      ConfigError, DataError: what the user can put right.
    """
    check_recordable(config)
    check_for_lots(config)
    axes = parse_space(space, config)
    settings = grid_of(axes, config) if grid else None
    total = _total(trials, settings)
    check(seeds >= 0, "--seeds", seeds, "it must be at least 0")
    check(seeds > 0 or not baseline, "--seeds", seeds, "--baseline trains the configuration with these seeds")
    expected = "trials are judged early every --eval.every epochs, here never"
    check(config.eval.every > 0 or pruning in (None, "none"), "--prune", pruning, expected)
    search = Search(config, axes, grid)
    lots = Lots(config, how, chunk, splits)
    held_out = config if lots.load(config).validation is not None else _holding_out(config, say)
    pruning = pruning or ("none" if grid else "median")
    with compilation_cache(config):
        lots.session(with_setting(held_out, {axis.field: axis.ends[0] for axis in axes}))  # or it cannot be trained
        folder, search = search.make_folder(workdir)
        on_folder(folder)
        with Store(folder, storage) as store:
            trials_of = Trials(store, search.name, axes, settings, config.train.seed, pruning)
            _finish(trials_of, held_out, total, lots, "validation", "sweep", prune=pruning != "none")
            found = Sweep(config.name, folder, axes, grid, _records(trials_of, total), importance(trials_of.study))
            search.write(folder, **found.results)
            _require_one(found)
            again = {"winner": with_setting(config, found.setting)} | ({"baseline": config} if baseline else {})
            for what, one in again.items():
                name = f"{search.name}/{search.of(one, [SEEDS]).digest}"
                found = dataclasses.replace(found, **{what: _train_again(store, name, one, seeds, lots, what)})
                search.write(folder, **found.results)
    return found


def draw(found: Sweep) -> list[Path]:
    """Draw importance, slices and parallel coordinates into `plots/` of its folder; returns the paths."""
    fields = [Field(axis.field, axis.values, axis.kind == "log") for axis in found.axes]
    accuracies = [math.nan if trial["accuracy"] is None else 100 * trial["accuracy"] for trial in found.trials]
    tried = [Tried(trial["setting"], accuracy) for trial, accuracy in zip(found.trials, accuracies, strict=True)]
    return draw_sweep(found.name, fields, tried, found.importance, found.folder / "plots")


def _require_one(found: "Sweep") -> None:
    """Raise `ConfigError` where no trial came to its end."""
    if not found.ranked:
        reasons = (trial["reason"].rstrip(".") for trial in found.trials if "reason" in trial)
        reason = next(reasons, "every one diverged or was given up")
        raise ConfigError(f"No trial came to its end: {reason}. Choose another --space.")


def _total(trials: int | None, settings: Sequence[Setting] | None) -> int:
    if settings is not None:
        check(trials in (None, len(settings)), "--trials", trials, f"a grid has all its {len(settings)} combinations")
        return len(settings)
    check(trials is not None and trials >= 1, "--trials", trials, "say how many, or --grid for every combination")
    return trials or 0


def _holding_out(config: Config, say: Callable[[str], object]) -> Config:
    say(
        f"data.val_fraction = 0: the trials hold out {HELD_OUT:.0%} of the training images and are judged by those;"
        " the winner is trained on all."
    )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, val_fraction=HELD_OUT))


def _finish(
    trials: Trials, config: Config, total: int, lots: Lots, part: Part, title: str, prune: bool = False
) -> None:
    """Have the first so many trials finished: by this process, and by whoever else is at them."""
    seen = trials.finished(total)
    with progress(title, total=total, done=len(seen), unit="runs") as bar:
        while len(seen) < total:
            claims = [claim for _ in range(lots.size) if (claim := trials.claim(total)) is not None]
            if claims:
                lots.train(trials, claims, config, part, prune)
            else:
                time.sleep(WAIT_SECONDS)
            finished = trials.finished(total)
            for index in finished.keys() - seen.keys():
                bar.print(f"{title} {index + 1}: {_told(finished[index], part)}", file=sys.stderr)
            seen = finished
            bar.update(len(seen))


def _told(trial: Any, part: Part) -> str:
    notes, shown = trial.user_attrs, [f"{short(field)} {brief(value)}" for field, value in trial.params.items()]
    end = notes["outcome"] if notes["outcome"] != "finished" else f"{part} {trial.value:.2%}"
    return f"{', '.join(shown)}: {end}"


def short(field: str) -> str:
    """A field without its section, as tables name it."""
    return field.rpartition(".")[2]


def brief(value: Any) -> str:
    """A value in at most four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _records(trials: Trials, total: int) -> list[dict[str, Any]]:
    """The finished trials as JSON values."""
    records = []
    for index, trial in sorted(trials.finished(total).items()):
        notes = {name: note for name, note in trial.user_attrs.items() if name not in ("worker", "index")}
        reports = {str(percent): value for percent, value in trial.intermediate_values.items()}
        accuracy = trial.value if notes["outcome"] == "finished" else None
        own = {"index": index, "setting": dict(trial.params), "accuracy": accuracy, "reports": reports}
        records.append({**own, **notes})
    return records


def _train_again(store: Store, name: str, config: Config, seeds: int, lots: Lots, title: str) -> list[dict[str, Any]]:
    """A configuration with so many seeds that no trial had, judged by the test images; kept in a study of its own."""
    settings = [{"train.seed": (config.train.seed + 1 + i) % 2**32} for i in range(seeds)]
    trials = Trials(store, name, [SEEDS], settings)
    _finish(trials, config, seeds, lots, "test", title)
    return _records(trials, seeds)
