"""Many runs in one process: each is what `train` makes of its setting, whichever way, and all share one compilation."""

import json
import logging
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import Perceptron, a_lot, largest_difference, loop, same_bits, tiny_config, with_fields

from jax_cifar import cli
from jax_cifar.errors import ConfigError
from jax_cifar.ops.conv import conv2d
from jax_cifar.training import many
from jax_cifar.training.many import ManyResult, train_many

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_many.py"


@pytest.fixture(scope="module")
def told() -> list[float]:
    """How many members of the lot are said to be trained, time after time."""
    return []


@pytest.fixture(scope="module")
def lot(told: list[float]) -> list[ManyResult]:
    return train_many(a_lot(model=Perceptron(), eval={"tta": "mirror"}), how="sequential", on_update=told.append)


def test_a_member_has_the_bits_of_a_run_of_its_own(lot, tmp_path):
    config = a_lot(model=Perceptron(), eval={"tta": "mirror"})[1]
    assert lot[1].config == config
    alone = loop.train(config, tmp_path)
    assert same_bits(lot[1].state, jax.device_get(alone.state))
    assert lot[1].report is not None and lot[1].report.to_dict() == alone.report.to_dict()
    assert lot[1].report.count == len(loop.load_data(config.data).test.labels) == 500
    figures = (lot[1].test_accuracy, lot[1].test_loss, lot[1].test_accuracy_tta, lot[1].validation_accuracy)
    names = ("test_accuracy", "test_loss", "test_accuracy_tta", "best_validation_accuracy")
    assert figures == tuple(alone.summary[name] for name in names)
    assert lot[1].seconds > 0


def test_it_is_told_within_a_member_too_how_far_the_lot_is(lot, told):
    assert told == sorted(told)
    assert {0.5, 1.0, 1.5, 2.0, 2.5} < set(told)
    assert told[-1] == len(lot)


def test_all_in_one_call_gives_the_same_up_to_rounding(lot):
    results = train_many(a_lot(model=Perceptron()), how="vmap", chunk=2)  # the second call lacks one
    expected = [(0, 0.05, 0.9, 1e-3), (3, 0.02, 0.7, 1e-2), (0, 0.02, 0.9, 1e-3)]
    assert [tuple(one.setting.values()) for one in results] == expected
    for one, other in zip(results, lot, strict=True):
        assert largest_difference(one.state, other.state) < 1e-4
        assert one.test_loss == pytest.approx(other.test_loss, abs=1e-4)
        assert one.report is not None and one.report.count == 500


@pytest.mark.parametrize(("channels", "strides"), [((8, 8), (2, 2)), ((64, 128), (1, 1))])
def test_convolutions_and_their_gradients_keep_members_apart(channels, strides):
    key = jax.random.key(0)
    images = jax.random.normal(key, (3, 2, 6, 6, channels[0]))
    kernels = jax.random.normal(key, (3, 3, 3, *channels)) / channels[0]

    def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(conv2d(images, kernel, strides, ((1, 1), (1, 1)))))

    gradients = jax.value_and_grad(loss, (0, 1))
    together, one = jax.jit(jax.vmap(gradients))(images, kernels), jax.jit(gradients)
    for i in range(3):
        alone = one(images[i], kernels[i])
        assert largest_difference(jax.tree.map(lambda x, i=i: x[i], together), alone) < 1e-3


def test_the_second_member_compiles_nothing(caplog):
    compiled = []

    def count(_: ManyResult) -> None:
        compiled.append([record.getMessage() for record in caplog.records if "XLA compilation" in record.getMessage()])

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train_many(a_lot(model=Perceptron()), how="sequential", on_result=count)
    for name in ("any_number", "predict"):
        assert sum(f"jit({name})" in line for line in compiled[0]) >= 1
    assert compiled[1:] == compiled[:1] * 2


def test_one_that_diverges_stops_no_other():
    config = tiny_config(model=Perceptron(), log={"every": 1})
    rates = [with_fields(config, optim={"lr": lr}) for lr in (1e30, 0.02)]
    bad, good = train_many(rates, how="vmap")
    figures = (bad.test_accuracy, bad.test_loss, bad.test_accuracy_tta, bad.validation_accuracy, bad.report)
    assert figures == (None,) * 5
    assert bad.diverged_at == 2  # the warm-up's first rate is 0
    assert good.diverged_at is None and good.test_loss is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"width": 8}}, r"model\.width differs within the lot: 4 and 8 .*Only these may differ: train.seed"),
        ({"train": {"seed": 1, "batch_size": 16}}, r"train\.batch_size differs within the lot: 32 and 16"),
        ({"optim": {"ema_decay": 0.5}}, r"optim\.ema_decay differs"),
        ({}, "Numbers 0 and 1 of the lot are the same"),
    ],
)
def test_what_may_not_differ_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        train_many([tiny_config(), with_fields(tiny_config(), **change)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"configs": []}, r"configs = \[\] is not allowed: give at least one"),
        ({"how": "quickly"}, "how = 'quickly' is not allowed"),
        ({"chunk": 2}, "chunk = 2 is not allowed"),
        ({"how": "vmap", "chunk": 0}, "chunk = 0 is not allowed"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(arguments, message):
    with pytest.raises(ConfigError, match=message):
        train_many(**{"configs": [tiny_config()]} | arguments)


@pytest.mark.parametrize(
    ("sections", "change", "message"),
    [
        ({"optim": {"name": "muon", "nesterov": False}}, {"optim": {"lr": 0.01}}, "aux_lr would be scaled"),
        (
            {"schedule": {"name": "onecycle", "warmup": 0.0}},
            {"optim": {"momentum": 0.5}},
            "schedule.cycle_momentum",
        ),
        ({"schedule": {"eta_min": 0.01}}, {"optim": {"lr": 0.001}}, "schedule.eta_min = 0.01"),
        ({"train": {"debug_nans": True}}, {"train": {"seed": 2}}, "train.debug_nans"),
    ],
)
def test_a_setting_that_would_mean_something_else_is_refused(sections, change, message, monkeypatch):
    monkeypatch.setattr(many, "train_group", lambda *_: pytest.fail("trained"))
    config = with_fields(tiny_config(**sections), train={"seed": 1})
    with pytest.raises(ConfigError, match=message):
        train_many([config, with_fields(config, **change)], how="sequential")


def test_momentum_of_adam_is_b1():
    adamw = {"name": "adamw", "momentum": 0.9, "b1": 0.8, "nesterov": False}
    config = tiny_config(model=Perceptron(), optim=adamw)
    first, second = train_many([config, with_fields(config, optim={"b1": 0.5})], how="sequential")
    assert (first.setting["momentum"], second.setting["momentum"]) == (0.8, 0.5)
    assert largest_difference(first.state.params, second.state.params) > 0


CONFIG = """
from jax_cifar.config import *

def get_config():
    return Config(
        name="digits_tiny",
        data=DataConfig(name="digits", subset=64),
        model=ModelConfig(name="tiny_cnn", width=4),
        train=TrainConfig(steps=2, batch_size=32, compilation_cache=False),
    )
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "digits_tiny.py"
    file.write_text(CONFIG)

    def call(*options: str) -> None:
        runpy.run_path(str(SCRIPT))["main"](["--config", str(file), *options])

    return call


def test_the_script_trains_every_combination_with_every_seed(script, tmp_path, capsys):
    path = tmp_path / "all.json"
    script("--seeds", "2", "--lr", "0.05", "1e30", "--train.seed", "4", "--json", str(path), "--log.every", "1")
    printed = capsys.readouterr()
    head, _, *rows = [line.strip("| ").split(" | ") for line in printed.out.splitlines()]
    assert head == ["lr", "momentum", "weight decay", "seeds", "test accuracy", "test loss", "training time"]
    assert [row[:4] for row in rows] == [["0.05", "0.9", "0", "2"], ["1e+30", "0.9", "0", "2, 2 diverged"]]
    assert re.fullmatch(r"\d+\.\d\d% \(sd \d+\.\d\d%\)", rows[0][4]) and rows[1][4:6] == ["-", "-"]
    assert "4 of 4 (sequential): seed 5, lr 1e+30, momentum 0.9, decay 0: diverged" in printed.err
    written = json.loads(path.read_text())
    assert {"config", "how", "seconds", "device", "environment"} < written.keys()
    assert [(one["seed"], one["lr"]) for one in written["results"]] == [(4, 0.05), (5, 0.05), (4, 1e30), (5, 1e30)]
    accuracies = [one["test_accuracy"] for one in written["results"]]
    assert rows[0][4].startswith(f"{np.mean(accuracies[:2]):.2%}") and accuracies[2:] == [None, None]


def test_the_time_is_that_of_the_runs_that_did_not_diverge():
    figures = {"test_accuracy": 0.5, "test_loss": 1.0, "test_accuracy_tta": None, "validation_accuracy": None}

    def result(seed: int, lr: float, seconds: float, diverged_at: int | None = None) -> SimpleNamespace:
        setting = {"seed": seed, "lr": lr, "momentum": 0.9, "weight_decay": 0.0}
        return SimpleNamespace(setting=setting, seconds=seconds, diverged_at=diverged_at, **figures)

    runs = [result(0, 0.1, 8.0), result(1, 0.1, 2.0, 3), result(0, 9.0, 2.0, 3)]
    *_, some, none = runpy.run_path(str(SCRIPT))["table"](runs, "momentum").splitlines()
    assert some.endswith(" | 2, 1 diverged | 50.00% | 1.0000 | 8 s |") and none.endswith(
        " | 1, 1 diverged | - | - | - |"
    )


def test_the_script_prints_what_had_finished_when_it_is_stopped(script, tmp_path, capsys, monkeypatch):
    train_group = many.train_group
    calls = []

    def stop_at_the_second(session, configs, **look):
        if calls:
            raise KeyboardInterrupt
        calls.append(configs)
        return train_group(session, configs, **look)

    monkeypatch.setattr(many, "train_group", stop_at_the_second)
    monkeypatch.setattr(sys, "argv", ["train_many"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda _: script("--seeds", "3", "--json", str(tmp_path / "some.json")))
    assert stopped.value.code == 75
    assert "| 0.1 | 0.9 | 0 | 1 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "some.json").read_text())["results"]) == 1


@pytest.mark.parametrize("to_file", [True, False])
def test_a_result_is_in_the_file_before_it_is_shown_and_a_signal_is_told_of_it(
    script, tmp_path, capsys, monkeypatch, to_file
):
    path, told = tmp_path / "some.json", []

    def remember(what_remains):
        kept = len(json.loads(path.read_text())["results"]) if to_file else None
        told.append((what_remains, kept, capsys.readouterr().err.count("(sequential)")))

    monkeypatch.setattr("jax_cifar.signals.at_end_say", remember)
    script("--seeds", "2", *(["--json", str(path)] if to_file else []))
    where = f"in {path}" if to_file else "shown"
    kept = [1, 2] if to_file else [None, None]
    assert told == [(f"Results {where}: 1 of 2.", kept[0], 0), (f"Results {where}: 2 of 2.", kept[1], 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds 0 is not allowed"),
        (["--json", "/nowhere/at/all.json"], "--json = '/nowhere/at/all.json' is not allowed"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--lr", "0.1", "0.1"], "are the same"),
        (["--optim.rate", "0.1"], "optim.rate is not a field"),
    ],
)
def test_the_script_refuses_in_one_message(script, options, message):
    with pytest.raises(ConfigError, match=message):
        script(*options)
