"""The training loop from end to end, on small synthetic data."""

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import Perceptron, StopAt, largest_difference, same_bits, small_config, with_fields

from jax_cifar import train
from jax_cifar.augment import Cutout, HorizontalFlip, RandomCrop
from jax_cifar.config import Config
from jax_cifar.config.files import to_record
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.errors import CheckpointError, ConfigError, Diverged, Interrupted
from jax_cifar.files import read_record, sha256_of_json
from jax_cifar.run.checkpoint import Checkpoints
from jax_cifar.run.load import load_run
from jax_cifar.telemetry import console, read_metrics
from jax_cifar.training import loop, trainer

ROOT = Path(__file__).parents[1]
TRANSFORMS = (RandomCrop(padding=2), HorizontalFlip(mode="alternate"), Cutout(length=8))


def train_and_stop(config: Config, folder: Path, asked: int) -> None:
    """Train until the loop has looked for a signal so many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "StopRequest", lambda: StopAt(asked))
        with pytest.raises(Interrupted, match="the state is saved"):
            train(config, folder)
    (saved,) = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    assert 0 < saved < 12
    assert saved % 6 != 0


@pytest.fixture(scope="module")
def averaging(tmp_path_factory) -> tuple[Config, loop.TrainResult, Path]:
    """A configuration with everything a resume could forget, its whole run, and the folder of a stopped one."""
    folder, optim = tmp_path_factory.mktemp("averaging"), {"ema_decay": 0.9, "weight_decay": 1e-3, "clip_norm": 1.0}
    config = small_config(model=Perceptron(), optim=optim, augment=TRANSFORMS)
    train_and_stop(config, folder / "stopped", asked=4)
    return config, train(config, folder / "whole"), folder / "stopped"


def test_a_run_leaves_what_is_promised(tmp_path):
    config = small_config(log={"tensorboard": True, "plots": True}, data={"val_fraction": 0.1}, eval={"tta": "mirror"})
    result = train(config, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    files = {"config", "network", "source", "environment", "summary", "report"}
    assert names == {f"{name}.json" for name in files} | {"metrics.jsonl", "checkpoints", "tensorboard", "plots"}
    pictures = {"loss.png", "accuracy.png", "learning_rate.png", "confusion_matrix.png"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == pictures
    summary = read_record(tmp_path / "summary.json")
    assert summary == result.summary
    assert (summary["steps"], summary["epochs"], summary["dataset"]) == (12, 2, "synthetic")
    assert summary["parameters"] == sum(x.size for x in jax.tree.leaves(result.state.params))
    assert 0 <= summary["test_accuracy"] <= 1
    assert 0 <= summary["test_accuracy_tta"] <= 1
    assert 0 <= summary["best_validation_accuracy"] <= 1
    assert set(summary["seconds"]) == {"data", "compile", "train", "eval", "checkpoint", "total"}
    assert sum(summary["seconds"].values()) <= 2 * summary["seconds"]["total"]  # the total is one of them
    splits = [line["split"] for line in read_metrics(tmp_path)]
    assert splits == ["train"] * 3 + ["validation"] + ["train"] * 3 + ["validation", "test"]


def test_every_line_of_metrics_follows_from_the_run(finished_run):
    summary = finished_run.summary
    lines = [line for line in read_metrics(finished_run.workdir) if line["split"] == "train"]
    # Three intervals make the last epoch: each has its own images, none those of an earlier one.
    assert summary["train_accuracy"] == pytest.approx(sum(line["accuracy"] for line in lines[3:]) / 3)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert [line["epoch"] for line in lines] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert lines[1]["lr"] == pytest.approx(0.05)  # the first step after a warm-up of three
    assert all(line["gradient_norm"] > 0 and line["parameter_norm"] > 0 for line in lines)


def test_a_slow_run_prints_every_step_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    train(small_config(model=Perceptron(), eval={"every": 0.5}), tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (shown,) = [row[2] for row in rows if row[1:2] == ["4"]]
    losses = [line["loss"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert shown == f"{(losses[0] + losses[1]) / 2:.4f}"  # as in the row of the epoch, whose mean it will become
    assert [row[1] for row in rows if row and row[0].replace(".", "").isdigit()] == [
        "2",
        "3",
        "4",
        "6",
        "8",
        "9",
        "10",
        "12",
    ]


@pytest.mark.slow
@pytest.mark.optimised
def test_training_learns(tmp_path):
    config = small_config(data={"subset": None}, train={"epochs": 2}, model={"width": 8, "dropout": 0.0})
    assert train(config, tmp_path).report.accuracy > 0.6


def test_a_run_stopped_mid_epoch_and_resumed_is_the_same_bit_for_bit(averaging, tmp_path):
    config, whole, stopped = averaging
    resumed = train(config, shutil.copytree(stopped, tmp_path / "run"))
    check_same(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {
            "optim": {"name": "muon", "lr": 0.1, "nesterov": False, "lookahead_every": 3},
            "schedule": {"name": "warm_restarts", "warmup": 0.0, "t_0": 0.5, "t_mult": 2},
            "mix": {"mixup_alpha": 1.0, "cutmix_alpha": 1.0},
        },
        {"optim": {"accumulate": 2}, "train": {"steps_per_call": 2}, "log": {"every": 5}},
    ],
    ids=["muon-lookahead-mix", "accumulate-scan"],
)
def test_so_it_is_with_lookahead_and_several_steps_a_call(tmp_path, sections):
    config = dataclasses.replace(small_config(**sections), augment=TRANSFORMS)
    train_and_stop(config, tmp_path / "parts", asked=4)
    check_same(train(config, tmp_path / "whole"), train(config, tmp_path / "parts"))


def check_same(whole: loop.TrainResult, parts: loop.TrainResult) -> None:
    """Bits of the state, the report, and every line of metrics but for its times."""
    assert same_bits(whole.state, parts.state)
    assert whole.report.to_dict() == parts.report.to_dict()
    seconds = dict(parts.summary["seconds"])
    assert seconds.pop("total") > sum(seconds.values())  # of both processes
    timed = ("split", "seconds", "images_per_second")
    for one, other in zip(read_metrics(whole.workdir), read_metrics(parts.workdir), strict=True):
        assert one["split"] == other["split"]
        # Where a run was stopped, sums are added up on the host, so that a mean may differ in its last digits.
        figures = [{name: value for name, value in line.items() if name not in timed} for line in (one, other)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-6)


# One forgotten part shows as another does.
@pytest.mark.parametrize(
    "forgotten", ["opt_state", "step", *(pytest.param(part, marks=pytest.mark.slow) for part in ("batch_stats", "ema"))]
)
def test_a_resume_that_forgets_something_is_noticed(averaging, tmp_path, monkeypatch, forgotten):
    config, whole, stopped = averaging
    restore = Checkpoints.restore

    def forgetful(self, template, which: Literal["last", "best"] = "last"):
        restored = restore(self, template, which)
        assert restored is not None
        wrong = getattr(restored.state, forgotten)
        wrong = wrong + 1 if forgotten == "step" else jax.tree.map(jnp.zeros_like, wrong)
        return restored._replace(state=dataclasses.replace(restored.state, **{forgotten: wrong}))

    monkeypatch.setattr(Checkpoints, "restore", forgetful)
    assert not same_bits(whole.state, train(config, shutil.copytree(stopped, tmp_path / "run")).state)


@pytest.mark.slow
def test_sigterm_in_the_middle_of_an_epoch_saves_and_the_same_command_goes_on(tmp_path):
    config_file = tmp_path / "small.py"
    config_file.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from small_runs import small_config\n"
        "get_config = lambda: small_config(train={'epochs': 30}, log={'every': 7}, eval={'every': 0})\n"
    )
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--config", str(config_file), "--workdir"]

    def start(name: str) -> subprocess.Popen:
        with (tmp_path / f"{name}.out").open("a") as output:
            return subprocess.Popen([*command, str(tmp_path / name)], stdout=output, stderr=output)

    stopped, metrics = start("stopped"), tmp_path / "stopped/metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and stopped.poll() is None:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 75, (tmp_path / "stopped.out").read_text()
    assert f"--workdir {tmp_path / 'stopped'}" in (tmp_path / "stopped.out").read_text()
    whole, resumed = start("whole"), start("stopped")
    assert (whole.wait(120), resumed.wait(120)) == (0, 0)
    assert "resuming at step" in (tmp_path / "stopped.out").read_text()
    runs = [load_run(tmp_path / name) for name in ("whole", "stopped")]
    assert runs[0].step == runs[1].step == 180
    assert len({str(every_leaf(tmp_path / name / "checkpoints" / "180")) for name in ("whole", "stopped")}) == 1


def every_leaf(checkpoint: Path) -> dict[str, bytes]:
    """The bytes of every array of a checkpoint."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    return {name: digest.encode() for name, (_, _, digest) in manifest["leaves"].items()}


@pytest.fixture
def copied(finished_run, tmp_path) -> Path:
    """The folder of a finished run of `small_config()`."""
    return shutil.copytree(finished_run.workdir, tmp_path / "run")


def test_another_configuration_is_refused_by_name(copied):
    with pytest.raises(CheckpointError, match=r"optim\.lr: 0\.05 there, 0\.1 here"):
        train(small_config(optim={"lr": 0.1}), copied)
    # What changes no number may change.
    train(small_config(log={"every": 3}), copied)


def manifest_with(checkpoint: Path, **changes: Any) -> None:
    """Write the manifest of a checkpoint anew, its own sum with it, with other values in `extra`."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"]
    body = manifest | {"extra": manifest["extra"] | changes}
    (checkpoint / "manifest.json").write_text(json.dumps({"sha256": sha256_of_json(body), **body}))


def test_the_checkpoint_of_a_run_with_another_seed_is_refused(tmp_path):
    config = small_config(model=Perceptron(), train={"seed": 1, "epochs": 1})
    for seed in (1, 2):
        train(with_fields(config, train={"seed": seed}), tmp_path / str(seed))
    shutil.rmtree(tmp_path / "1" / "checkpoints")
    shutil.copytree(tmp_path / "2" / "checkpoints", tmp_path / "1" / "checkpoints")
    message = r"Checkpoint .*1/checkpoints/6 is of another configuration .*:\n  train\.seed: 2 there, 1 here\n"
    with pytest.raises(CheckpointError, match=message):
        train(config, tmp_path / "1")


def test_a_checkpoint_that_does_not_know_its_configuration_or_has_fewer_fields_is_gone_on_with(copied):
    checkpoint = copied / "checkpoints" / "12"
    recorded = json.loads((checkpoint / "manifest.json").read_text())["extra"]["config"]
    assert recorded == to_record(small_config())
    fewer = recorded | {"train": {name: value for name, value in recorded["train"].items() if name != "patience"}}
    for config in (None, fewer, recorded | {"log": {}, "eval": {"every": 7.0}}):
        manifest_with(checkpoint, config=config)
        train(small_config(), copied)
    manifest_with(checkpoint, config=recorded | {"optim": recorded["optim"] | {"lr": 0.1}})
    with pytest.raises(CheckpointError, match=r"optim\.lr: 0\.1 there, 0\.05 here"):
        train(small_config(), copied)


def test_other_images_are_refused(copied, monkeypatch):
    load_data = loop.load_data

    def other_images(config):
        splits = load_data(config)
        changed = splits.train.images.copy()
        changed[0, 0, 0, 0] ^= 1
        return dataclasses.replace(splits, train=dataclasses.replace(splits.train, images=changed))

    monkeypatch.setattr(loop, "load_data", other_images)
    with pytest.raises(CheckpointError, match="other images"):
        train(small_config(), copied)


def test_what_a_run_is_judged_by_may_not_change_unsaid(tmp_path, capsys):
    whole = load_data(small_config().data)
    images, labels = whole.train.images, whole.train.labels
    test, validation = Dataset(images[:20], labels[:20]), Dataset(images[20:40], labels[20:40])
    mine = Splits("mine", whole.train, test, validation, whole.label_names)
    given = functools.partial(dataclasses.replace, mine)
    config = small_config(model=Perceptron(), train={"epochs": 1}, data={"subset": None})
    figures = train(config, tmp_path, splits=given()).summary
    other, names = Dataset(255 - images[:20], labels[:20]), ("zero", *whole.label_names[1:])
    with pytest.raises(CheckpointError, match=r"was judged by other validation images or labels \(checksum \w{8}, now"):
        train(config, tmp_path, splits=given(validation=other))
    with pytest.raises(CheckpointError, match=r"now none\)\. Restore the data set"):
        train(config, tmp_path, splits=given(validation=None))
    with pytest.raises(CheckpointError, match=rf"class 0 was '{whole.label_names[0]}', and is 'zero' now"):
        train(config, tmp_path, splits=given(label_names=names))
    capsys.readouterr()
    assert train(config, tmp_path, splits=given(test=other)).summary == figures
    assert "was judged by other test images or labels" in capsys.readouterr().out
    train(config, tmp_path, splits=given())
    assert "judged by other" not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small_config(
        model=Perceptron(),
        optim={"lr": 1e20, "nesterov": False, "momentum": 0.0},
        schedule={"name": "step", "warmup": 0.0, "unit": "steps", "milestones": (1.0,), "gamma": 1.0},
        checkpoint={"every": 1 / 6},
        train={"epochs": 3},
    )
    with pytest.raises(
        Diverged, match=r"became (nan|inf) between steps \d+ and \d+\. (Step \d+ is kept|No checkpoint)"
    ) as caught:
        train(config, tmp_path)
    assert caught.value.exit_code == 3
    steps = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
    for step in steps:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_run(tmp_path).variables)), step


def too_high_at_last(step: int, total_steps: int) -> float:
    """Of the highest rate, a share that is all of it in the last third of a run."""
    return 1.0 if step >= 2 * total_steps // 3 else 0.003


def test_the_best_by_validation_is_kept_apart(tmp_path):
    config = small_config(
        model=Perceptron(),
        data={"val_fraction": 0.2},
        train={"epochs": 3},
        optim={"lr": 100.0},
        schedule={"name": too_high_at_last, "warmup": 0.0},
    )
    result = train(config, tmp_path)
    best = load_run(tmp_path, "best")
    accuracies = [line["accuracy"] for line in read_metrics(tmp_path) if line["split"] == "validation"]
    assert best.step < result.summary["steps"]
    assert best.evaluate("val").accuracy == result.summary["best_validation_accuracy"] == max(accuracies)
    assert load_run(tmp_path, "last").step == result.summary["steps"]


def test_evaluation_takes_the_averaged_weights(tmp_path):
    result = train(small_config(model=Perceptron(), optim={"ema_decay": 0.5}), tmp_path)
    assert largest_difference(result.state.params, result.state.ema["params"]) > 0
    plain = dataclasses.replace(load_run(tmp_path), variables=jax.device_get(result.state.variables))
    assert load_run(tmp_path).evaluate("test").loss == result.summary["test_loss"]
    assert plain.evaluate("test").loss != result.summary["test_loss"]


def test_a_batch_larger_than_the_training_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch_size = 512 is larger than the 200 training images"):
        train(small_config(train={"batch_size": 512}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made in .*/file: that is a file\. Choose another --workdir\.$"):
        train(small_config(), tmp_path / "file" / "run")


def test_devices_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"distributed\.devices = 64, but only"):
        train(small_config(distributed={"devices": 64}), tmp_path)
