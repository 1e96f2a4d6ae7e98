"""Speedruns: seconds per training to a target accuracy, n seeds of a recipe, as the published records are timed.

A run's seconds are from the end of the run before it: initialisation with whitening, training, and evaluation with the
test-time augmentation that the recipe is judged by (with any, the plain accuracy is evaluated too, and counts). The
device is waited for before the clock is read. All runs share one process and its compiled programs; one more comes
first and is not counted. Set-up, loading the data and compiling, is what that one takes longer than the runs do:
"cold" with an empty cache of compiled programs, "cached" with what the process before left there. The cold process is
one seed from the start of Python to its end. Accuracy is that of the final weights on all test images.

--baseline also trains configs/cifar10_simple_cnn.py in PyTorch, before the recipes, and says how many times the fastest
way's seconds of training are those of a run with its loading of the data.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import machine, trainings
from benchmarks.processes import ROOT, own_programs, report, run_python
from benchmarks.tables import disturbed
from benchmarks.timing import Case, Timing
from jax_cifar.allocator import keep_memory
from jax_cifar.config import Config
from jax_cifar.config.files import apply_overrides, load_config
from jax_cifar.errors import ConfigError, UserError, check
from jax_cifar.lab.tables import markdown, spread
from jax_cifar.progress import print_above

CONFIGS = ROOT / "configs"
BASELINE = f"{CONFIGS}/cifar10_simple_cnn.py"


@dataclass(frozen=True)
class Recipe:
    """An experiment and what it is to reach."""

    config: str  # what `load_config` takes
    target: float | None = None  # test accuracy
    tta: str | None = None  # test-time augmentation that it is judged with; None: what the config says


RECIPES = {
    "cifar10-72": Recipe(f"{CONFIGS}/cifar10_speedrun.py:72", 0.7187, "none"),
    "cifar10-88": Recipe(f"{CONFIGS}/cifar10_speedrun.py:88", 0.88, "none"),
    "cifar10-90": Recipe(f"{CONFIGS}/cifar10_speedrun.py:90", 0.90, "unsure"),
    "cifar10-94": Recipe(f"{CONFIGS}/cifar10_speedrun.py:94", 0.94, "mirror-translate"),
    "cifar10-95": Recipe(f"{CONFIGS}/cifar10_speedrun.py:95", 0.95, "mirror-translate"),
    "cifar10-96": Recipe(f"{CONFIGS}/cifar10_speedrun.py:96", 0.96, "mirror-translate"),
    "cifar100-75": Recipe(f"{CONFIGS}/cifar100_speedrun.py", 0.75, "none"),
    "resnet34-plain": Recipe(f"{CONFIGS}/cifar100_resnet34_200.py:plain", 0.78, "none"),
    "resnet34-mixed": Recipe(f"{CONFIGS}/cifar100_resnet34_200.py:mixed", 0.80, "none"),
    "resnet34-published": Recipe(f"{CONFIGS}/cifar100_resnet34.py"),
}


@dataclass(frozen=True)
class Speedrun(Case):
    """One row: the runs of a recipe, and what comes before them."""

    target: float | None = None
    p_value: float | None = None  # that the mean accuracy is not above the target
    diverged: tuple[int, ...] = ()  # seeds; each counts as accuracy 0
    training_seconds: tuple[float, ...] = ()  # of the runs, without initialisation and evaluation
    setup_cold: float | None = None  # seconds; None where the first run diverged
    setup_cached: float | None = None
    cold_process: float = 0.0  # seconds
    data: float = 0.0  # seconds to load the data
    baseline_seconds: Mapping[str, float] = field(default_factory=dict)  # of training, by PyTorch's way
    baseline_accuracies: Mapping[str, float] = field(default_factory=dict)

    @property
    def times_as_fast(self) -> float | None:
        """The baseline's seconds, in its fastest way, over ours; None without one."""
        ours = self.data + statistics.fmean(self.ours.seconds)
        return min(self.baseline_seconds.values()) / ours if self.baseline_seconds else None


# What --quick asks for where nothing else is said.
QUICK = {"recipe": "cifar10-72", "seeds": 2}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="train with seeds 0 to N-1 (default 5)")
    parser.add_argument(
        "--recipes", nargs="+", choices=RECIPES, metavar="RECIPE", help=f"{', '.join(RECIPES)} (default cifar10-94)"
    )
    parser.set_defaults(recipe="cifar10-94")
    parser.add_argument("--config", metavar="FILE", help="a recipe of your own: a config file, FILE or FILE:VARIANT")
    parser.add_argument("--target", metavar="ACC", type=float, help="test accuracy that --config is to reach")
    parser.add_argument(
        "--baseline",
        nargs="+",
        choices=trainings.TORCH_OPTIONS,
        default=[],
        help="train the plain baseline in PyTorch too, in these ways",
    )
    parser.add_argument(
        "--set", nargs=argparse.REMAINDER, default=[], help="fields of every config, last: --set --train.epochs 8 ..."
    )


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(options.recipes or ([] if options.config else [options.recipe])) + bool(options.config)


def measure(options: argparse.Namespace) -> Iterator[Speedrun]:
    """Measure every recipe, a line for every run going to stderr.

    Needs `options.environment`, the user's own: with what this process sets for itself a child would time another JAX.
    This process starts no JAX before its children are done, as it would hold memory of the GPU.
    """
    check(options.seeds >= 1, "--seeds", options.seeds, "it must be at least 1")
    target = options.target
    if options.config is None:
        check(target is None, "--target", target, "it belongs to --config; the recipes have targets of their own")
    check(target is None or 0 < target <= 1, "--target", target, "it must be greater than 0 and at most 1")
    recipes = [RECIPES[name] for name in options.recipes or ([] if options.config else [options.recipe])]
    recipes += [Recipe(options.config, target)] if options.config else []
    jobs = [{"config": recipe.config, "tta": recipe.tta, "overrides": options.set} for recipe in recipes]
    # All before any is trained; and the libraries' files are in memory then.
    names = [run_child({**job, "seeds": []}, options.environment)[0]["name"] for job in jobs]
    parts = zip(names, recipes, jobs, strict=True)
    baselines = {way: trainings.train(way, BASELINE, 0, options.environment) for way in options.baseline}
    beside = {
        "baseline_seconds": {way: training.seconds for way, training in baselines.items()},
        "baseline_accuracies": {way: training.accuracy for way, training in baselines.items()},
    }
    for name, recipe, job in parts:
        yield replace(speedrun(name, recipe.target, job, options.seeds, options.environment), **beside)


def speedrun(
    name: str, target: float | None, job: Mapping[str, Any], seeds: int, environment: Mapping[str, str]
) -> Speedrun:
    """Train one seed in a process of its own, with an empty cache of programs, then all of them in a second process."""
    first = seeds  # of the seeds, the one that no run has
    with own_programs(environment) as kept:
        started = time.perf_counter()
        cold = run_child({**job, "seeds": [first]}, kept)
        cold_process = time.perf_counter() - started
        (cached, *runs), condition = machine.observe(lambda: run_child({**job, "seeds": [first, *range(seeds)]}, kept))
    seconds = Timing(tuple(run["seconds"] for run in runs), (condition,))
    accuracies = tuple(run["accuracy"] or 0.0 for run in runs)
    whole = [run["seconds"] for run in runs if run["accuracy"] is not None]

    def setup(run: Mapping[str, Any]) -> float | None:
        return None if run["accuracy"] is None or not whole else run["seconds"] - statistics.fmean(whole)

    return Speedrun(
        name,
        {"run": seconds},
        accuracies={"run": accuracies},
        target=target,
        p_value=p_value(accuracies, target),
        diverged=tuple(run["seed"] for run in runs if run["accuracy"] is None),
        training_seconds=tuple(run["training"] for run in runs),
        setup_cold=setup(cold[0]),
        setup_cached=setup(cached),
        cold_process=cold_process,
        data=cached["data"],
    )


def p_value(accuracies: Sequence[float], target: float | None) -> float | None:
    """Of a one-sided t-test that the mean is above the target; None without one, or without a spread to judge by."""
    if target is None or len(set(accuracies)) < 2:
        return None
    from scipy.stats import ttest_1samp

    result: Any = ttest_1samp(accuracies, target, alternative="greater")
    return float(result.pvalue)


def table(cases: Sequence[Speedrun]) -> str:
    """A row per recipe, and a line for every thing that a reader must know beside it."""
    head = ["recipe", "n", "test accuracy", "target", "p", "seconds a run", "set-up, cold", "cached", "cold process"]
    compared = any(case.baseline_seconds for case in cases)
    head += ["data", "PyTorch baseline", "times as fast"] if compared else []
    rows, notes = [], []
    for case in cases:
        rows.append(
            [
                case.name,
                str(len(case.ours.seconds)),
                spread(case.accuracies["run"], ".2%"),
                "" if case.target is None else f"{case.target:.4g}",
                "" if case.p_value is None else f"{case.p_value:.2g}",
                spread(case.ours.seconds, ".3f"),
                *(f"{value:.1f} s" if value is not None else "-" for value in (case.setup_cold, case.setup_cached)),
                f"{case.cold_process:.1f} s",
                *(_comparison(case) if compared else []),
            ]
        )
        if case.diverged:
            seeds = ", ".join(map(str, case.diverged))
            notes.append(f"{case.name}: diverged with seed {seeds}; accuracy 0 and the seconds until then count.")
        notes += [f"{case.name}: {told}."] if (told := disturbed(case)) else []
        if case.setup_cold is None or case.setup_cached is None:
            notes.append(f"{case.name}: no set-up is known, and the first run may have compiled the evaluation.")
    return "\n\n".join([markdown(head, rows), *notes])


def _comparison(case: Speedrun) -> list[str]:
    ways = case.baseline_seconds
    baseline = ", ".join(f"{ways[way]:.1f} s and {case.baseline_accuracies[way]:.2%} ({way})" for way in ways)
    return [f"{case.data:.2f} s", baseline, "" if case.times_as_fast is None else f"**{case.times_as_fast:.1f}**"]


def run_child(job: Mapping[str, Any], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """What `main` reports of the job in a new process; raises the `ConfigError` that stopped it."""
    reports = run_python(["-m", "benchmarks.speedrun", json.dumps(job)], environment, _show)
    if "error" in reports[-1]:
        raise ConfigError(reports[-1]["error"])
    return reports


def _show(run: Mapping[str, Any]) -> None:
    if "seed" in run:
        accuracy = "diverged" if run["accuracy"] is None else f"{run['accuracy']:.2%}"
        line = f"{run['name']}, seed {run['seed']}: {accuracy}, {run['seconds']:.3f} s"
        print_above(line, sys.stderr)


def main(job: Mapping[str, Any]) -> None:
    """In the child: train the job's seeds in turn and report each; of no seeds, report whether they could be."""
    started = time.perf_counter()
    try:
        if job["seeds"]:
            train(job, started)
        else:
            inspect(job)
    except UserError as error:
        report({"error": str(error)})


def load(job: Mapping[str, Any]) -> Config:
    """The job's experiment: the recipe as it is judged, and the user's fields, which have the last word."""
    recipe = load_config(job["config"], ["--eval.tta", job["tta"]] if job["tta"] else [])
    return apply_overrides(recipe, job["overrides"])


def train(job: Mapping[str, Any], started: float) -> None:
    """Report seed by seed: seconds since the report before, the first since `started`."""
    import jax

    from jax_cifar.data import load_data
    from jax_cifar.training.many import ManyResult, train_many

    config = load(job)
    before = time.perf_counter()
    load_data(config.data)  # to time it: `train_many` does it again, as part of the set-up
    data = time.perf_counter() - before
    before = started + data

    def judge(result: ManyResult) -> None:
        nonlocal before
        jax.block_until_ready(jax.live_arrays())
        now = time.perf_counter()
        accuracy = result.test_accuracy if config.eval.tta == "none" else result.test_accuracy_tta
        values = {
            "name": config.name,
            "seed": result.config.train.seed,
            "accuracy": accuracy,
            "training": result.seconds,
            "data": data,
        }
        report({**values, "seconds": now - before})
        before = time.perf_counter()

    configs = [replace(config, train=replace(config.train, seed=seed)) for seed in job["seeds"]]
    train_many(configs, how="sequential", on_result=judge)


def inspect(job: Mapping[str, Any]) -> None:
    """Do all of a training that can find the user's mistakes in little time; what it loads is in memory after it."""
    from jax_cifar.data import load_data
    from jax_cifar.run.clock import Clock
    from jax_cifar.training.replicas import one_run
    from jax_cifar.training.session import Session

    config = load(job)
    Session(config, load_data(config.data), one_run(config), Clock()).start([config])
    report({"name": config.name})


if __name__ == "__main__":
    keep_memory()  # as scripts do
    main(json.loads(sys.argv[1]))
