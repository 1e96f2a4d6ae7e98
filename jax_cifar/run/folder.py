"""The folder of a run: where it lies, whether this run may write into it, and the JSON files in it."""

import contextlib
import dataclasses
import errno
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from jax_cifar import files
from jax_cifar.config import Config
from jax_cifar.config.files import differing_fields, from_dict, to_dict, to_record
from jax_cifar.config.source import record_source
from jax_cifar.config.spec import InputSpec
from jax_cifar.data import Splits
from jax_cifar.errors import CheckpointError, ConfigError, check
from jax_cifar.files import expand, write_record
from jax_cifar.run.lock import LOCK, RunLock
from jax_cifar.telemetry import read_metrics, write_environment

CHECKPOINTS = "checkpoints"
NETWORK = "network.json"  # what the network sees
FINISHED = ("summary.json", "report.json")  # written after the last checkpoint
RESULTS = (CHECKPOINTS, *FINISHED, "metrics.jsonl", "plots")  # what it would be a loss to write over
RECORDS = (NETWORK, "environment.json", "source.json", "source", "tensorboard")
# So many saves later an earlier one has come to its end: they wait for each other.
SAVES_IN_THE_AIR = 3


class RunFolder:
    """The folder that a run writes into: inside the `with` block it belongs to this process alone.

    One that exists is locked and looked at on entering. A new one is made by `make`, when all that could refuse the run
    lies behind it, so that a refused run leaves nothing, not even the folders above it.

    Args:
        config: the experiment.
        workdir: where; default: a new folder runs/<config name>/<time> below the current one.
        warn: receives one line where the folder cannot be locked.
    """

    def __init__(self, config: Config, workdir: str | Path | None, warn: Callable[[str], None]) -> None:
        self._config, self._warn, self._given = config, warn, workdir
        default = Path("runs") / config.name / time.strftime("%Y%m%d-%H%M%S")
        self._shown = str(default if workdir is None else workdir)
        self._locked, self._is_mine, self._is_resumed = contextlib.ExitStack(), False, False

    def __enter__(self) -> Self:
        """Find the folder, and lock it where it is there already.

        Raises:
            ConfigError: it cannot be written to, or another process has it.
            CheckpointError: it holds something that would be lost: another run, or one without its checkpoints.
        """
        with contextlib.ExitStack() as stack, self._told():
            stack.push(self._locked)
            self.path = expand(self._shown).absolute()
            if self._given is not None and self.path.exists():
                self._own()
            else:
                self._check_above()
            stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._locked.close()

    def require(self, needed_bytes: int, checkpoint_every: float) -> None:
        """Refuse what only the plan of the run can tell.

        Args:
            needed_bytes: of the checkpoints that lie on the disk at the same time.
            checkpoint_every: updates between two of them; 0: only the last is saved.

        Raises:
            CheckpointError: a log that goes on after its checkpoints are gone.
            ConfigError: the disk has not the space.
        """
        steps = [record["step"] for record in read_metrics(self.path)]
        last = max(steps, default=0)
        if checkpoint_every and last > SAVES_IN_THE_AIR * checkpoint_every and not self._has_states():
            raise self._without_checkpoints(f"metrics.jsonl up to step {last:,}")
        place = _existing(self.path / CHECKPOINTS)  # which may be a link to a larger disk
        have = sum(path.lstat().st_size for path in (self.path / CHECKPOINTS).rglob("*") if path.is_file())
        with contextlib.suppress(OSError):  # a file system that does not tell
            total, _, free = shutil.disk_usage(place)
            if total and needed_bytes - have > free:
                raise ConfigError(
                    f"The checkpoints of this run need {(needed_bytes - have) / 1e6:,.1f} MB, and {place} has"
                    f" {free / 1e6:,.1f} MB free. Free space, lower --checkpoint.keep, or choose another --workdir."
                )

    def make(self, spec: InputSpec, data_name: str | None) -> Path:
        """Make the folder with all that it needs to stand on its own: configuration, source, what the network sees.

        One with checkpoints, which may still refuse to be gone on with, keeps what it says until `keep_up` is called.
        `data_name` is the set that `config.data` loads; None for images that were given in Python.

        Raises:
            ConfigError: the folder cannot be written, or another process has it.
            CheckpointError: somebody else has filled it meanwhile.
        """
        with contextlib.ExitStack() as undo, self._told():
            made = [] if self._is_mine else self._claim()
            undo.callback(_remove, self.path, set(os.listdir(self.path)) if not made else set(), made)
            self._is_resumed = self._has_states()
            if not self._is_resumed:
                self._record(spec, data_name)
            undo.pop_all()
        return self.path

    def require_held(self) -> None:
        """Raise `ConfigError` where the folder was moved away since it was made: nothing is to be written there."""
        if not self._lock.is_held():
            raise ConfigError(
                f"The run folder {self.path} was moved, deleted or replaced while this run wrote into it: its {LOCK} is"
                " gone, or of another run. What was saved lies where it was moved to: to go on from there, run the same"
                " command with that place as --workdir."
            )

    def keep_up(self, spec: InputSpec, data_name: str | None) -> None:
        """Have a run that goes on say what it goes on with: settings of the log, versions, devices.

        Raises `ConfigError` where the folder cannot be written.
        """
        if self._is_resumed:
            with self._told():
                self._record(spec, data_name)

    def _record(self, spec: InputSpec, data_name: str | None) -> None:
        write_record(self.path / "config.json", to_record(self._config))
        write_record(self.path / NETWORK, {**dataclasses.asdict(spec), "data_name": data_name})
        record_source(self.path, self._config)
        write_environment(self.path)

    def _check_above(self) -> None:
        above = _existing(self.path.parent)
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            fault = "you may not write there" if above.is_dir() else "that is a file"
            raise ConfigError(f"{self._shown} cannot be made in {above}: {fault}. Choose another --workdir.")

    def _claim(self) -> list[Path]:
        """Make the folder, under a name that nobody has, and lock it; all that were made, the innermost first."""
        for path in self._names():
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if self._given is None or not path.is_dir():
                    continue
                made = []  # by the same command, started at the same time: the lock decides
            except OSError:
                _remove_folders(made)
                raise
            self.path = path
            self._own()
            return made
        raise FileExistsError(errno.EEXIST, "something else is there")

    def _names(self) -> Iterable[Path]:
        yield self.path
        if self._given is None:
            yield from (Path(f"{self.path}-{i}") for i in range(1, 1000))

    def _own(self) -> None:
        """Lock the folder, and see to it that nothing in it would be lost."""
        if not self.path.is_dir():
            raise ConfigError(f"{self._shown} is a file, not a folder. Choose another --workdir.")
        self._lock = self._locked.enter_context(RunLock(self.path, self._shown, self._warn))
        self._is_mine = True
        self._check_content()

    def _check_content(self) -> None:
        held = [name for name in RESULTS if _has_content(self.path / name)]
        if not (self.path / "config.json").exists():
            ours = held or [name for name in RECORDS if (self.path / name).exists()]
            if ours:
                raise CheckpointError(
                    f"{self._shown} is not the folder of a run, as it holds no config.json, and has {_and(ours)} that"
                    " would be written over. Choose another --workdir."
                )
            return
        differing = self._differing()
        if differing and held:
            shown = "\n  ".join(differing[:8])
            raise CheckpointError(
                f"{self._shown} holds {_and(held)} of another configuration:\n  {shown}\n"
                f"Choose another --workdir, or give the same configuration to resume.{self._more_epochs(differing)}"
            )
        finished = [name for name in FINISHED if name in held]
        if finished and not self._has_states():
            raise self._without_checkpoints(_and(finished))

    def _more_epochs(self, differing: list[str]) -> str:
        """The way on for who wants more of a run that has come to its end."""
        lengths = all(line.startswith(("train.epochs:", "train.steps:", "train.patience:")) for line in differing)
        if not lengths or not (self.path / "summary.json").exists():
            return ""
        start = shlex.quote(self._shown)
        return f" To train its weights further, with a fresh schedule: another --workdir and --init-from {start}."

    def _differing(self) -> list[str]:
        try:
            return differing_fields(read_json(self.path / "config.json"), to_dict(self._config))
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(
                f"{self._shown} holds no configuration of this version: {error} Choose another --workdir."
            ) from None

    def _has_states(self) -> bool:
        names = [path.name for path in (self.path / CHECKPOINTS).glob("[0-9]*")]
        return any(not name.endswith(".partial") for name in names)

    def _without_checkpoints(self, held: str) -> CheckpointError:
        return CheckpointError(
            f"{self._shown} holds {held}, but no checkpoint any more: going on needs one, and starting anew would write"
            f" over the rest. Put {CHECKPOINTS}/ back, move the folder away, or choose another --workdir."
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """An error of the system as one message that names the folder as the user does."""
        try:
            yield
        except OSError as error:
            message = f"The run folder {self._shown} cannot be written: {error.strerror}. Choose another --workdir."
            raise ConfigError(message) from None


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def _remove(folder: Path, before: set[str], made: Iterable[Path]) -> None:
    """Take out of a folder what was not in it before, and the folders that were made for it."""
    for path in folder.iterdir():
        if path.name not in before:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    _remove_folders(made)


def _remove_folders(made: Iterable[Path]) -> None:
    for path in made:
        with contextlib.suppress(OSError):  # another run has begun in it
            path.rmdir()


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def input_spec(config: Config, splits: Splits) -> InputSpec:
    """What the network of a run sees of these images; raises `ConfigError` for a resolution that they have not."""
    mean, std = splits.train.channel_statistics
    height, width, channels = splits.train.images.shape[1:]
    resolutions = config.train.resolutions
    for side, _ in resolutions:
        check(side <= height, "train.resolutions", side, f"the images have {height} pixels a side")
    last = resolutions[-1][0] if resolutions else None
    # A channel that is the same in all images stays 0 after its mean is taken away, whatever it is divided by.
    mean, std = tuple(map(float, mean)), tuple(float(value) or 1.0 for value in std)
    return InputSpec((height, width, channels), mean, std, last, splits.label_names)


def read_spec(folder: Path) -> tuple[InputSpec, str | None] | None:
    """What the network of a run sees, and the name of its data set (None: given in Python).

    None for a run of an earlier version, which did not record it. Raises `CheckpointError` for a damaged file.
    """
    path = folder / NETWORK
    if not path.exists():
        return None
    values = read_json(path)
    try:
        data_name = values.pop("data_name")
        check(data_name is None or isinstance(data_name, str), "data_name", data_name, "it must be a name, or null")
        return InputSpec.from_json(values), data_name
    except (TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} does not say what the network sees ({str(error).rstrip('.')}).") from None


def read_config(folder: Path) -> Config:
    """The configuration of an existing run; raises `CheckpointError` where the folder is none."""
    return from_dict(read_json(folder / "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder; raises `CheckpointError` where it is missing or damaged."""
    try:
        values = files.read_record(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a run folder: it holds no {path.name}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no table of fields.")
    return values
