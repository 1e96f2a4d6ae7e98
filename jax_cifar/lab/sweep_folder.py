"""What a sweep is, and the folder that belongs to it: the same sweep goes on there, and no other."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_cifar.config import Config
from jax_cifar.config.files import OWN_DATA, differing_fields, experiment_fields, to_record
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

    @property
    def digest(self) -> str:
        """The same on every machine that has images of one's own at the same place, and of no other sweep."""
        values = to_record(self.config)
        what = {name: value for name, value in values.items() if name not in ("log", "checkpoint", "eval")}
        place = values["data"]["dir"] if self.config.data.name in OWN_DATA else None
        what |= {"data": {**values["data"], "dir": place}, "distributed": None}
        what = {"config": what, "space": list(map(str, self.axes)), "grid": self.grid}
        code = own_code(self.config)
        return sha256_of_json(what | ({"code": code} if code else {}))[:12]

    @property
    def name(self) -> str:
        """In a store that other sweeps may be kept in."""
        return f"{self.config.name}-{self.digest}"

    def make_folder(self, workdir: str | Path | None) -> Path:
        """The folder of this sweep, made where it is missing; default: runs/<config name>-sweep/<time>.

        Raises:
            ConfigError: another sweep, or something else, has it, or it cannot be written.
        """
        default = Path("runs") / f"{self.config.name}-sweep" / time.strftime("%Y%m%d-%H%M%S")
        folder, way_out = expand(default if workdir is None else workdir), "Choose another --workdir"
        try:
            folder.mkdir(parents=True, exist_ok=workdir is not None)
            if (folder / RECORD).exists():
                self._check_same(folder, read_record(folder / RECORD))
            elif any(folder.glob("*.json")) or (folder / "sweep.db").exists():
                raise ConfigError(f"{folder} is not the folder of a sweep: it holds no {RECORD}. {way_out}.")
            else:
                self.write(folder)
        except FileExistsError:
            raise ConfigError(f"{folder} is there already. {way_out}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder / RECORD} is damaged ({error}). {way_out}.") from None
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}. {way_out}.") from None
        return folder

    def write(self, folder: Path, **results: Any) -> None:
        """Write sweep.json: what this is, and what has come of it."""
        what = {"config": to_record(self.config), "space": list(map(str, self.axes)), "grid": self.grid}
        what["code"] = own_code(self.config)
        write_record(folder / RECORD, {**what, **results})

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
