"""Both frameworks learn equally well: several seeds each, and their mean test accuracies equal to within a margin.

Single runs prove nothing, since every seed ends elsewhere. The hypothesis to be rejected is that the means differ by
the margin or more. It is at least three standard errors of the difference, and far below what the planted fault costs.
"""

import os
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from equivalence import compare_means
from scipy import stats

import torch_ref.train
from jax_cifar import load_config, train_many
from jax_cifar.config import Config

CONFIGS = Path(__file__).parents[1] / "configs"
HAS_CIFAR = "JAX_CIFAR_DATA" in os.environ
QUIET = ["--eval.every", "0", "--checkpoint.every", "0", "--log.tensorboard", "false", "--log.plots", "false"]


class Experiment(NamedTuple):
    """A recipe, how many seeds each framework gets, and the margin in points (hundredths) of accuracy."""

    config: str
    overrides: list[str]
    seeds: int
    margin: float


DIGITS = Experiment(
    "quickstart.py",
    ["--optim.lr", "0.02", "--train.epochs", "5", "--train.batch_size", "32"],
    seeds=4,
    margin=3.0,
)
SHORT = Experiment(
    "cifar10_simple_cnn.py",
    ["--data.subset", "2000", "--model.width", "16", "--model.norm", "batch", "--train.epochs", "6"]
    + ["--train.batch_size", "64", "--schedule.name", "cosine"],
    seeds=6,
    margin=3.0,
)
WHOLE = Experiment("cifar10_simple_cnn.py", [], seeds=3, margin=2.5)


def config_of(experiment: Experiment, seed: int, *more: str) -> Config:
    overrides = [*QUIET, *experiment.overrides, "--train.seed", str(seed), *more]
    return load_config(CONFIGS / experiment.config, overrides)


def jax_accuracies(experiment: Experiment) -> list[float]:
    """Test accuracy in points, for every seed."""
    runs = train_many([config_of(experiment, seed) for seed in range(experiment.seeds)])
    return [100 * (run.test_accuracy or 0.0) for run in runs]


def torch_accuracies(experiment: Experiment, *more: str) -> list[float]:
    configs = [config_of(experiment, seed, *more) for seed in range(experiment.seeds)]
    return [100 * torch_ref.train.train(config, verbose=False).test_accuracy for config in configs]


needs_cifar = pytest.mark.skipif(not HAS_CIFAR, reason="needs the real CIFAR in $JAX_CIFAR_DATA")


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("short", [DIGITS, pytest.param(SHORT, marks=needs_cifar)])
def test_a_short_recipe_ends_equally_well_and_a_fault_is_told_apart(short):
    ours, theirs = jax_accuracies(short), torch_accuracies(short)
    found = compare_means(ours, theirs)
    assert found.within(short.margin), (found, ours, theirs)
    assert 3 * found.standard_error <= short.margin
    # As where the momentum is lost at every step.
    without_momentum = torch_accuracies(short._replace(seeds=2), "--optim.momentum", "0", "--optim.nesterov", "false")
    faulty = compare_means(ours, without_momentum)
    assert not faulty.within(short.margin), faulty


@pytest.mark.slow
@pytest.mark.optimised
@needs_cifar
def test_the_whole_recipe_ends_equally_well():
    ours, theirs = jax_accuracies(WHOLE), torch_accuracies(WHOLE)
    found = compare_means(ours, theirs)
    assert found.within(WHOLE.margin), (found, ours, theirs)


ONE, OTHER = [71.2, 72.5, 71.8, 72.1, 70.9], [71.9, 71.5, 72.6, 71.1]


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("level", [0.01, 0.05])
def test_the_interval_decides_as_two_one_sided_tests_do(margin, level):
    above: Any = stats.ttest_ind([x + margin for x in ONE], OTHER, alternative="greater", equal_var=False)
    below: Any = stats.ttest_ind([x - margin for x in ONE], OTHER, alternative="less", equal_var=False)
    found = compare_means(ONE, OTHER, level)
    assert found.within(margin) == (max(above.pvalue, below.pvalue) < level)
    assert found.difference == pytest.approx(statistics.mean(ONE) - statistics.mean(OTHER))


def test_a_difference_that_was_not_found_is_no_equivalence():
    scattered, other = [60.0, 80.0, 71.0], [75.0, 62.0, 78.0]
    found: Any = stats.ttest_ind(scattered, other)
    assert found.pvalue > 0.5
    assert not compare_means(scattered, other).within(3.0)
    assert compare_means(ONE, OTHER).within(1.0)
    assert not compare_means(ONE, [x + 1 for x in OTHER]).within(1.0)
