"""Stopping early: by validation images alone, the same after a resume, and with all that a whole run leaves."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import Perceptron, loop, same_bits, small_config

from jax_cifar.config import Config
from jax_cifar.config.files import differing_fields, to_dict
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.telemetry import read_metrics
from jax_cifar.telemetry.describe import describe_summary
from jax_cifar.training.many import train_many
from jax_cifar.training.records import Progress
from jax_cifar.training.session import Session
from jax_cifar.training.trainer import TrainResult

# Of each epoch; in the second they are the best until two have passed without a better one.
ACCURACIES = (0.1, 0.3, 0.2, 0.3, 0.9, 0.9)
STEPS = 6  # of an epoch


def impatient(**sections: dict[str, object]) -> Config:
    """Six epochs of 6 steps, saved within each, which two without a better validation accuracy end."""
    changed = {
        "data": {"val_fraction": 0.2},
        "train": {"epochs": 6, "patience": 2},
        "checkpoint": {"every": 0.6, "keep": 20},
        "log": {"every": 4},
    }
    return small_config(
        model=Perceptron(), **changed | {name: changed.get(name, {}) | new for name, new in sections.items()}
    )


@pytest.fixture(scope="module")
def parts() -> list[str]:
    """The parts of the data that were looked at by the run that `stopped` is."""
    return []


@pytest.fixture(scope="module", autouse=True)
def scripted() -> Iterator[None]:
    """Validation accuracies as written above, by step, so that a resumed run sees the same ones."""
    judge = Progress.judge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Progress, "judge", lambda self, step, _, steps: judge(self, step, ACCURACIES[step // STEPS - 1], steps)
        )
        yield


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> TrainResult:
    """A run that its patience has ended after the fourth epoch."""
    logits = Session.logits

    def recorded(self: Session, variables: object, part: str, *more: object, **named: object) -> object:
        parts.append(part)
        return logits(self, variables, part, *more, **named)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "logits", recorded)
        return loop.train(impatient(), tmp_path_factory.mktemp("patience") / "run")


def test_a_run_ends_after_so_many_epochs_without_a_better_one(stopped: TrainResult) -> None:
    assert int(stopped.state.step) == 4 * STEPS
    figures = stopped.summary
    assert (figures["epochs"], figures["steps"], figures["stopped_early"]) == (4, 24, True)
    assert (figures["best_epoch"], figures["best_validation_accuracy"]) == (2, 0.3)


def test_the_test_images_are_looked_at_once_when_all_is_over(stopped: TrainResult, parts: list[str]) -> None:
    assert parts == ["validation"] * 4 + ["test"]


def test_what_is_left_is_what_a_whole_run_leaves(stopped: TrainResult) -> None:
    lines = [(line["step"], line["split"]) for line in read_metrics(stopped.workdir)]
    assert [step for step, split in lines if split == "validation"] == [6, 12, 18, 24]
    assert lines[-1] == (24, "test")
    assert [step for step, split in lines if split == "train"][-1] == 24
    states = {path.name for path in (stopped.workdir / "checkpoints").iterdir()}
    assert {"24", "best"} < states
    told = describe_summary(stopped.summary, stopped.workdir)["stopped early"]
    assert told == "after epoch 4; best validation accuracy 30.00% in epoch 2, kept for --checkpoint best"


def test_the_same_command_finds_it_finished(stopped: TrainResult) -> None:
    again = loop.train(impatient(), stopped.workdir)
    assert again.summary == stopped.summary
    assert same_bits(again.state, stopped.state)


@pytest.mark.parametrize("step", [11, 22])
def test_a_resumed_run_stops_at_the_same_step_with_the_same_bits(
    stopped: TrainResult, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped.workdir, folder)
    for name in ("summary.json", "report.json"):
        (folder / name).unlink()
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    resumed = loop.train(impatient(), folder)
    assert same_bits(resumed.state, stopped.state)
    different = {"seconds", "images_per_second"}
    assert {k: v for k, v in resumed.summary.items() if k not in different} == {
        k: v for k, v in stopped.summary.items() if k not in different
    }


def test_a_run_that_reaches_its_planned_end_has_not_stopped_early(tmp_path: Path) -> None:
    result = loop.train(impatient(train={"epochs": 4}), tmp_path)
    assert (result.summary["stopped_early"], result.summary["epochs"]) == (False, 4)
    assert "stopped early" not in describe_summary(result.summary, tmp_path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"val_fraction": 0.0}}, r"train\.patience = 2 .* none are held out: --data\.val_fraction 0\.1"),
        ({"eval": {"every": 0}}, r"train\.patience = 2 .* every --eval\.every epochs, here never"),
        ({"train": {"patience": -1}}, r"train\.patience = -1"),
    ],
)
def test_patience_that_cannot_be_is_refused_with_the_way_out(
    tmp_path: Path, sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loop.train(impatient(**sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lot_of_runs_has_no_patience() -> None:
    with pytest.raises(ConfigError, match=r"train\.patience = 2 .* end together"):
        train_many([impatient()])


def test_more_epochs_for_a_finished_run_are_refused_with_the_way_on(stopped: TrainResult) -> None:
    with pytest.raises(CheckpointError, match=f"fresh schedule: another --workdir and --init-from {stopped.workdir}"):
        loop.train(impatient(train={"epochs": 8}), stopped.workdir)
    with pytest.raises(CheckpointError) as caught:
        loop.train(impatient(optim={"lr": 0.01}), stopped.workdir)
    assert "--init-from" not in str(caught.value)


def test_how_often_validation_is_looked_at_is_a_part_of_what_patience_decides(stopped: TrainResult) -> None:
    with pytest.raises(CheckpointError, match=r"eval\.every: 1\.0 there, 0\.5 here"):
        loop.train(impatient(eval={"every": 0.5}), stopped.workdir)
    with pytest.raises(CheckpointError) as caught:
        loop.train(impatient(eval={"every": 0.5}, train={"epochs": 6, "patience": 0}), stopped.workdir)
    assert "train.patience: 2 there, 0 here" in str(caught.value) and "eval.every" not in str(caught.value)
    loop.train(impatient(eval={"tta": "mirror"}), shutil.copytree(stopped.workdir, stopped.workdir.with_name("judged")))


def test_without_patience_it_may_change() -> None:
    often, seldom = (to_dict(impatient(train={"patience": 0}, eval={"every": every})) for every in (0.5, 2.0))
    assert not differing_fields(often, seldom)
