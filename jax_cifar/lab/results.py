"""Runs as a user names them: a run folder, or a JSON file of scripts/train_many.py, or some of the runs in one.

`rates.json:lr=0.05` are the runs with this rate, `rates.json:lr=0.05,seed=0-49` those of them with the first 50 seeds.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jax_cifar.config.files import from_dict
from jax_cifar.errors import CheckpointError, ConfigError, check, printable
from jax_cifar.files import expand, read_json
from jax_cifar.lab.runs import FinishedRun, read_run, row
from jax_cifar.lab.tables import shown_value

# A setting of train_many, and the field that it stands for; momentum's depends on the update rule.
SETTINGS = {"seed": "train.seed", "lr": "optim.lr", "momentum": "optim.momentum", "weight_decay": "optim.weight_decay"}
_RANGE = re.compile(r"(\d+)-(\d+)")


def tell_left_out(name: str, why: str) -> None:
    """A line on stderr."""
    print(printable(f"{name} is left out: {why}."), file=sys.stderr)


def finished_runs(words: Iterable[str], leave_out: Callable[[str, str], object] = tell_left_out) -> list[FinishedRun]:
    """As `named_runs`; raises `CheckpointError` where there is none."""
    runs = named_runs(words, leave_out)
    if not runs:
        raise CheckpointError("There is no finished run to show.")
    return runs


def named_runs(words: Iterable[str], leave_out: Callable[[str, str], object]) -> list[FinishedRun]:
    """The finished runs that words of the command line name, each once.

    Args:
        words: run folders; JSON files of scripts/train_many.py; one of these, a colon, and which runs of it.
        leave_out: called with the name of each run that is not to be counted, and the reason.

    Raises:
        CheckpointError, ConfigError: what is named is neither, or holds no such run.
    """
    runs: dict[str, FinishedRun] = {}
    for word in words:
        path, _, chosen = word.partition(".json:")
        if chosen or path.endswith(".json"):
            found = read_results(expand(f"{path}.json" if chosen else path), chosen)
        else:
            folder = expand(word).resolve()
            found = {str(folder): read_run(folder)}
        for name, one in found.items():
            if isinstance(one, FinishedRun):
                runs[name] = one
            else:
                leave_out(name, one)
    return list(runs.values())


def read_results(path: Path, chosen: str = "") -> dict[str, FinishedRun | str]:
    """The runs of a JSON file of scripts/train_many.py by their names; in words why one does not count.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
        ConfigError: no run of it is what is chosen, or nothing can be chosen so.
    """
    try:
        values = read_json(path)
        runs: dict[str, FinishedRun | str] = {}
        settings = {tuple(result[key] for key in SETTINGS if key != "seed") for result in values["results"]}
        for result in values["results"]:
            if _is_chosen(result, chosen):
                name = f"{path.resolve()}, {', '.join(f'{key} {shown_value(result[key])}' for key in SETTINGS)}"
                runs[name] = _run(values, result, name, len(settings))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        shown = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is no file that scripts/train_many.py --json wrote ({shown}).") from None
    check(bool(runs), "runs", f"{path}:{chosen}" if chosen else str(path), "there is no such run in the file")
    return runs


def _is_chosen(result: Mapping[str, Any], chosen: str) -> bool:
    """Whether a result is one of those that `lr=0.05,seed=0-49` means."""
    for part in filter(None, chosen.split(",")):
        name, _, value = part.partition("=")
        check(name in SETTINGS, "setting", part, f"choose runs by {', '.join(SETTINGS)}, such as lr=0.05,seed=0-49")
        bounds = _RANGE.fullmatch(value)
        try:
            low, high = map(float, bounds.groups() if bounds else (value, value))
        except ValueError:
            raise ConfigError(
                f"{part!r} chooses no runs: give a number, or two whole numbers, as in seed=0-49."
            ) from None
        if not low <= result[name] <= high:
            return False
    return True


def _run(values: Mapping[str, Any], result: Mapping[str, Any], name: str, settings: int) -> FinishedRun | str:
    """One result as a run that has no folder."""
    if result["diverged_at"] is not None or result["test_loss"] is None:
        return f"it diverged: at step {result['diverged_at']} its loss or weights were no longer finite"
    config = {section: dict(value) if isinstance(value, dict) else value for section, value in values["config"].items()}
    rule = config["optim"]["name"]
    momentum = "b1" if rule in ("adam", "adamw") else "momentum" if rule in ("sgd", "muon") else None
    config["train"]["seed"] = result["seed"]
    config["optim"] |= {"lr": result["lr"], "weight_decay": result["weight_decay"]}
    config["optim"] |= {} if momentum is None else {momentum: result["momentum"]}
    images = result["steps"] * config["train"]["batch_size"]
    summary = {
        **{key: result[key] for key in ("test_accuracy", "test_loss", "test_accuracy_tta", "parameters")},
        "config_name": config["name"],
        "epochs": config["train"]["epochs"],
        "train_accuracy": None,
        "validation_accuracy": result["validation_accuracy"],
        "images_per_second": images / result["seconds"] if result["seconds"] else None,
        "seconds": {"train": result["seconds"]},
        "settings": settings,  # that were tried in its file
    }
    one = FinishedRun(None, config, summary, values["environment"], name)
    row([one])
    from_dict(config)
    return one
