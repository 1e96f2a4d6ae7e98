"""Finished runs by what they are, in one file: many experiments are trained once each, whatever stops the process.

ledger = Ledger(folder / "runs.json")
ledger.train(configs, on_run=lambda result: ...)
ledger[configs[0]]["test_accuracy"]
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_cifar.config import Config
from jax_cifar.config.files import experiment_fields, from_dict, to_record
from jax_cifar.config.revive import has_placeholders
from jax_cifar.config.source import own_code
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.files import read_record, sha256_of_json, write_record
from jax_cifar.training.many import ManyResult, train_many
from jax_cifar.training.programs import program_of


def identity(config: Config) -> str:
    """The same for two configurations that give the same results and are judged alike, whatever they are called.

    Code of the user's own counts by its text, the library's does not.
    """
    return _identity(to_record(config), own_code(config))


def _identity(record: Mapping[str, Any], code: Mapping[str, str]) -> str:
    own = {"name": None, "eval.tta": record["eval"]["tta"], "code": code}
    return sha256_of_json(experiment_fields(record) | own)


def _identity_now(run: Mapping[str, Any], kept: str) -> str:
    """What a kept run is known by in this version, which may have more fields than the one that kept it.

    That stays `kept` where it cannot be told: of code whose text was not recorded once, and of fields that are gone.
    """
    try:
        if "code" not in run and has_placeholders(from_dict(run["config"])):
            return kept
        return _identity(run["config"], run.get("code", {}))
    except (ConfigError, KeyError, TypeError):
        return kept


class Ledger:
    """The finished runs of a file, which is whole after each of them; it is made with the first.

    Raises:
        CheckpointError: the file is damaged, or something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self.runs = {_identity_now(run, kept): run for kept, run in read_record(path)["runs"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                told = f"{type(error).__name__}: {error}"
                raise CheckpointError(f"{path} holds no finished runs ({told}). Choose another folder.") from None

    def __getitem__(self, config: Config) -> dict[str, Any] | None:
        """The figures of a finished run; None where it is still to do."""
        return self.runs.get(identity(config))

    def missing(self, configs: Sequence[Config]) -> list[Config]:
        """Those without a finished run, each once, in their order."""
        found: dict[str, Config] = {}
        for config in configs:
            found.setdefault(identity(config), config)
        return [config for key, config in found.items() if key not in self.runs]

    def train(self, configs: Sequence[Config], on_run: Callable[[ManyResult], object]) -> None:
        """Train what is missing, and call `on_run` with each as soon as it is kept.

        Raises:
            ConfigError, DataError: what the user can put right. A run that diverges is a result like any other.
        """
        from jax_cifar.telemetry.environment import environment

        here, began = environment(), time.perf_counter()

        def keep(result: ManyResult) -> None:
            nonlocal began
            now = time.perf_counter()
            own = {"config": to_record(result.config), "code": own_code(result.config)}
            own |= {"wall_seconds": now - began, "environment": here}
            self.runs[identity(result.config)] = result.to_dict() | own
            write_record(self.path, {"runs": self.runs})
            began = now
            on_run(result)

        lots: dict[str, list[Config]] = {}
        for config in self.missing(configs):
            lots.setdefault(program_of(config), []).append(config)
        for lot in lots.values():
            train_many(lot, on_result=keep)
