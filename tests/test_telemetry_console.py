"""The console: exact lines where there is no terminal, and a bar that survives any terminal."""

import dataclasses
import functools
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from jax_cifar.augment import HorizontalFlip
from jax_cifar.config import Config, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from jax_cifar.signals import last_acts
from jax_cifar.telemetry.console import Console
from jax_cifar.telemetry.describe import describe, describe_config

FIGURES: dict[str, Any] = {"loss": 1.25, "accuracy": 0.5, "lr": 0.02, "images_per_second": 3210.4}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def plain_lines(stream):
    return stream.getvalue().splitlines()


def run(console, clock, steps=300):
    console.start(steps, 100)
    for step in range(10, steps + 1, 10):
        clock.seconds += 1
        console.update(step, **FIGURES)
        if step % 100 == 0:
            console.row(step, **FIGURES, eval_loss=1.5, eval_accuracy=0.4)


def test_plain_table(clock):
    stream = io.StringIO()
    with Console(stream, now=clock) as console:
        run(console, clock)
    assert plain_lines(stream) == [
        "",
        " epoch     step  train loss  train acc   test loss   test acc        lr  images/s     time     left",
        "   1.0      100      1.2500     50.00%      1.5000     40.00%      0.02     3,210     0:10     0:20",
        "   2.0      200      1.2500     50.00%      1.5000     40.00%      0.02     3,210     0:20     0:10",
        "   3.0      300      1.2500     50.00%      1.5000     40.00%      0.02     3,210     0:30     0:00",
    ]


def test_plain_table_shows_a_slow_epoch_alive(clock):
    stream = io.StringIO()
    console = Console(stream, now=clock)
    console.start(1000, 100, split="val")
    for step in range(10, 70, 10):
        clock.seconds += 5
        console.update(step, **FIGURES)
    lines = plain_lines(stream)
    assert " val acc" in lines[1]
    assert [line.split()[1] for line in lines[2:]] == ["30", "60"]
    assert lines[2].split()[4:6] == ["-", "-"]


def test_a_first_sign_of_life_comes_soon_and_once_where_the_first_row_is_far_away(clock):
    stream = io.StringIO()
    console = Console(stream, now=clock)
    console.start(1000, 500, initial_step=100)
    for step in range(100, 140):
        console.show_alive(step)
        clock.seconds += 0.5
    assert plain_lines(stream) == ["step 106 of 1,000 after 0:03, about 7:27 left"]

    stream = io.StringIO()
    console = Console(stream, now=clock)
    console.start(1000, 1)
    clock.seconds += 1
    console.row(1, **FIGURES)
    for step in range(2, 40):
        console.show_alive(step)
        clock.seconds += 0.5
    assert "after" not in stream.getvalue()


def test_a_process_that_ends_at_once_gives_the_cursor_back(monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm")
    before = list(last_acts)
    with (tmp_path / "terminal").open("w+") as file:
        monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
        console = Console(file, width=80)
        console.start(10, 5)
        (act,) = last_acts[len(before) :]
        act()
        assert "\x1b[?25h" in (tmp_path / "terminal").read_text()
        console.close()
        assert last_acts == before


def test_a_line_that_a_row_would_double_is_left_out(clock):
    stream = io.StringIO()
    console = Console(stream, now=clock)
    console.start(1000, 100)
    clock.seconds = 40
    console.update(100, **FIGURES, row_follows=True)
    console.row(100, **FIGURES)
    assert [line.split()[1] for line in plain_lines(stream)[2:]] == ["100"]


def test_time_left_ignores_compilation_and_earlier_processes(clock):
    stream = io.StringIO()
    console = Console(stream, now=clock)
    console.start(1000, 100, initial_step=500)
    clock.seconds = 3600
    console.update(510, **FIGURES)
    clock.seconds += 90
    console.row(600, **FIGURES)
    assert plain_lines(stream)[-1].split()[-2:] == ["1:01:30", "6:40"]


def test_time_left_goes_by_the_work_that_is_left(clock):
    stream = io.StringIO()
    console = Console(stream, now=clock)

    # The last 500 updates cost four times as much, and a last evaluation as much as 100 of the first.
    def work(step, evaluated):
        return min(step, 500) + 4 * max(step - 500, 0) + 100 * (step == 1000 and evaluated)

    console.start(1000, 100, work=work)
    for step in range(0, 500, 100):
        console.row(step, **FIGURES)
        clock.seconds += 10
    assert plain_lines(stream)[-1].split()[-1] == "3:40"


def test_an_evaluation_takes_time_and_is_no_work_before_it_is_done(clock):
    stream = io.StringIO()
    console = Console(stream, now=clock)
    # An update takes a second, an evaluation every fourth of them ten: 42 s are left after the first of four rows.
    console.start(16, 4, work=lambda step, evaluated: step + 10 * ((step if evaluated else step - 1) // 4))
    for row in (4, 8):
        for step in range(row - 4, row):
            console.show_alive(step)
            clock.seconds += 1
        console.update(row, **FIGURES, row_follows=True)
        clock.seconds += 10
        console.row(row, **FIGURES)
    first, *_, one, two = plain_lines(stream)
    assert first == "step 3 of 16 after 0:03, about 0:53 left"
    assert [line.split()[-1] for line in (one, two)] == ["0:42", "0:28"]


def test_titles_come_back_after_another_line(clock):
    stream = io.StringIO()
    console = Console(stream, now=clock)
    console.start(200, 100)
    console.row(100, **FIGURES)
    console.warn("disk is nearly full")
    console.row(200, **FIGURES)
    lines = plain_lines(stream)
    assert lines[3] == "WARNING: disk is nearly full"
    assert lines[:2] == lines[4:6]
    assert lines[1].split()[0] == "epoch"


def test_plain_output_has_no_control_codes_and_needs_no_rich(clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    stream = io.StringIO()
    with Console(stream, now=clock) as console:
        console.warn("[bold]brackets[/bold] stay")
        run(console, clock)
    assert "[bold]brackets[/bold] stay" in stream.getvalue()
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue()) is None


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert not Console(Terminal()).is_terminal


def screen(text):
    """What is left on the lines of a terminal, without its control codes."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.split("\r")[-1]) for line in text.split("\n")]


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_a_terminal_of_any_width_gets_rows_that_fit(clock, monkeypatch, width):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with Console(stream, width=width, now=clock) as console:
        assert console.is_terminal
        console.warn("[red]brackets[/red]")
        run(console, clock)
    text = stream.getvalue()
    rows = [line for line in screen(text) if re.match(r" +[123]\.0 ", line)]
    assert len(rows) == 3
    assert "40.00%" in rows[0]
    assert max(map(len, rows)) <= max(width, 24)
    assert ("3,210" in rows[0]) == (width >= 80)
    assert "[red]brackets[/red]" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_the_bar_is_taken_down_when_training_fails(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def fail():
        with Console(stream, width=80) as console:
            console.start(10, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    text = stream.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_facts_are_wrapped_in_their_column():
    stream = io.StringIO()
    Console(stream, width=70).facts(
        {"devices": "2 x cpu", "versions": "python 3.12.1, jax 0.7.2, flax 0.12.1, optax 0.2.6"}
    )
    assert plain_lines(stream) == [
        "devices     2 x cpu",
        "versions    python 3.12.1, jax 0.7.2, flax 0.12.1, optax 0.2.6",
    ]
    stream = io.StringIO()
    Console(stream, width=40).facts({"network": "python 3.12.1, jax 0.7.2, flax 0.12.10"})
    assert plain_lines(stream) == ["network     python 3.12.1, jax 0.7.2,", "            flax 0.12.10"]


def test_config_shows_main_fields_and_what_differs():
    config = Config("x", model=ModelConfig(norm="none"), optim=OptimConfig(name="adamw", lr=1e-3, accumulate=2))
    assert describe_config(config) == {
        "data": "cifar10",
        "model": "simple_cnn, norm none",
        "optim": "adamw, lr 0.001, accumulate 2",
        "schedule": "cosine",
        "train": "epochs 10, batch_size 128, dtype auto, seed 0",
    }
    assert describe_config(config, own_images=True)["data"] == "given in Python"


class OwnNet(nn.Module):
    """A network whose fields have no defaults."""

    features: tuple[int, ...]
    activation: Callable[..., Any]
    dtype: Any = jnp.bfloat16

    def __call__(self, images, train):
        return self.activation(images)


class Placeholder:
    """Stands for a function that is not at hand."""

    def __str__(self):
        return "my_rule"

    def __call__(self):
        pytest.fail("called, where it is only to be named")


def my_loss(logits, targets, tau=1.0):
    return logits


class Bare:
    def __call__(self, *_):
        return self


def test_config_shows_networks_and_functions_of_ones_own_by_name():
    config = Config(
        "x",
        model=OwnNet((8, 16), nn.relu),
        augment=(HorizontalFlip(), my_loss),
        optim=OptimConfig(name=functools.partial(optax.lion, b1=0.95)),
        schedule=ScheduleConfig(name=Bare()),
        train=TrainConfig(loss=my_loss),
    )
    rows = describe_config(config)
    assert rows["model"] == "OwnNet, features (8, 16), activation relu, dtype bfloat16"
    assert rows["augment"] == f"{HorizontalFlip()}, my_loss"
    assert rows["optim"] == "lion(b1=0.95), lr 0.1"
    assert rows["schedule"] == "Bare"
    assert rows["train"] == "epochs 10, batch_size 128, loss my_loss, dtype auto, seed 0"
    assert describe_config(dataclasses.replace(config, optim=OptimConfig(name=Placeholder())))["optim"] == (
        "my_rule, lr 0.1"
    )


def test_values_are_described_by_what_they_are_called():
    assert describe(functools.partial(my_loss, nn.relu, tau=0.5)) == "my_loss(relu, tau=0.5)"
    assert [describe(value) for value in (None, "a", (0.5,), (), Bare)] == ["None", "a", "(0.5,)", "()", "Bare"]


def test_parameter_table():
    stream = io.StringIO()
    rows = [("conv1/kernel", (3, 3, 3, 32), 864), ("dense/bias", (1000,), 1000), ("scale", (), 1)]
    Console(stream).parameter_table(rows)
    assert plain_lines(stream) == [
        "parameter              shape  count",
        "conv1/kernel  3 x 3 x 3 x 32    864",
        "dense/bias              1000  1,000",
        "scale                 scalar      1",
        "total                         1,865",
    ]


SUMMARY = {
    "test_accuracy": 0.7131,
    "test_loss": 0.8312,
    "test_accuracy_tta": None,
    "train_accuracy": 0.841,
    "images_per_second": 3210.4,
    "seconds": {"data": 0.6, "compile": 4.1, "train": 150.2, "eval": 4.0, "checkpoint": 0.8, "total": 160.2},
}


def test_summary_says_where_the_seconds_went_and_where_the_results_lie():
    stream = io.StringIO()
    Console(stream).summary(SUMMARY, Path("runs/x"))
    assert plain_lines(stream) == [
        "",
        "test accuracy   71.31%, loss 0.8312",
        "train accuracy  84.10%",
        "speed           3,210 images/s",
        "seconds         160.2 = data 0.6 + compile 4.1 + train 150.2 + eval 4.0 + checkpoint 0.8 + other 0.5",
        "results         runs/x",
    ]


def test_the_summary_of_a_run_that_diverged_late_says_what_is_not_finite():
    stream = io.StringIO()
    Console(stream).summary({**SUMMARY, "test_loss": None, "train_accuracy": None}, Path("runs/x"))
    assert plain_lines(stream)[1:3] == ["test accuracy   71.31%, loss not finite", "train accuracy  not finite"]


def test_summary_with_test_time_augmentation():
    stream = io.StringIO()
    Console(stream).summary({**SUMMARY, "test_accuracy_tta": 0.72}, Path("runs/x"))
    assert "71.31%, loss 0.8312; 72.00% with test-time augmentation" in stream.getvalue()
