"""Training on the real images, where they are at hand."""

import os
from pathlib import Path

import pytest

from jax_cifar import load_config, train

CONFIGS = Path(__file__).parents[1] / "configs"
NARROW = ["--model.width", "4", "--train.batch_size", "16"]
pytestmark = pytest.mark.skipif("JAX_CIFAR_DATA" not in os.environ, reason="needs the real CIFAR in $JAX_CIFAR_DATA")


@pytest.mark.slow
@pytest.mark.optimised
def test_256_images_are_learned_by_heart(tmp_path):
    config = load_config(CONFIGS / "overfit_tiny.py", ["--eval.every", "0"])
    assert train(config, tmp_path).summary["train_accuracy"] >= 0.995


@pytest.mark.slow
@pytest.mark.optimised
def test_the_plain_baseline_learns_in_its_first_steps(tmp_path):
    config = load_config(CONFIGS / "cifar10_simple_cnn.py", ["--train.steps", "200", "--eval.every", "0"])
    # Chance is 10 %, and one run reached 45 % after 150 steps; what whole runs reach stands in RESULTS.md.
    assert train(config, tmp_path).report.accuracy > 0.42


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cifar100_ablation.py:adam", ["--model.width", "4"]),
        ("cifar10_tiny_cnn.py", ["--model.width", "4"]),
        ("cifar10_speedrun.py", ["--train.batch_size", "50"]),
        ("cifar10_speedrun.py:96", NARROW),
        ("cifar100_speedrun.py", NARROW),
        ("cifar100_cnn.py", ["--model.width", "8"]),
        ("cifar100_ablation.py:sgd_decay", ["--model.width", "4"]),
        ("cifar100_ablation.py:adamw", ["--model.width", "4"]),
        ("cifar100_resnet34.py:strong_imagenet", NARROW),
        ("cifar100_resnet34_200.py:mixed", NARROW),
        ("cifar100_resnet_modern.py:resnet18", NARROW),
    ],
)
def test_every_recipe_takes_its_first_steps(tmp_path, name, overrides):
    small = [
        "--train.steps",
        "3",
        "--data.subset",
        "1000",
        "--schedule.unit",
        "steps",
        "--eval.tta",
        "none",
        "--log.plots",
        "false",
    ]
    config = load_config(CONFIGS / name, [*small, *overrides])
    result = train(config, tmp_path)
    assert result.summary["steps"] == 3
    assert result.report.count == 10_000
