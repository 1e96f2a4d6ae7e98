"""A run folder belongs to one process, loses nothing, and is made only when the run can start."""

import json
import os
import shutil
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import small_config

from jax_cifar.config.files import to_dict
from jax_cifar.config.spec import InputSpec
from jax_cifar.data import Dataset, Splits
from jax_cifar.errors import CheckpointError, ConfigError, UserError
from jax_cifar.run import folder as folder_module
from jax_cifar.run.folder import RunFolder, input_spec, read_config, read_spec
from jax_cifar.run.lock import LOCK, RunLock
from jax_cifar.training.loop import train
from jax_cifar.training.session import check_loss

SPEC = InputSpec((32, 32, 3), (0.5,) * 3, (0.25,) * 3, None, ("a", "b"))


def begin(workdir, config=None) -> RunFolder:
    return RunFolder(config or small_config(), workdir, pytest.fail)


def make(workdir, config=None) -> Path:
    """A folder as a run leaves it that was killed while it compiled."""
    with begin(workdir, config) as place:
        return place.make(SPEC, "digits")


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# One process.


def test_a_second_start_is_told_who_has_the_folder(tmp_path):
    who = rf"process {os.getpid()} on .+ since 20.+"
    message = rf"^{tmp_path} is in use by {who}: wait for it to end, or choose another --workdir\.$"
    with RunLock(tmp_path, str(tmp_path), pytest.fail):
        for _ in range(2):
            with pytest.raises(ConfigError, match=message):
                begin(tmp_path).__enter__()
    with begin(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_that_a_dead_process_left_is_taken_over_in_silence(tmp_path, capfd):
    make(tmp_path)
    (tmp_path / LOCK).write_text('{"process": 1, "host": "gone", "since": "2026-01-01"}')
    with begin(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    assert capfd.readouterr() == ("", "")


def test_starts_in_one_second_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    places = [begin(None).__enter__() for _ in range(3)]
    made = [place.make(SPEC, None) for place in places]
    assert made == [tmp_path / "runs" / "small" / name for name in ("now", "now-1", "now-2")]
    for place in places:
        place.__exit__()
    assert not any((folder / LOCK).exists() for folder in made)


def test_of_two_starts_with_one_new_folder_one_wins(tmp_path):
    first, second = begin(tmp_path / "run").__enter__(), begin(tmp_path / "run").__enter__()
    first.make(SPEC, None)
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match="run is in use by process"):
        second.make(SPEC, None)
    second.__exit__()
    assert everything(tmp_path) == before
    first.__exit__()


def test_a_folder_that_somebody_else_has_filled_meanwhile_is_left_alone(tmp_path):
    with begin(tmp_path / "run") as place:
        other = make(tmp_path / "run", small_config(optim={"lr": 0.01}))
        (other / "summary.json").write_text("{}")
        before = everything(other)
        with pytest.raises(CheckpointError, match=r"holds summary\.json of another configuration"):
            place.make(SPEC, None)
    assert everything(other) == before


# Nothing lost.


def held(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"step": 1, "split": "train"}\n')


@pytest.mark.parametrize("name", ["checkpoints/6/manifest.json", "summary.json", "metrics.jsonl", "plots/loss.png"])
def test_results_of_another_configuration_are_never_written_over(tmp_path, name):
    make(tmp_path)
    held(tmp_path, name)
    before = everything(tmp_path)
    message = (
        rf"holds {name.split('/')[0]} of another configuration:\n  optim\.lr: 0\.05 there, 0\.1 here\nChoose another"
    )
    with pytest.raises(CheckpointError, match=message), begin(tmp_path, small_config(optim={"lr": 0.1})):
        pass
    assert everything(tmp_path) == before


@pytest.mark.parametrize("names", [["summary.json"], ["report.json", "checkpoints/6.abc.partial/state"]])
def test_results_whose_checkpoints_are_gone_are_never_written_over(tmp_path, names):
    make(tmp_path)
    held(tmp_path, *names)
    with pytest.raises(
        CheckpointError, match=rf"holds {names[0]}, but no checkpoint any more: .* Put checkpoints/ back"
    ):
        begin(tmp_path).__enter__()


def test_a_log_that_goes_on_after_its_checkpoints_are_gone_is_never_written_over(tmp_path):
    make(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "split": "train"}\n{"step": 19, "split": "train"}\n')
    with begin(tmp_path) as place:
        with pytest.raises(CheckpointError, match=r"holds metrics\.jsonl up to step 19, but no checkpoint any more"):
            place.require(0, checkpoint_every=6)
        place.require(0, checkpoint_every=7)  # its first may still have been on the way
        place.require(0, checkpoint_every=0)
        held(tmp_path, "checkpoints/18/manifest.json")
        place.require(0, checkpoint_every=6)


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_the_same_command(tmp_path):
    make(tmp_path / "run")
    held(tmp_path / "run", "metrics.jsonl", "checkpoints/6.abc.partial/state", LOCK)
    make(tmp_path / "run")


def test_a_run_killed_before_it_did_anything_may_start_with_another_configuration(tmp_path):
    other = small_config(optim={"lr": 0.1})
    make(tmp_path / "run")
    assert read_config(make(tmp_path / "run", other)) == other


def test_a_folder_of_other_things_is_used_and_they_stay(tmp_path):
    held(tmp_path, "train.log", "notes/today.txt")
    before = everything(tmp_path)
    assert everything(make(tmp_path)).items() >= before.items()


@pytest.mark.parametrize("name", ["network.json", "source/mine.py", "metrics.jsonl", "checkpoints/best"])
def test_a_folder_that_is_no_run_but_has_files_of_the_same_names_is_left_alone(tmp_path, name):
    held(tmp_path, name)
    before = everything(tmp_path)
    with pytest.raises(CheckpointError, match=rf"it holds no config\.json, and has {name.split('/')[0]} that would"):
        begin(tmp_path).__enter__()
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "sm', r"config\.json is damaged \(.*\)\. Choose another --workdir\.$"),
        (b"\xff\xfe", r"config\.json is damaged"),
        (b"[" * 100_000, r"config\.json is damaged"),
        (
            b'{"architectures": ["Bert"]}',
            r"holds no configuration of this version: name = None .* Choose another --workdir\.$",
        ),
        (b"[]", r"holds no configuration of this version: "),
    ],
)
def test_a_config_that_is_half_or_foreign_is_one_message(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        begin(tmp_path).__enter__()
    assert (tmp_path / "config.json").read_bytes() == content


# A refused run leaves nothing.


REFUSED = {
    "schedule": {"schedule": {"name": "step", "milestones": (99.0,), "warmup": 99.0}},
    "resolution": {"train": {"resolutions": ((64, 1.0),)}},
    "batch": {"train": {"batch_size": 512}},
    "multipliers": {"optim": {"lr_multipliers": (("nothing", 2.0),)}},
    "data": {"data": {"name": "npz", "dir": "nowhere.npz"}},
    "devices": {"distributed": {"devices": 64}},
}


@pytest.mark.parametrize("sections", list(REFUSED.values()), ids=list(REFUSED))
def test_a_refused_run_leaves_nothing(tmp_path, monkeypatch, sections):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        train(small_config(**sections), "new/run" if "train" in sections else None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("mix", "good", "bad", "message"),
    [
        (
            {},
            optax.softmax_cross_entropy_with_integer_labels,
            optax.softmax_cross_entropy,
            r"failed on .* int32\[2\]: ",
        ),
        ({"mixup_alpha": 1.0}, optax.softmax_cross_entropy, jnp.add, r"2 losses, .*, not float32\[2, 10\]\."),
        ({"mixup_alpha": 1.0}, optax.softmax_cross_entropy, jnp.vdot, r"an array float32\[2\], not float32\[\]\."),
        (
            {"mixup_alpha": 1.0, "probability": 0.0},  # nothing is mixed
            optax.softmax_cross_entropy_with_integer_labels,
            optax.softmax_cross_entropy,
            r"failed on .* int32\[2\]: ",
        ),
    ],
)
def test_a_loss_of_ones_own_is_tried_on_the_targets_that_it_will_be_given(mix, good, bad, message):
    def config(loss):
        return small_config(mix=mix, train={"loss": loss, "label_smoothing": 0.0})

    check_loss(config(good), 10)
    with pytest.raises(ConfigError, match=rf"^train\.loss = .*{message}"):
        check_loss(config(bad), 10)


def test_training_images_that_no_memory_can_hold_are_told_as_such(tmp_path, monkeypatch):
    """Not as a batch that is too large, which would not help."""
    monkeypatch.setattr("jax_cifar.backend.images.device_memory", lambda: 1e5)
    with pytest.raises(ConfigError, match=r"^200 training images of 3,072 bytes take 0\.0 GB, .* by --data\.subset"):
        train(small_config(), tmp_path / "a")
    assert os.listdir(tmp_path) == []


def fails_in_training(logits, targets):
    return logits[:, 0] if len(logits) == 2 else None


def test_a_step_that_cannot_be_traced_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="NoneType"):
        train(small_config(train={"loss": fails_in_training}), tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


def test_a_disk_without_the_space_for_the_checkpoints_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (10**9, 0, 1000))
    needed = (
        r"^The checkpoints of this run need \d\.\d MB, and /.* has 0\.0 MB free\. Free space, lower --checkpoint\.keep"
    )
    with pytest.raises(ConfigError, match=needed):
        train(small_config(), tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
    # What lies there already needs no more.
    make(tmp_path)
    held(tmp_path, "checkpoints/6/state")
    with begin(tmp_path) as place:
        place.require(1025, 0)
        with pytest.raises(ConfigError):
            place.require(1035, 0)


def test_checkpoints_may_lie_on_a_disk_of_their_own(tmp_path, monkeypatch):
    large, run = tmp_path / "large", tmp_path / "run"
    large.mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(large)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (10**9, 0, 10**6 if Path(path).samefile(large) else 0))
    with begin(run) as place:
        place.require(10**6, 0)
        place.make(SPEC, None)
        with pytest.raises(ConfigError, match="0 MB free"):
            place.require(10**6 + 1, 0)


def test_a_disk_that_fills_while_the_folder_is_made_leaves_nothing_but_what_was_there(tmp_path, monkeypatch):
    def full(folder):
        (folder / "environment.json").write_text("half")
        raise OSError(28, "No space left on device")

    held(tmp_path, "mine/notes.txt")
    before = everything(tmp_path)
    monkeypatch.setattr(folder_module, "write_environment", full)
    for workdir in (tmp_path / "new" / "run", tmp_path / "mine"):
        with pytest.raises(
            ConfigError, match=rf"^The run folder {workdir} cannot be written: No space left on device\."
        ):
            make(workdir)
        assert everything(tmp_path) == before


def test_a_disk_that_fills_between_two_folders_leaves_none(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def full(path, *mode):
        if os.path.isdir(os.path.dirname(path)) and str(path).endswith("run"):
            raise OSError(28, "No space left on device")
        mkdir(path, *mode)

    monkeypatch.setattr(os, "mkdir", full)
    with begin(tmp_path / "a" / "run") as place, pytest.raises(ConfigError, match="No space left on device"):
        place.make(SPEC, None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("workdir", ["file", "file/run", "file/a/run"])
def test_a_file_in_the_place_of_the_folder_is_one_message(tmp_path, monkeypatch, workdir):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(
        ConfigError, match=rf"^{workdir} (is a file, not a folder|cannot be made in .*/file: that is a file)\. C"
    ):
        begin(workdir).__enter__()


def test_a_folder_that_may_not_be_written_to_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(ConfigError, match=r"^.*/run cannot be made in .*: you may not write there"):
        begin(tmp_path / "run").__enter__()

    def read_only(path, *how):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(
        ConfigError, match=r"^The run folder .* cannot be written: Read-only file system\. Choose another"
    ):
        begin(tmp_path).__enter__()


# Places.


def test_home_and_variables_stand_in_a_name_and_it_is_shown_as_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_RUNS", str(tmp_path / "mit Leerzeichen und 漢字"))
    for given, place in (("~/run", tmp_path / "run"), ("$MY_RUNS/a", tmp_path / "mit Leerzeichen und 漢字" / "a")):
        assert make(given) == place
        with (
            RunLock(place, "", pytest.fail),
            pytest.raises(ConfigError, match="^" + given.replace("$", r"\$") + " is in"),
        ):
            begin(given).__enter__()
    with pytest.raises(ConfigError, match=r"'\$NO_SUCH/x' cannot be found: \$NO_SUCH is not set"):
        begin("$NO_SUCH/x").__enter__()


def test_a_relative_data_folder_is_recorded_as_it_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small_config(data={"dir": "data"})
    make("run", config)
    assert json.loads(Path("run/config.json").read_text())["data"]["dir"] == str(tmp_path / "data")
    assert (read_spec(tmp_path / "run"), to_dict(config)["data"]["dir"]) == ((SPEC, "digits"), "data")
    make("run", config)  # the same run


def test_a_network_sees_images_by_the_mean_and_deviation_of_the_training_images_alone():
    dark, bright, middle = (
        Dataset(np.random.default_rng(0).integers(*ends, (20, 8, 8, 3), np.uint8), np.zeros(20, np.int32))
        for ends in ((0, 64), (128, 256), (96, 128))
    )
    spec = input_spec(small_config(), Splits("mine", dark, bright, middle, ("a", "b")))
    values = dark.images / 255
    np.testing.assert_allclose(spec.mean, values.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(spec.std, values.std((0, 1, 2)), rtol=1e-6)
