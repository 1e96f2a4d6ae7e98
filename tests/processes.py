"""A process that is given signals at chosen moments of its work, and how it ended.

`run_script("train", [...], signals=[("compile", "SIGTERM")])` starts scripts/train.py; when it comes to a stage, the
process is sent the signals of that stage, and waits there as a long stage would, or for ever where it should.
"""

import importlib.abc
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]

# Where a stage begins: a module that is about to be imported, or a function of one that is about to be called.
STAGES = {
    "import numpy": "numpy",
    "import jax": "jax",
    "import flax": "flax.linen",
    "import orbax": "orbax.checkpoint",
    "data": "jax_cifar.data:load_data",
    "start": "jax_cifar.training.session:Session.start",
    "folder": "jax_cifar.files:write_json",
    "compile": "jax_cifar.training.session:Session.compile",
    "train": "jax_cifar.training.session:Session.advance",
    "evaluate": "jax_cifar.evaluation.predict:predict_logits",
    "save": "jax_cifar.run.checkpoint:write_arrays",
    "final": "jax_cifar.training.trainer:Trainer.finish",
    "draw": "jax_cifar.telemetry.plots:draw_plots",
    "load": "jax_cifar.run.reading:read_variables",
    "report": "jax_cifar.lab.tables:markdown",
}


class Signal(NamedTuple):
    """A signal that arrives when a stage is entered for the `count`-th time; the stage then lasts `seconds` longer."""

    stage: str
    name: str
    count: int = 1
    seconds: float = 0.0


class Ended(NamedTuple):
    """How a process ended, and how long after its first signal (None: there was none)."""

    code: int
    out: str
    err: str
    seconds_to_stop: float | None


def run_script(
    script: str,
    arguments: Sequence[object],
    signals: Sequence[Signal] = (),
    ignored: Sequence[str] = (),
    timeout: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run scripts/<script>.py to its end, or kill it after `timeout` seconds (exit code -9).

    `ignored` are signals that the parent has set to be ignored, as nohup does.
    """
    plan = json.dumps({"signals": signals, "ignored": ignored})
    command = [sys.executable, __file__, plan, str(ROOT / "scripts" / f"{script}.py"), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        ended = time.time()
    sent = [line for line in err.splitlines() if line.startswith("signal sent at ")]
    err = "".join(line for line in err.splitlines(keepends=True) if line.rstrip() not in sent)
    return Ended(process.returncode, out, err, ended - float(sent[0].split()[-1]) if sent else None)


class _Stages(importlib.abc.MetaPathFinder):
    """Sends the signals: on the way to a module, or from a function that it wraps once its module is there."""

    def __init__(self, signals: Sequence[Signal]) -> None:
        self._signals = [(*STAGES[one.stage].split(":"), one) for one in signals]
        self._entered: dict[str, int] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Nothing of its own: what the finders after it say, with the functions wrapped."""
        for module, *function, one in self._signals:
            if module == name and not function:
                self._enter(one.stage)
        functions = {function[0]: one.stage for module, *function, one in self._signals if function and module == name}
        if not functions:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            for function, stage in functions.items():
                self._wrap(module, function, stage)

        spec.loader.exec_module = exec_module
        return spec

    def _wrap(self, module: Any, function: str, stage: str) -> None:
        *owner, name = function.split(".")
        owner = getattr(module, owner[0]) if owner else module
        inner = vars(owner)[name]

        def staged(*arguments: Any, **options: Any) -> Any:
            self._enter(stage)
            return inner(*arguments, **options)

        setattr(owner, name, staged)

    def _enter(self, stage: str) -> None:
        self._entered[stage] = self._entered.get(stage, 0) + 1
        for *_, one in self._signals:
            if (one.stage, one.count) == (stage, self._entered[stage]):
                os.write(2, f"signal sent at {time.time()}\n".encode())
                os.kill(os.getpid(), signal.Signals[one.name])
                time.sleep(one.seconds)


def _main() -> None:
    plan = json.loads(sys.argv[1])
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        # A shell's background job would have had Ctrl-C ignored, and all that it starts.
        usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(signal.Signals[name], signal.SIG_IGN if name in plan["ignored"] else usual)
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.meta_path.insert(0, _Stages([Signal(*one) for one in plan["signals"]]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _main()
