"""What a sweep is, and the folder that belongs to it: the same sweep goes on there, and no other."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_cifar.config import Config
from jax_cifar.config.files import FREE_TO_CHANGE, OWN_DATA, differing_fields, experiment_fields, to_dict, to_record
from jax_cifar.config.source import own_code
from jax_cifar.errors import ConfigError
from jax_cifar.files import expand, read_record, sha256_of_json, write_record
from jax_cifar.lab.space import Axis

RECORD = "sweep.json"


@dataclass(frozen=True)
class Search:
    """What must be the same for two processes to be at the same sweep."""

    config: Config
    axes: Sequence[Axis]
    grid: bool
    begun: Mapping[str, Any] | None = None  # as sweep.json has it, where the sweep was begun before

    @property
    def record(self) -> Mapping[str, Any]:
        """What sweep.json says of it, and its studies are called by: as it was begun, whatever is free to change since.

        So they are found again when a later version has more fields, too.
        """
        if self.begun is not None:
            return self.begun
        values, usual = to_record(self.config), to_dict(Config(self.config.name))["train"]
        values["train"] |= {name: usual[name] for name in usual if FREE_TO_CHANGE.fullmatch(f"train.{name}")}
        what = {"config": values, "space": list(map(str, self.axes)), "grid": self.grid}
        return what | {"code": own_code(self.config)}

    @property
    def digest(self) -> str:
        """The same on every machine that has images of one's own at the same place, and of no other sweep."""
        values, code = self.record["config"], self.record["code"]
        what = {name: value for name, value in values.items() if name not in ("log", "checkpoint", "eval")}
        place = values["data"]["dir"] if values["data"]["name"] in OWN_DATA else None
        what |= {"data": {**values["data"], "dir": place}, "distributed": None}
        what = {"config": what, "space": self.record["space"], "grid": self.record["grid"]}
        return sha256_of_json(what | ({"code": code} if code else {}))[:12]

    @property
    def name(self) -> str:
        """In a store that other sweeps may be kept in."""
        return f"{self.config.name}-{self.digest}"

    def of(self, config: Config, axes: Sequence[Axis]) -> "Search":
        """The sweep of `axes` over `config`, which is this one's with some fields changed: begun when this one was."""
        values = _changed(self.record["config"], to_record(self.config), to_record(config))
        begun = {**self.record, "config": values, "space": list(map(str, axes)), "grid": False}
        return Search(config, axes, False, begun)

    def make_folder(self, workdir: str | Path | None) -> tuple[Path, "Search"]:
        """The folder of this sweep, made where it is missing, and the sweep as it was begun there.

        The default is runs/<config name>-sweep/<time>.

        Raises:
            ConfigError: another sweep, or something else, has it, or it cannot be written.
        """
        default = Path("runs") / f"{self.config.name}-sweep" / time.strftime("%Y%m%d-%H%M%S")
        folder, way_out = expand(default if workdir is None else workdir), "Choose another --workdir"
        try:
            folder.mkdir(parents=True, exist_ok=workdir is not None)
            # Looked at first: what another process begins meanwhile has its record by the time that is looked for.
            is_taken = any(folder.glob("*.json")) or (folder / "sweep.db").exists()
            if (folder / RECORD).exists():
                return folder, self._as_begun(folder, read_record(folder / RECORD))
            if is_taken:
                raise ConfigError(f"{folder} is not the folder of a sweep: it holds no {RECORD}. {way_out}.")
            self.write(folder)
        except FileExistsError:
            raise ConfigError(f"{folder} is there already. {way_out}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder / RECORD} is damaged ({error}). {way_out}.") from None
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}. {way_out}.") from None
        return folder, self

    def write(self, folder: Path, **results: Any) -> None:
        """Write sweep.json: what this is, and what has come of it."""
        write_record(folder / RECORD, {**self.record, **results})

    def _as_begun(self, folder: Path, record: Mapping[str, Any]) -> "Search":
        """This sweep as the record has it; raises `ConfigError` where that is another one."""
        self._check_same(folder, record)
        begun = {name: record[name] for name in ("config", "space", "grid")}
        return dataclasses.replace(self, begun=begun | {"code": record.get("code", {})})

    def _check_same(self, folder: Path, record: Mapping[str, Any]) -> None:
        differing = differing_fields(record["config"], to_record(self.config), experiment_fields)
        own = {"--space": (" ".join(record["space"]), " ".join(map(str, self.axes)))}
        own["--grid"] = (str(record["grid"]), str(self.grid))
        there, here = record.get("code", {}), own_code(self.config)
        own |= {f"the code in {name}": (there[name][:12], here.get(name, "none")[:12]) for name in there}
        differing += [f"{name}: {there} there, {here} here" for name, (there, here) in own.items() if there != here]
        if differing:
            shown = "\n  ".join(differing[:8])
            raise ConfigError(
                f"{folder} holds another sweep:\n  {shown}\nChoose another --workdir, or give the same to go on."
            )


def _changed(record: Any, given: Any, wanted: Any) -> Any:
    """Values of a configuration as they were recorded, but for what is wanted otherwise than it is given now."""
    if not all(isinstance(values, Mapping) for values in (record, given, wanted)):
        return wanted
    names = [name for name in wanted if wanted[name] != given.get(name)]
    return {**record, **{name: _changed(record.get(name), given.get(name), wanted[name]) for name in names}}
