"""How runs end, seen from inside one process: evaluations given up, late divergence, finished runs given again."""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_runs import Perceptron, StopAt, loop, same_bits, small_config, with_fields

from jax_cifar.config import Config
from jax_cifar.config.modules import running
from jax_cifar.errors import CheckpointError, Diverged, Interrupted
from jax_cifar.evaluation import predict
from jax_cifar.evaluation.metrics import Report
from jax_cifar.files import read_record
from jax_cifar.run.clock import Clock
from jax_cifar.telemetry import read_metrics
from jax_cifar.telemetry.console import Console
from jax_cifar.training import session, trainer
from jax_cifar.training.session import Session


class StopInEvaluation:
    """Stands in for `StopRequest` and for `predict_logits`: the signal comes during the evaluation of that number."""

    def __init__(self, number: int) -> None:
        self._left, self.signal = number, None

    def __enter__(self) -> "StopInEvaluation":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def predict_logits(self, *arguments: Any) -> Any:
        *_, stop, _ = arguments
        self._left -= 1
        if self._left == 0:
            self.signal = "SIGTERM"
        if stop is not None and stop():
            raise predict.Unwanted
        return predict.predict_logits(*arguments)


def stop_in_evaluation(number: int, config: Config, folder: Path, told: str) -> None:
    """Train until a signal comes during the evaluation of that number."""
    stop = StopInEvaluation(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "StopRequest", lambda: stop)
        patch.setattr(session, "predict_logits", stop.predict_logits)
        with pytest.raises(Interrupted, match=told):
            loop.train(config, folder)


def test_a_run_stopped_while_evaluating_makes_that_row_when_it_goes_on(tmp_path):
    # Rows after 3, 6, 9 and 12 updates; the signals come in that of an epoch's end and in the very last.
    config = small_config(model=Perceptron(), data={"val_fraction": 0.1}, eval={"every": 0.5})
    whole = loop.train(config, tmp_path / "whole")
    folder = tmp_path / "parts"
    for number, at in ((2, 6), (3, 12)):
        stop_in_evaluation(number, config, folder, f"Stopped by SIGTERM at step {at} of 12; the state is saved")
        manifest = json.loads((folder / "checkpoints" / str(at) / "manifest.json").read_text())
        assert manifest["extra"]["row_due"]
        assert not any(line["split"] == "validation" and line["step"] == at for line in read_metrics(folder))
        with (folder / "metrics.jsonl").open("a") as file:  # as a process leaves it that dies before its next save
            file.write(json.dumps({"step": at, "split": "validation", "loss": 9.0}) + "\n")
    parts = loop.train(config, folder)
    assert same_bits(whole.state, parts.state)
    for figure in ("train_accuracy", "best_validation_accuracy", "test_loss"):
        assert whole.summary[figure] == parts.summary[figure]
    timed = ("seconds", "images_per_second")
    lines = [
        [{name: value for name, value in line.items() if name not in timed} for line in read_metrics(run.workdir)]
        for run in (whole, parts)
    ]
    assert lines[0] == lines[1]


def test_a_row_that_is_not_due_any_more_is_forgotten(tmp_path):
    config = small_config(model=Perceptron(), train={"epochs": 3}, checkpoint={"every": 1, "keep": 3})
    stop_in_evaluation(1, config, tmp_path, "at step 6 of 18")
    loop.train(with_fields(config, eval={"every": 3}), tmp_path)
    due = {step: read_record(tmp_path / f"checkpoints/{step}/manifest.json")["extra"]["row_due"] for step in (6, 12)}
    assert due == {6: True, 12: False}


def test_calls_of_a_fixed_length_go_on_from_any_step(tmp_path, monkeypatch):
    config = small_config(model=Perceptron(), train={"steps_per_call": 4}, log={"every": 4})
    whole = loop.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StopRequest", lambda: StopAt(0))
        with pytest.raises(Interrupted, match="at step 4 of 12"):
            loop.train(config, tmp_path / "parts")
    parts = loop.train(with_fields(config, log={"every": 3}), tmp_path / "parts")  # by 2, then by 3 updates
    assert same_bits(whole.state, parts.state)


def test_a_run_is_gone_on_with_by_the_code_that_it_was_begun_with(tmp_path, monkeypatch, capsys):
    text = (
        "import flax.linen as nn, jax.numpy as jnp\n"
        "class Net(nn.Module):\n"
        "    num_classes: int = 10\n"
        "    @nn.compact\n"
        "    def __call__(self, x, train):\n"
        "        return nn.Dense(self.num_classes)(jnp.tanh(x.mean((1, 2))))\n"
    )
    file, folder = tmp_path / "own_net.py", tmp_path / "run"

    def config(text: str) -> Config:
        file.write_text(text)
        with running(file) as module:
            return small_config(model=module.Net())

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StopRequest", lambda: StopAt(2))
        with pytest.raises(Interrupted):
            loop.train(config(text), folder)
    changed = config(text.replace("tanh", "sin"))
    with pytest.raises(CheckpointError, match=r"code of own_net\.py '.{12}' there, '.{12}' here.*--allow-different"):
        loop.train(changed, folder)
    assert "tanh" in (folder / "source" / "own_net.py").read_text()
    loop.train(config(text), folder)
    assert "numbers will differ" not in capsys.readouterr().out
    loop.train(changed, folder, allow_different_numbers=True)
    assert "numbers will differ" in capsys.readouterr().out


def test_a_run_gone_on_with_says_what_compiling_took_this_time_and_records_what_it_took_in_all(
    tmp_path, monkeypatch, capsys
):
    config = small_config(model=Perceptron(), train={"epochs": 1})
    report = Clock.report
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StopRequest", lambda: StopAt(2))
        patch.setattr(Clock, "report", lambda clock: {**report(clock), "compile": 1000.0})
        with pytest.raises(Interrupted):
            loop.train(config, tmp_path)
    capsys.readouterr()
    result = loop.train(config, tmp_path)
    found = re.search(r"^compiled +in (.*) s$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    assert 0 <= float(found[1]) < 500
    assert result.summary["seconds"]["compile"] >= 1000


def test_the_time_left_counts_from_before_the_first_call(tmp_path, monkeypatch):
    told, advance = [], Session.advance
    monkeypatch.setattr(Console, "show_alive", lambda console, step: told.append(step))
    monkeypatch.setattr(Session, "advance", lambda *given: (told.append("advance"), advance(*given))[1])
    loop.train(small_config(model=Perceptron(), train={"epochs": 1}), tmp_path)
    assert told[:2] == [0, "advance"]


class NeverReady:
    """Stands in for logits that a device is still at."""

    def __radd__(self, other: object) -> "NeverReady":
        return self

    __rmul__ = __radd__

    def is_ready(self) -> bool:
        return False


def test_a_prediction_that_is_no_longer_wanted_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(predict, "LOOK_SECONDS", 0.002)
    batches = predict.make_batches(np.zeros((3, 8, 8, 3), np.uint8), 1)
    asked, predicted = iter([False, False, True]), []

    def never(variables: Any, images: Any) -> Any:
        predicted.append(images)
        return NeverReady()

    with pytest.raises(predict.Unwanted):
        predict.predict_logits(never, {}, batches, stop=lambda: next(asked))
    assert len(predicted) == 2  # one ran ahead, no more


def test_a_loss_that_is_not_finite_after_the_last_update_is_a_divergence(tmp_path):
    config = small_config(
        data={"subset": 20},
        schedule={"name": "constant", "warmup": 0.0},
        train={"steps": 1, "batch_size": 8},
        optim={"lr": 1e15},
        model={"width": 2},
    )
    with pytest.raises(Diverged, match=r"^The test loss became (nan|inf) at step 1\. No checkpoint was saved before"):
        loop.train(config, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_that_cannot_be_read_at_the_same_time_are_told_and_the_end_is_a_divergence(tmp_path):
    def latest_step() -> object:
        raise CheckpointError("The checkpoints cannot be read: Input/output error.")

    checkpoints: Any = SimpleNamespace(latest_step=latest_step)
    nothing: Any = None
    unfinished = trainer.Trainer(nothing, tmp_path, str(tmp_path), nothing, checkpoints, *[nothing] * 4)
    expected = f"became inf between steps 7 and 9. What was saved before is in {tmp_path}/checkpoints. The"
    with pytest.raises(Diverged) as caught:
        unfinished.raise_diverged("training loss", math.inf, 7, 9)
    assert expected in str(caught.value)


def test_a_finished_run_given_again_changes_nothing_unless_its_summary_is_gone(
    tmp_path, finished_run, capsys, monkeypatch
):
    folder = tmp_path / "a b"
    shutil.copytree(finished_run.workdir, folder)
    records = ("metrics.jsonl", "summary.json", "report.json", "config.json", "environment.json")
    monkeypatch.setattr("sys.argv", ["another.py", "--on-another-machine"])
    before = {name: (folder / name).read_bytes() for name in records}
    config = small_config()
    capsys.readouterr()
    again = loop.train(config, folder)
    assert {name: (folder / name).read_bytes() for name in records} == before
    assert same_bits(again.state, finished_run.state)
    assert again.summary == finished_run.summary
    assert again.report.to_dict() == finished_run.report.to_dict()
    assert f"{finished_run.summary['test_accuracy']:.2%}" in capsys.readouterr().out

    (folder / "summary.json").write_text('{"steps": 12, "test_acc')
    mended = loop.train(config, folder)
    assert (folder / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]
    for figure in ("test_accuracy", "test_loss", "train_accuracy", "steps"):
        assert json.loads((folder / "summary.json").read_bytes())[figure] == finished_run.summary[figure]
    assert mended.report.to_dict() == finished_run.report.to_dict()


def test_a_finished_run_says_so_and_draws_the_pictures_that_it_has_not(tmp_path, finished_run, capsys):
    folder = Path(shutil.copytree(finished_run.workdir, tmp_path / "run"))
    capsys.readouterr()
    loop.train(small_config(log={"tensorboard": True}), folder)
    said = "the run is finished: nothing is trained, evaluated or logged anew"
    assert f"{said}\n" in capsys.readouterr().out
    assert not (folder / "plots").exists()
    loop.train(small_config(log={"plots": True}), folder)
    assert f"{said}; plots/ is drawn from its records\n" in capsys.readouterr().out
    pictures = {path: path.stat().st_mtime_ns for path in (folder / "plots").iterdir()}
    assert {path.stem for path in pictures} == {"loss", "accuracy", "learning_rate", "confusion_matrix"}
    loop.train(small_config(log={"plots": True}), folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "plots").iterdir()} == pictures
    assert f"{said}\n" in capsys.readouterr().out


def test_a_finished_run_is_judged_anew_by_other_views(tmp_path, capsys):
    config = small_config(model=Perceptron(), train={"epochs": 1})
    figures = {}
    for tta in ("none", "mirror", "mirror-translate", "unsure"):
        given = with_fields(config, eval={"tta": tta})
        again = loop.train(given, tmp_path / "again").summary["test_accuracy_tta"]
        figures[tta] = (again, loop.train(given, tmp_path / tta).summary["test_accuracy_tta"])
    assert figures["none"] == (None, None)
    assert figures["mirror"][0] == figures["mirror"][1] != figures["mirror-translate"][1]
    assert figures["mirror-translate"][0] == figures["mirror-translate"][1]
    assert figures["unsure"][0] == figures["unsure"][1]
    capsys.readouterr()
    loop.train(config, tmp_path / "none", profile=3)
    assert "--profile looks into the update that comes next, and none does" in " ".join(
        "".join(capsys.readouterr()).split()
    )


def test_the_final_weights_see_every_view_once(tmp_path, monkeypatch):
    calls = []

    def predict_logits(trained, variables, batches, tta, stop, plain):
        calls.append((tta, plain is None))
        return predict.predict_logits(trained, variables, batches, tta, stop, plain)

    monkeypatch.setattr(session, "predict_logits", predict_logits)
    loop.train(small_config(model=Perceptron(), train={"epochs": 2}, eval={"tta": "mirror"}), tmp_path)
    assert calls == [("none", True), ("none", True), ("mirror", False)]


def test_figures_of_other_views_are_not_those_of_a_run_that_was_stopped_while_judged(tmp_path, monkeypatch):
    config = small_config(model=Perceptron(), train={"epochs": 1})
    one, other = (with_fields(config, eval={"tta": tta}) for tta in ("mirror", "mirror-translate"))
    loop.train(one, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "logits", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.train(other, tmp_path / "run")
    again, fresh = loop.train(other, tmp_path / "run").summary, loop.train(other, tmp_path / "fresh").summary
    assert again["tta"] == "mirror-translate" and again["test_accuracy_tta"] == fresh["test_accuracy_tta"]


def test_a_run_that_was_stopped_in_its_last_evaluation_is_finished_once_that_is_made(tmp_path, monkeypatch):
    config = small_config(model=Perceptron(), train={"epochs": 1})
    stop_in_evaluation(1, config, tmp_path, "at step 6 of 6")
    result = loop.train(config, tmp_path)
    monkeypatch.setattr(Session, "logits", lambda *_, **__: pytest.fail("it is judged anew"))
    assert loop.train(config, tmp_path).summary == result.summary


def test_a_report_comes_back_from_its_file(finished_run):
    values = read_record(finished_run.workdir / "report.json")
    assert Report.from_dict(values).to_dict() == values
    assert Report.from_dict(values).table() == finished_run.report.table()
    with pytest.raises(KeyError):
        Report.from_dict({})
