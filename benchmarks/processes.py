"""Processes of their own, for what only a new process shows, and what they tell the one that started them.

A process reports by lines of JSON among whatever else it prints; what it says to stderr is shown if it fails.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jax_cifar.errors import ConfigError
from jax_cifar.progress import print_above
from jax_cifar.signals import ending_with_us

ROOT = Path(__file__).parents[1]
REPORT = "benchmark report: "


def report(value: Any) -> None:
    """In the process that was started: hand over a value that JSON can hold."""
    print(REPORT + json.dumps(value), flush=True)


def shell(commands: str) -> tuple[int, str, str]:
    """Run commands in the folder of this project as a user types them, up to the first that fails.

    Returns the exit code, what they printed, and the last line that they wrote to stderr, which is shown as it comes.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command, pipe = ["bash", "-ec", commands], subprocess.PIPE
    with (
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        ) as process,
        ending_with_us(process, session=True),
        ThreadPoolExecutor(1) as pool,
    ):
        assert process.stdout is not None and process.stderr is not None
        printed, said = pool.submit(process.stdout.read), ""
        for line in process.stderr:
            print_above(line.rstrip("\n"), sys.stderr)
            said = line.strip() or said
        return process.wait(), printed.result(), said


def run_python(
    arguments: Sequence[str], environment: Mapping[str, str], on_report: Callable[[Any], object] | None = None
) -> list[Any]:
    """Run Python on this project to its end, in the folder of the caller; returns what it reported.

    Args:
        arguments: of the interpreter, such as `["-m", "benchmarks.startup"]`.
        environment: of the process; this project is put in front of its PYTHONPATH.
        on_report: told of each report as it comes.

    Raises:
        ConfigError: the process failed; the last line that it wrote to stderr says why.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    env, command = {**environment, "PYTHONPATH": path}, [sys.executable, *arguments]
    reports: list[Any] = []
    with tempfile.TemporaryFile("w+") as errors:
        kept = subprocess.PIPE
        with (
            subprocess.Popen(command, env=env, stdout=kept, stderr=errors, text=True) as process,
            ending_with_us(process),
        ):
            for line in process.stdout or ():
                if line.startswith(REPORT):
                    reports.append(json.loads(line.removeprefix(REPORT)))
                    if on_report is not None:
                        on_report(reports[-1])
        errors.seek(0)
        said = errors.read().strip().rpartition("\n")[2]
    if process.returncode:
        raise ConfigError(f"A process to be timed failed: {said or 'it said nothing'} ({' '.join(arguments)})")
    return reports
