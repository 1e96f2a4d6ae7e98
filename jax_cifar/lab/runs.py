"""Finished runs read back from their folders, which of them are the same experiment, and a table of them."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jax_cifar.config.files import experiment_fields, from_dict
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.files import read_record
from jax_cifar.lab.tables import markdown, spread

HEAD = ("experiment", "runs", "epochs", "test accuracy", "test loss", "train accuracy", "training time", "on")
FILES = ("config", "environment", "summary")
# Of every experiment each run has its own, or it is what people call the experiment.
NOT_OF_THE_EXPERIMENT = ("name", "train.seed")
GIVEN_IMAGES = "the images given"  # in Python


@dataclass(frozen=True)
class FinishedRun:
    """What a run left: configuration, figures and surroundings, as the JSON files of its folder have them."""

    folder: Path | None  # None: it has none of its own
    config: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]
    member: str = ""  # of a file with several: which file, and which of them

    @property
    def shown(self) -> str:
        """What to call it."""
        return self.member or str(self.folder)

    @property
    def seed(self) -> int:
        """The seed of its weights, order, augmentation and dropout."""
        return self.config["train"]["seed"]

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """The lines of its metrics.jsonl, oldest first; none where it has no folder."""
        from jax_cifar.telemetry.run_log import read_metrics

        return [] if self.folder is None else read_metrics(self.folder)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """All that makes it the experiment it is: what changes what is computed, but the seed.

        Beside the configuration's fields these are the text of code of the user's own, images that were given in
        Python, and whether it began with the weights of another run: of which does not count, as every seed may have
        its own.
        """
        fields = experiment_fields(self.config)
        own = {f"the code in {name}": digest[:8] for name, digest in self._code().items()}
        begun = {} if self.init_from is None else {"--init-from": "another run"}
        fields = {name: value for name, value in fields.items() if name not in NOT_OF_THE_EXPERIMENT}
        return fields | own | begun | self._given_images()

    @property
    def init_from(self) -> str | None:
        """The run whose weights it began with, as it was named; None: its network's own start."""
        if "init_from" in self.summary:
            return None if (named := self.summary["init_from"]) is None else str(named)
        return self.typed("--init-from", "--init_from")  # of an earlier version, or not finished

    def typed(self, *names: str) -> str | None:
        """What was typed after an option of one of these names."""
        words = [word for word in self.environment.get("argv", []) if isinstance(word, str)]
        for i, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name in names:
                return value if equals else next(iter(words[i + 1 :]), None)
        return None

    @property
    def device(self) -> str:
        """What it was trained on: `CPU, 2 cores`."""
        if self.environment["backend"] == "cpu":
            return f"CPU, {self.environment['cpu_count']} cores"
        return ", ".join(f"{count} x {kind}" for kind, count in self.environment["devices"].items())

    @property
    def commit(self) -> str | None:
        """The first figures of the library's commit, with `-dirty` where files differed from it."""
        commit = self.environment.get("commit")
        return commit and commit[:9] + commit[40:]

    def _given_images(self) -> dict[str, str]:
        """What the images are called, with their checksum, where the configuration does not name them."""
        try:
            given = self.folder is not None and read_record(self.folder / "network.json")["data_name"] is None
        except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or damaged
            return {}
        if not given or "dataset" not in self.summary:  # of a parent no more is known than what it is
            return {}
        checksum = self.summary.get("training_images", "of an earlier version")
        return {GIVEN_IMAGES: f"{self.summary['dataset']}, {checksum}"}

    def _code(self) -> dict[str, str]:
        """The checksums of the files that hold code of the user's own, where the run needs any."""
        try:
            source = {} if self.folder is None else read_record(self.folder / "source.json")
            origins, files = source.get("origins", {}), source.get("files", [])
            # The config file comes first, and counts only where more than values stand in it.
            counted = [file for i, file in enumerate(files) if i or file["name"] in origins.values()]
            return {file["name"]: file["sha256"] for file in counted} if origins else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of an earlier version, or damaged
            return {}


def read_run(folder: Path) -> FinishedRun | str:
    """What a finished run left; in words, why there is nothing to be counted.

    Raises:
        CheckpointError: the folder holds no run.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no run folder: it holds no config.json. Give folders of scripts/train.py.")
    if not (folder / "summary.json").is_file():
        return "it is not finished: it holds no summary.json"
    contents: dict[str, Any] = {}
    for path in (folder / f"{name}.json" for name in FILES):
        try:
            contents[path.stem] = read_record(path)
        except (OSError, ValueError) as error:
            return f"{path.name} cannot be read ({error})"
    one = FinishedRun(folder, **contents)
    try:
        row([one])
        from_dict(one.config)
        return one if one.summary["test_loss"] is not None else "it diverged: its test loss is not finite"
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        return f"its files are not those of a run of this version ({type(error).__name__}: {error})"


def experiments(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """The runs of each experiment, in the order of their first ones.

    Of one experiment are runs on the same devices that differ in nothing but the seed, the name and what changes no
    result: logging, checkpoints, evaluation.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for one in runs:
        identity = json.dumps([one.fields, one.environment["devices"]], sort_keys=True)
        groups.setdefault(identity, []).append(one)
    return list(groups.values())


def overview(runs: Iterable[FinishedRun]) -> str:
    """A Markdown table with a row for each experiment."""
    return markdown(HEAD, map(row, experiments(runs)))


def row(runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    """The cells of one experiment."""
    summaries = [one.summary for one in runs]
    return (
        summaries[0]["config_name"],
        str(len(runs)),
        f"{summaries[0]['epochs']:g}",
        spread((summary["test_accuracy"] for summary in summaries), ".2%"),
        spread((summary["test_loss"] for summary in summaries), ".4f"),
        spread((summary["train_accuracy"] for summary in summaries), ".2%"),
        f"{statistics.median(summary['seconds']['train'] for summary in summaries):.0f} s",
        f"{runs[0].device}, jax {runs[0].environment['versions']['jax']}",
    )
