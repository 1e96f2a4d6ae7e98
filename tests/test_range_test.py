"""The learning-rate range test: where a curve is steep, lowest and broken, and what a run makes of it."""

import dataclasses
import math
import runpy
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import Perceptron, small_config

from jax_cifar.config import OptimConfig
from jax_cifar.errors import ConfigError
from jax_cifar.lab.range_test import RangeTest, growing, judge, range_test, share

ROOT = Path(__file__).parents[1]
RATES = 1e-3 * 10 ** (np.arange(100) / 25)  # to just under 10


def curve(noise: float = 0.0, seeds: int = 3) -> np.ndarray:
    """Falls fastest at 0.1, is lowest near 1, and breaks at 5."""
    x = np.log10(RATES)
    losses = 2 - 1 / (1 + np.exp(-6 * (x + 1))) + 0.4 * np.maximum(x, 0) ** 2
    losses = losses + noise * np.random.default_rng(0).normal(size=(seeds, len(RATES)))
    losses[0, RATES > 5] = np.nan
    return losses


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_curve_is_read_through_its_noise(noise):
    found = judge(RATES, curve(noise))
    assert found.steepest == pytest.approx(0.1, rel=0.7)
    assert 0.4 < found.lowest < 2
    assert found.suggestion == pytest.approx(math.sqrt(found.steepest * found.lowest))
    assert found.broke == RATES[RATES > 5][0]
    assert np.isnan(found.smooth[RATES > 5]).all() and np.isfinite(found.smooth[RATES < 5]).all()


def test_a_loss_that_falls_nowhere_suggests_nothing():
    with pytest.raises(ConfigError, match=r"falls nowhere between the rates 0\.001 and 9\.12: lower --low"):
        judge(RATES, np.ones((2, 100)) + np.arange(100) / 100)
    with pytest.raises(ConfigError, match="falls nowhere"):
        judge(RATES, np.full((2, 100), np.nan))


@pytest.mark.parametrize("whole", range(6))
def test_a_run_that_breaks_at_once_is_told_to_begin_lower(whole):
    losses = np.where(np.arange(100) < whole, 1.0, np.nan)
    with pytest.raises(ConfigError, match=f"falls nowhere between the rates 0.001 and {RATES[max(whole - 1, 0)]:.3g}:"):
        judge(RATES, losses[None])
    falling = judge(RATES, np.where(np.arange(100) < 4 + whole, np.exp(-np.arange(100)), np.nan)[None])
    assert falling.lowest == RATES[3 + whole] and falling.broke == RATES[4 + whole]


def test_the_rate_grows_by_one_factor_from_low_to_high_and_all_rates_with_it():
    config = growing(small_config(optim=OptimConfig(name="muon", lr=0.2, aux_lr=0.05)), 1e-4, 10.0, 50)
    rates = [config.optim.lr * share(step, 50, 1e-4, 10.0) for step in range(50)]
    np.testing.assert_allclose(rates, np.geomspace(1e-4, 10.0, 50), rtol=1e-12)
    assert config.optim.aux_lr == pytest.approx(10.0 / 0.2 * 0.05)
    assert config.train.steps == 50 and config.optim.ema_decay == 0


class Bowl(nn.Module):
    """Every logit is a multiple of one weight: with the loss below a quadratic of known curvature."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train):
        weight = self.param("weight", nn.initializers.ones, (), jnp.float32)
        return weight * jnp.ones((len(x), self.num_classes))


CURVATURE = 4.0


def quadratic(logits, targets):
    return CURVATURE / 2 * jnp.square(logits[:, 0])


def test_on_a_quadratic_the_loss_is_smallest_where_gradient_descent_begins_to_diverge():
    train = {"loss": quadratic, "batch_size": 32}
    config = small_config(model=Bowl(), train=train, optim=OptimConfig(lr=0.1, momentum=0.0))
    found = range_test(config, 1e-3, 10.0, 120, 1)
    assert found.lowest == pytest.approx(2 / CURVATURE, rel=0.1)
    assert found.broke is not None and found.broke > found.lowest


def test_the_script_says_the_rate_and_the_command_and_draws(tmp_path, capsys, monkeypatch):
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts/find_lr.py"))
    config = small_config(model=Perceptron())
    monkeypatch.setattr("jax_cifar.cli.load_config", lambda *given: config)
    out = tmp_path / "lr.png"
    given = ["--config", "mine.py", "--train.seed", "3", "--optim.lr", "0.3"]
    words = [*given, "--updates", "40", "--seeds", "2", "--out", str(out)]
    script["main"](words)
    said = capsys.readouterr().out
    assert "| suggested |" in said and out.read_bytes().startswith(b"\x89PNG")
    assert "To train with it: python scripts/train.py --config mine.py --train.seed 3 --optim.lr 0." in said
    for wrong in (["--low", "0"], ["--low", "2", "--high", "1"], ["--updates", "3"], ["--seeds", "0"]):
        with pytest.raises(ConfigError, match=f"{wrong[0]} = "):
            script["main"](["--config", "mine.py", *wrong])


def test_the_command_moves_both_rates_of_muon_as_the_test_did(capsys, monkeypatch):
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts/find_lr.py"))
    config = small_config(optim=OptimConfig(name="muon", lr=0.2, aux_lr=0.05))
    found = RangeTest(RATES, curve(), RATES, 0.0102, 0.0102, None)
    monkeypatch.setattr("jax_cifar.cli.load_config", lambda *given: config)
    monkeypatch.setattr("jax_cifar.lab.range_test.range_test", lambda *given, **tell: found)
    script["main"](["--config", "mine.py", "--optim.aux_lr", "0.05"])
    assert capsys.readouterr().out.endswith("--config mine.py --optim.lr 0.01 --optim.aux_lr 0.0025\n")


def test_images_that_grow_stay_as_small_as_they_are_at_first():
    config = small_config(model={"name": "speedrun_net", "width": 8})
    train = dataclasses.replace(config.train, resolutions=((16, 0.5), (20, 0.5)))
    assert growing(dataclasses.replace(config, train=train), 0.1, 1.0, 20).train.resolutions == ((16, 1.0),)
