"""Processes of their own, for what only a new process shows, and what they tell the one that started them.

A process reports by lines of JSON among whatever else it prints; what it says to stderr is shown if it fails.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jax_cifar.allocator import give_back
from jax_cifar.errors import ConfigError
from jax_cifar.files import user_cache_dir
from jax_cifar.progress import print_above
from jax_cifar.signals import ending_with_us

ROOT = Path(__file__).parents[1]
REPORT = "benchmark report: "
SECONDS_TO_REST = 0.1  # after which a worker that is not asked again gives its free memory back
spent: dict[int, float] = {}  # CPU seconds of every `worker` that lives, as it told when it last answered


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
    reports: list[Any] = []
    with _python(arguments, environment) as (process, _):
        for value in _reports(process):
            reports.append(value)
            if on_report is not None:
                on_report(value)
    return reports


def keeping_programs(environment: Mapping[str, str], caches: Path) -> dict[str, str]:
    """An environment whose processes keep compiled programs as a user's do, in this folder."""
    kept = {**environment, "XDG_CACHE_HOME": str(caches)}
    # It would take the place of the user's cache folder, and whole programs (`backend.stored`) are kept there alone.
    kept.pop("JAX_COMPILATION_CACHE_DIR", None)
    return kept


@contextlib.contextmanager
def own_programs(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Inside, such an environment with a folder that has none at first, and goes with the block.

    Images, which lie in the user's cache folder too, stay there: neither is loaded nor decoded anew for this.
    """
    from jax_cifar.data.cifar import ENVIRONMENT_VARIABLE, default_data_dir  # not needed by a process that is timed

    decoded = user_cache_dir() / "decoded"
    with tempfile.TemporaryDirectory() as caches:
        own = Path(caches, user_cache_dir().name)
        own.mkdir()
        if decoded.is_dir():
            (own / decoded.name).symlink_to(decoded.resolve())
        yield {**keeping_programs(environment, Path(caches)), ENVIRONMENT_VARIABLE: str(default_data_dir())}


@contextlib.contextmanager
def worker(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Callable[[int], None]]:
    """Inside, Python runs a program of this project that calls `serve`: what is given has it work, so many times.

    The first call waits until it is ready. Arguments and errors are those of `run_python`.
    """
    with _python(arguments, environment, stdin=subprocess.PIPE) as (process, failure):
        assert process.stdin is not None
        requests, answers = process.stdin.fileno(), _reports(process)

        def work(count: int) -> None:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and gives no answer
                os.write(requests, f"{count}\n".encode())
            seconds = next(answers, None)
            if seconds is None:
                raise failure()
            spent[process.pid] = seconds

        try:
            yield work
        finally:
            spent.pop(process.pid, None)


def serve(work: Callable[[int], object]) -> None:
    """In a process that `worker` started: do the work as often as asked, until nobody asks any more.

    Who has a rest leaves its free memory to the others. Four ways to train ResNet-50 kept 17 GB of 23; where memory is
    scarce it goes back every second, and an update by PyTorch, which frees all it has each time, took 3.4 s for 2.8.
    """
    rest = threading.Timer(SECONDS_TO_REST, give_back)
    for line in sys.stdin:
        rest.cancel()
        work(int(line))
        report(sum(os.times()[:4]))
        rest = threading.Timer(SECONDS_TO_REST, give_back)
        rest.daemon = True
        rest.start()


def _reports(process: "subprocess.Popen[str]") -> Iterator[Any]:
    for line in process.stdout or ():
        if line.startswith(REPORT):
            yield json.loads(line.removeprefix(REPORT))


@contextlib.contextmanager
def _python(
    arguments: Sequence[str], environment: Mapping[str, str], stdin: int | None = None
) -> Iterator[tuple["subprocess.Popen[str]", Callable[[], ConfigError]]]:
    """Start Python on this project and wait for its end; the second is what to raise if it has ended too early."""
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    env, command = {**environment, "PYTHONPATH": path}, [sys.executable, *arguments]
    with tempfile.TemporaryFile("w+") as errors:

        def failure() -> ConfigError:
            process.wait()
            errors.seek(0)
            # One that is killed, as where memory runs out, has no last words.
            said = errors.read().strip().rpartition("\n")[2] or f"it said nothing, exit code {process.returncode}"
            return ConfigError(f"A process to be timed failed: {said} ({' '.join(arguments)})")

        streams = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, env=env, text=True, **streams) as process, ending_with_us(process):
            yield process, failure
        if process.returncode:
            raise failure()
