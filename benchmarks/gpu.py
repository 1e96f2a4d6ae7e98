"""All that asks for a GPU, in one command and one file: parts in turn, each a process of its own.

python scripts/benchmark.py gpu --json gpu.json --peer airbench94_muon.py
python scripts/benchmark.py gpu --json gpu.json --budget 540       (a machine lent for ten minutes; again: goes on)

A part that FILE has whole stays as it is, so that what is cut off goes on with the same command. A part that does not
fit into what is left of --budget is stopped; what it had by then is kept and marked as not complete, until a later call
gets further with it. FILE holds the parts of one device, commit and set of versions, and either those of --quick or the
others: a call that differs is refused. With --quick every part is tried with tiny settings, on a CPU too: whether it
runs, not how fast. RESULTS.md's rows for a GPU are the tables that this prints.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import REPORT, ROOT, run_python
from benchmarks.tables import read_parts
from jax_cifar.errors import check
from jax_cifar.files import read_json, with_library
from jax_cifar.lab.tables import markdown, spread
from jax_cifar.progress import print_above
from jax_cifar.signals import ending_with_us

SECONDS_TO_STOP = 20  # what a part may take to end, once it is asked to
PARTS = ("resume", "speedrun", "peer", "larger", "train", "step", "startup", "tests")
LARGER = ("cifar10-95", "cifar10-96", "cifar100-75")
TRAINED = ("cifar100_resnet34_200:mixed",)
# For processes that use the GPU at once, of whose memory JAX would take three quarters at its start.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# Of a run: the SHA-256 of all arrays of its last checkpoint, and its test loss.
DIGEST = """
import hashlib, json, sys; import jax, numpy as np; from jax_cifar import load_run
leaves = jax.tree.leaves(load_run(sys.argv[1]).variables)
print(hashlib.sha256(b''.join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest())
print(json.load(open(sys.argv[1] + '/summary.json'))['test_loss'])
"""
TINY = ["--data.name", "synthetic", "--train.steps", "2", "--train.batch_size", "50", "--model.width", "8"]


@dataclass(frozen=True)
class Part:
    """What one part gave."""

    name: str
    complete: bool
    seconds: float  # of the whole part
    result: Any  # what its processes wrote, as JSON values
    said: str = ""  # the last line of one that failed
    origin: Mapping[str, Any] = field(default_factory=dict)  # see `origin_of`

    def __str__(self) -> str:
        state = "" if self.complete else ", NOT complete"
        return f"{self.name}, {self.seconds:.0f} s{state}{f': {self.said}' if self.said else ''}"


class Stopwatch:
    """What is left of the budget, in seconds."""

    def __init__(self, budget: float) -> None:
        self._end = time.monotonic() + budget

    def left(self) -> float:
        """Seconds until a part has to be asked to stop."""
        return self._end - time.monotonic() - SECONDS_TO_STOP


QUICK: dict[str, Any] = {}  # `jobs` makes every part a tiny one


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help=f"{', '.join(PARTS)} (default all)")
    parser.add_argument("--budget", metavar="SECONDS", type=float, default=7200.0, help="for all parts (default 7200)")
    parser.add_argument("--seeds", metavar="N", type=int, default=50, help="runs of the 94 recipe and its peer")
    parser.add_argument("--larger", nargs="+", choices=LARGER, default=LARGER, help="recipes of 5 runs each")
    parser.add_argument("--experiments", nargs="+", metavar="FILE", default=TRAINED, help="configs trained once")
    parser.add_argument("--peer", metavar="FILE", type=Path, help="airbench94_muon.py, to be run beside ours")
    parser.add_argument("--tests", nargs="+", metavar="PATH", default=["tests"], help="which tests (default tests)")
    parser.add_argument("--workers", metavar="N", type=int, default=8, help="processes of the tests (default 8)")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield, if the budget suffices."""
    known = read_parts(options.json, "parts", Part)
    done = {part.name for part in known if part.complete}
    return len(known) + len(jobs(options, Stopwatch(options.budget)).keys() - done)


def measure(options: argparse.Namespace) -> Iterator[Part]:
    """All parts of FILE, and then every part that it does not have whole.

    This process starts no JAX, as it would hold memory of the GPU.
    """
    check(options.seeds >= 1, "--seeds", options.seeds, "it must be at least 1")
    good = options.peer is None or options.peer.is_file()
    check(good, "--peer", str(options.peer), "it must be airbench94_muon.py of KellerJordan/cifar10-airbench")
    watch = Stopwatch(options.budget)
    known, origin = read_parts(options.json, "parts", Part), origin_of(options)
    for part in known:
        differs = [name for name, value in origin.items() if part.origin.get(name) != value]
        told = "; ".join(f"{name} {part.origin.get(name)!r}, here {origin[name]!r}" for name in differs)
        check(not differs, "--json", str(options.json), f"it holds {part.name} of {told}. Name another file")
    yield from known
    done = {part.name for part in known if part.complete}
    for name, play in jobs(options, watch).items():
        if name in done or watch.left() < 0:
            continue
        print_above(f"{name} ...", sys.stderr)
        started = time.monotonic()
        complete, result, said = play()
        yield Part(name, complete, round(time.monotonic() - started, 1), result, said, origin)


def origin_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all parts of one file have in common: whether they are tiny, and what a child says that it runs on."""
    code = "from benchmarks import processes, tables; processes.report(tables.as_json('gpu', []))"
    (head,) = run_python(["-c", code], {**options.environment, **SHARED})
    return {"quick": options.quick, **{name: head[name] for name in ("device", "versions", "commit")}}


def furthest(parts: Sequence[Part]) -> list[Part]:
    """One part of each name: a complete one, else the one that took longest."""
    found: dict[str, Part] = {}
    for part in parts:
        known = found.get(part.name, part)
        found[part.name] = max(known, part, key=lambda each: (each.complete, each.seconds))
    return list(found.values())


Played = tuple[bool, Any, str]


def jobs(options: argparse.Namespace, watch: Stopwatch) -> dict[str, Callable[[], Played]]:
    """What is done for each part, in order; all but what shares the GPU in the user's own environment."""
    quick, environment = options.quick, options.environment
    shared = {**environment, **SHARED}
    seeds, some, rounds = (1, 1, "1") if quick else (options.seeds, 5, "5")
    own = ["--set", *TINY] if quick else []
    models = ["simple_cnn"] if quick else ["simple_cnn", "cifar_cnn", "resnet18", "resnet34", "resnet50"]
    ways = ["--torch", "torch channels_last", *([] if quick else ["torch.compile"])]

    def suite(*arguments: str) -> Callable[[], Played]:
        return lambda: run_suite([*arguments, "--rounds", rounds], watch, environment)

    def recipe(name: str, count: int) -> Callable[[], Played]:
        return lambda: run_suite(["speedrun", "--recipes", name, "--seeds", str(count), *own], watch, environment)

    found: dict[str, Callable[[], Played]] = {}
    for part in options.parts:
        if part == "resume":
            found[part] = lambda: resume(quick, watch, shared)
        elif part == "speedrun":
            found["speedrun cifar10-94"] = recipe("cifar10-94", seeds)
        elif part == "peer" and options.peer is not None:
            found[part] = lambda: peer(options.peer, seeds, watch, environment)
        elif part == "larger":
            found |= {f"speedrun {name}": recipe(name, some) for name in options.larger}
        elif part == "train":
            for file in options.experiments:
                found[f"train {file}"] = lambda file=file: train(file, own[1:], watch, environment)
        elif part == "step":
            if not quick:
                found["step 2000"] = suite("step", "--models", "speedrun_net", "--batch", "2000", *ways)
            found["step 128"] = suite("step", "--models", *models, *ways)
        elif part == "startup":
            found[part] = suite("startup", "--what", "warm" if quick else "cold", "warm", "--torch", "torch")
        elif part == "tests":
            paths = ["tests/test_latency.py"] if quick else options.tests
            found[part] = lambda paths=paths: tests(paths, options.workers, watch, shared)
    return found


def run(command: Sequence[str], watch: Stopwatch, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run Python on this project; exit code, what it printed, and its last line of errors.

    One that the budget does not suffice for gets SIGTERM, and SIGKILL where that does not end it.
    """
    env = with_library(environment)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        arguments = [sys.executable, *command]
        with (
            subprocess.Popen(arguments, env=env, stdout=out, stderr=errors, start_new_session=True) as process,
            ending_with_us(process),
        ):
            try:
                process.wait(max(1.0, watch.left()))
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    process.wait(SECONDS_TO_STOP / 2)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        errors.seek(0)
        return process.returncode, out.read(), errors.read().strip().rpartition("\n")[2]


def run_suite(arguments: Sequence[str], watch: Stopwatch, environment: Mapping[str, str]) -> Played:
    """Another suite of this script, and the JSON that it wrote: partial where it was stopped."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "suite.json")
        suite, *options = arguments
        command = [str(ROOT / "scripts/benchmark.py"), suite, "--json", str(file), *options]
        code, _, said = run(command, watch, environment)
        result = read_json(file) if file.exists() else None
    return code == 0, result, "" if code == 0 else said


def peer(file: Path, runs: int, watch: Stopwatch, environment: Mapping[str, str]) -> Played:
    """The published record's own code."""
    job = json.dumps({"file": str(file), "runs": runs})
    code, out, said = run(["-m", "benchmarks.airbench_peer", job], watch, environment)
    reports = [json.loads(line.removeprefix(REPORT)) for line in out.splitlines() if line.startswith(REPORT)]
    return code == 0, reports, "" if code == 0 else said


def train(config: str, overrides: Sequence[str], watch: Stopwatch, environment: Mapping[str, str]) -> Played:
    """A whole training by scripts/train.py: its summary, or the last line of its log where it was stopped."""
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place, "run")
        command = [str(ROOT / "scripts/train.py"), "--config", config, "--workdir", str(workdir)]
        code, _, said = run([*command, *overrides], watch, environment)
        lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
        summary = read_json(workdir / "summary.json") if (workdir / "summary.json").exists() else None
    return code == 0, {"summary": summary, "log": [json.loads(line) for line in lines]}, "" if code == 0 else said


def tests(paths: Sequence[str], workers: int, watch: Stopwatch, environment: Mapping[str, str]) -> Played:
    """Tests of this repository on this device, but for the slow ones: how many passed, and which did not."""
    where = [str(ROOT / path) for path in paths]
    command = ["-m", "pytest", *where, "-m", "not slow", "-q", "-n", str(workers), "--rootdir", str(ROOT)]
    # Of a plugin that some environments have, whose warnings are errors here.
    code, out, said = run([*command, "-p", "no:cacheprovider", "-p", "no:benchmark"], watch, environment)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", out)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)(.*)", out, re.MULTILINE)
    complete = code in (0, 1) and "passed" in counts
    return complete, {**counts, "failures": failed}, "" if complete else said or out[-300:]


def resume(quick: bool, watch: Stopwatch, environment: Mapping[str, str]) -> Played:
    """Whether a run stopped by SIGTERM and gone on with ends with the bits of one never stopped, and so does one more.

    All at once, with and without `train.deterministic`: a device that others use is where bits would differ.
    """
    modes = {"default": [], "deterministic": ["--train.deterministic", "True"]}
    command = [str(ROOT / "scripts/train.py"), "--config", str(ROOT / "configs/quickstart.py")]

    def flow(name: str, which: str, workdir: Path) -> tuple[int | None, int, str, str]:
        options = [*modes[name], "--train.epochs", "6" if quick else "300", "--workdir", str(workdir)]
        training = [*command, *options]
        stopped = run_until_stopped(training, workdir, watch, environment) if which == "resumed" else None
        code, out, said = run(training, watch, environment)
        return stopped, *((code, out, said) if code else run(["-c", DIGEST, str(workdir)], watch, environment))

    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor() as pool:
        pairs = [(name, which) for name in modes for which in ("first", "again", "resumed")]
        flows = {pair: pool.submit(flow, *pair, Path(place, *pair)) for pair in pairs}
        ends = {pair: future.result() for pair, future in flows.items()}
    if failed := [f"{pair}: {said}" for pair, (_, code, _, said) in ends.items() if code]:
        return False, None, failed[0]
    bits = {pair: out for pair, (_, _, out, _) in ends.items()}
    same = {name: {which: bits[name, which] == bits[name, "first"] for _, which in pairs} for name in modes}
    stops = {name: ends[name, "resumed"][0] for name in modes}
    return True, {"same_bits": same, "stopped_at_step": stops}, ""


def run_until_stopped(
    command: Sequence[str], workdir: Path, watch: Stopwatch, environment: Mapping[str, str]
) -> int | None:
    """Start a run, stop it by SIGTERM after its second epoch; the step it saved, None where it ended before."""
    log, quiet = workdir / "metrics.jsonl", subprocess.DEVNULL
    arguments = [sys.executable, *command]
    starting = subprocess.Popen(arguments, env=with_library(environment), stdout=quiet, stderr=quiet)
    with starting as process, ending_with_us(process):
        while process.poll() is None and watch.left() > 0:
            if log.exists() and '"epoch": 2.' in log.read_text():
                break
            time.sleep(0.02)
        process.terminate()
        code = process.wait()
    steps = [int(folder.name) for folder in (workdir / "checkpoints").glob("[0-9]*")]
    return max(steps) if code == 75 and steps else None


def as_json(suite: str, parts: Sequence[Part]) -> dict[str, Any]:
    """Every part, each with what it ran on."""
    return {"suite": suite, "argv": sys.argv, "parts": [vars(part) for part in furthest(parts)]}


def table(parts: Sequence[Part]) -> str:
    """The tables for RESULTS.md."""
    parts = furthest(parts)
    by_name = {part.name: part for part in parts}
    blocks = [runs_table(by_name), *(text for part in parts if (text := block(part)))]
    rows = [[part.name, "yes" if part.complete else "no", f"{part.seconds:.0f} s", part.said] for part in parts]
    return "\n\n".join([*filter(None, blocks), markdown(["part", "complete", "took", ""], rows)])


def runs_table(parts: Mapping[str, Part]) -> str:
    """The speedruns, and the published record's own code beside them."""
    rows = []
    for name, part in parts.items():
        for case in (part.result or {}).get("cases", ()) if name.startswith("speedrun") else ():
            accuracies, seconds = case["accuracies"]["run"], case["seconds"]["run"]
            setup = f"{case['setup_cold']:.1f} s" if case["setup_cold"] is not None else "-"
            figures = [spread(accuracies, ".2%"), spread(seconds, ".3f"), setup]
            rows.append([case["name"], str(len(seconds)), *figures])
        if name == "peer" and part.result:
            setup, *runs = part.result
            values = ([run[what] for run in runs] for what in ("accuracy", "seconds"))
            figures = [spread(one, form) for one, form in zip(values, (".2%", ".3f"), strict=True)]
            rows.append(["airbench94_muon, PyTorch", str(len(runs)), *figures, f"{setup['setup']:.1f} s"])
    return markdown(["recipe", "n", "test accuracy", "seconds a run", "set-up, cold"], rows) if rows else ""


def block(part: Part) -> str:
    """What a part of another kind gave."""
    if part.name.startswith(("step", "startup")) and part.result:
        from benchmarks.tables import markdown as case_table
        from benchmarks.timing import Case, Timing

        cases = [
            Case(case["name"], {way: Timing(tuple(values)) for way, values in case["seconds"].items()})
            for case in part.result["cases"]
        ]
        return f"{part.name}:\n\n{case_table(cases)}"
    if part.name.startswith("train") and part.result:
        summary = part.result["summary"] or (part.result["log"] or [{}])[-1]
        names = ("test_accuracy", "accuracy", "epoch", "images_per_second", "seconds")
        return f"{part.name}: " + ", ".join(f"{name} {summary[name]}" for name in names if name in summary)
    if part.name in ("resume", "tests") and part.result:
        return f"{part.name}: {json.dumps(part.result)}"
    return ""
