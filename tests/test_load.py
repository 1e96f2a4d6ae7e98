"""A run folder stands on its own: predicting and judging without data, config file or code that is not trusted."""

import dataclasses
import json
import re
import runpy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import Perceptron, grey_data, small_config, with_fields

from jax_cifar import load_config, load_run
from jax_cifar.config.files import to_dict
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.deploy.source import recorded
from jax_cifar.errors import CheckpointError, ConfigError, DataError
from jax_cifar.evaluation import latency
from jax_cifar.run import load
from jax_cifar.training.loop import train

SCRIPTS = Path(__file__).parents[1] / "scripts"
pytestmark = pytest.mark.usefixtures("quick_compile")
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(small_config(train={"epochs": 1}, data={"label_noise": 0.3}), folder)
    return folder


@pytest.fixture
def moved(finished, tmp_path, monkeypatch) -> Path:
    """The run at another place, where no data can be had."""
    shutil.copytree(finished, tmp_path / "moved")
    monkeypatch.setattr(load, "load_data", lambda _: pytest.fail("data were read"))
    return tmp_path / "moved"


def test_a_moved_run_predicts_without_data(moved):
    run = load_run(moved)
    classes, shares, logits = run.predict(IMAGES), run.probabilities(IMAGES), run.logits(IMAGES)
    assert (classes.shape, classes.dtype.kind) == ((7,), "i")
    np.testing.assert_array_equal(classes, logits.argmax(axis=1))
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-5)
    assert run.label_names == load_data(small_config().data).label_names
    assert run.config == small_config(train={"epochs": 1}, data={"label_noise": 0.3})
    assert run.predict(IMAGES[:0]).shape == (0,)


def test_floating_images_are_the_same_images(moved):
    run = load_run(moved)
    np.testing.assert_array_equal(run.logits(IMAGES / np.float32(255)), run.logits(IMAGES))
    assert np.abs(run.logits(IMAGES[..., ::-1]) - run.logits(IMAGES)).max() > 1e-4  # BGR is another image


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"Images have shape \[32, 32, 3\]; this network takes \[n, 32, 32, 3\]"),
        (IMAGES[:, :16], r"Images have shape \[7, 16, 32, 3\]"),
        (IMAGES.astype(np.int64), "Images are int64; give uint8"),
        (IMAGES.astype(np.float32), "lie between 0 and 255; give values between 0 and 1"),
        (np.full((1, 32, 32, 3), np.nan), "lie between nan and nan"),
    ],
)
def test_other_images_are_refused(moved, images, message):
    with pytest.raises(DataError, match=message):
        load_run(moved).predict(images)


def test_evaluation_is_that_of_training_and_noisy_images_are_judged_by_their_true_labels(finished, capsys):
    run, summary = load_run(finished), json.loads((finished / "summary.json").read_text())
    assert run.evaluate().accuracy == summary["test_accuracy"]
    train_part = run.part("train")
    assert train_part.true_labels is not None and (train_part.labels != train_part.true_labels).mean() == 0.3
    predicted = run.predict(train_part.images)
    assert run.evaluate("train").accuracy == pytest.approx((predicted == train_part.true_labels).mean())
    assert run.evaluate("train").accuracy != pytest.approx((predicted == train_part.labels).mean())
    main = runpy.run_path(str(SCRIPTS / "evaluate.py"))["main"]
    judged = {"train": r"train images by their true labels \(30\.0% were made wrong\)", "test": "test images"}
    for split, said in judged.items():
        main(["--workdir", str(finished), "--split", split])
        assert re.match(rf"small, step \d+, {said}, tta none\n", capsys.readouterr().out)
    with pytest.raises(DataError, match="held no validation images out"):
        run.evaluate("val")


def test_the_script_judges_a_file_folded_too(finished, tmp_path, capsys, monkeypatch):
    part = load_data(small_config().data).test
    np.savez(tmp_path / "some.npz", images=part.images[:40], labels=part.labels[:40])
    main = runpy.run_path(str(SCRIPTS / "evaluate.py"))["main"]
    main(["--workdir", str(finished), "--split", str(tmp_path / "some.npz")])
    told = capsys.readouterr().out
    assert "images 40" in told
    monkeypatch.setattr(latency, "measure_latencies", partial(latency.measure_latencies, seconds=0, least=2))
    monkeypatch.setattr(latency, "BATCHES", (1, 40))
    main(["--workdir", str(finished), "--split", str(tmp_path / "some.npz"), "--fold"])
    table, _, latencies = capsys.readouterr().out.partition("\nlatency")
    assert table == told
    assert re.findall(r"batch of (\d+) +unfolded [\d.]+ ms .*, folded [\d.]+ ms", latencies) == ["1", "40"]
    np.savez(tmp_path / "other.npz", images=part.images[:2], labels=np.array([3, 10]))
    with pytest.raises(DataError, match="A label is 10, but the run knows 10 classes"):
        main(["--workdir", str(finished), "--split", str(tmp_path / "other.npz")])
    with pytest.raises(ConfigError, match=r"--split tset is not allowed: it must be test, val, train or a FILE\.npz"):
        main(["--workdir", str(finished), "--split", "tset"])


def test_images_of_other_classes_are_refused(finished, tmp_path, monkeypatch):
    run, main = load_run(finished), runpy.run_path(str(SCRIPTS / "evaluate.py"))["main"]
    names = run.label_names
    swapped = (names[1], names[0], *names[2:])
    file, own = tmp_path / "own.npz", load_data(small_config().data)
    for given, message in (
        (swapped, rf"own\.npz: class 0 is {names[1]!r}, in .*finished.* it is {names[0]!r}"),
        (names[:9], rf"own\.npz: class 9 is 'none', in .* it is {names[9]!r}"),
    ):
        np.savez(file, images=own.test.images[:9], labels=own.test.labels[:9] % 9, label_names=given)
        with pytest.raises(DataError, match=message):
            main(["--workdir", str(finished), "--split", str(file)])
    for given in (names, tuple("0123456789")):
        np.savez(file, images=own.test.images[:9], labels=own.test.labels[:9], label_names=given)
        main(["--workdir", str(finished), "--split", str(file)])
    monkeypatch.setattr(load, "load_data", lambda _: dataclasses.replace(own, label_names=swapped))
    for use in (run.splits, run.evaluate):
        with pytest.raises(DataError, match=f"class 0 is {names[1]!r}"):
            use()


def test_images_that_a_changed_set_was_trained_on_are_no_test_images(tmp_path):
    config = small_config(model=Perceptron(), train={"epochs": 1}, data=grey_data(tmp_path))
    train(config, tmp_path / "run")
    run, file = load_run(tmp_path / "run"), tmp_path / "grey.npz"
    before, (images, labels) = run.part("train").images, np.load(file).values()
    np.savez(file, images=np.concatenate([images[:50] + 1, images]), labels=np.concatenate([labels[:50], labels]))
    test = load_data(config.data).test.images
    assert {image.tobytes() for image in before} & {image.tobytes() for image in test}
    for split in ("test", "train"):
        with pytest.raises(DataError, match=r"grey\.npz: .*run was trained on other images \(checksum .*--split FILE"):
            run.evaluate(split)
    main = runpy.run_path(str(SCRIPTS / "evaluate.py"))["main"]
    main(["--workdir", str(run.folder), "--split", str(file)])  # what is named is judged
    np.savez(file, images=images, labels=labels)
    assert run.evaluate("test").count == 40


def test_other_test_images_beside_the_same_training_images_are_told(tmp_path, capsys):
    whole = np.load(grey_data(tmp_path)["dir"])
    arrays: dict[str, Any] = dict(zip(("images", "test_images"), np.split(whole["images"], [200]), strict=True))
    arrays |= dict(zip(("labels", "test_labels"), np.split(whole["labels"], [200]), strict=True))
    file = tmp_path / "parts.npz"
    np.savez(file, **arrays)
    data = {"name": "npz", "dir": str(file), "subset": None, "val_fraction": 0.1}
    train(small_config(model=Perceptron(), train={"epochs": 1}, data=data), tmp_path / "run")
    run = load_run(tmp_path / "run")
    for part in ("test", "val", "train"):
        assert run.evaluate(part).count > 0
    assert "WARNING" not in capsys.readouterr().err.upper()
    np.savez(file, **arrays | {"test_labels": (arrays["test_labels"] + 1) % 10})
    run.evaluate("test")
    assert re.search(r"parts\.npz: its test images .* are not those that .*run was judged by", capsys.readouterr().err)
    np.savez(file, **arrays | {"images": 255 - arrays["images"]})
    assert run.evaluate("test").count == 40  # the images that it was judged by, and no others
    assert not capsys.readouterr().err
    with pytest.raises(DataError, match="was trained on other images"):
        run.evaluate("val")


@pytest.mark.slow
def test_a_run_on_images_given_in_python_asks_for_them_again(tmp_path):
    splits = load_data(small_config().data)
    mine = Splits("mine", splits.train.take(np.arange(64)), splits.test.take(np.arange(30)), None, splits.label_names)
    config = small_config(model=Perceptron(), data={"subset": None, "val_fraction": 0.1})
    result = train(config, tmp_path, splits=mine)
    assert result.report.count == 30 and result.summary["dataset"] == "mine"
    assert result.summary["best_validation_accuracy"] is not None  # divided as any other set
    run = load_run(tmp_path)
    assert run.evaluate(mine.test).accuracy == result.report.accuracy
    with pytest.raises(DataError, match="trained on images given in Python"):
        run.evaluate()
    with pytest.raises(ConfigError, match=r"was trained on images given in Python\. Give them again, as splits"):
        train(config, tmp_path)
    assert "TrainState" not in repr(result) and "params" not in repr(run)
    changed = dataclasses.replace(mine, train=Dataset(255 - mine.train.images, mine.train.labels))
    with pytest.raises(CheckpointError, match="other images"):
        train(config, tmp_path, splits=changed)


@pytest.mark.parametrize(("text", "message"), [("{", "is damaged"), ('{"mean": 3}', "does not say what the network")])
def test_a_damaged_file_is_told(moved, text, message):
    (moved / "network.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_run(moved)


def test_a_folder_without_a_run_or_checkpoint_is_refused(moved, tmp_path):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no best checkpoint\. Only runs with data\.val_fraction > 0"):
        load_run(moved, "best")
    shutil.rmtree(moved / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no last checkpoint"):
        load_run(moved)


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("[0-9]*")
    (file, *_) = sorted((checkpoint / "state").rglob("d/*"), key=lambda path: -path.stat().st_size)
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used. .* is damaged"):
        load_run(tmp_path / "run")
    assert checkpoint.is_dir()


OWN = """
import flax.linen as nn
from small_runs import small_config
import dataclasses

class MyNet(nn.Module):
    num_classes: int = 10
    hidden: int = 4

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(self.hidden, (3, 3), strides=4, padding=((1, 1), (1, 1)))(images))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))

def get_config():
    return dataclasses.replace(small_config(train={"epochs": 1}), model=MyNet(hidden=6))
"""


def test_code_of_a_runs_own_is_run_only_where_it_is_trusted(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    result = train(load_config(file, ["--model.hidden", "5"]), tmp_path / "run")
    assert result.state.params["Conv_0"]["kernel"].shape == (3, 3, 3, 5)
    expected = load_run(tmp_path / "run").logits(IMAGES)  # the file is unchanged at its place
    shutil.move(tmp_path / "run", tmp_path / "away")
    np.testing.assert_array_equal(load_run(tmp_path / "away").logits(IMAGES), expected)
    file.write_text(OWN.replace("nn.relu", "nn.tanh"))
    with pytest.raises(ConfigError, match="--trust-code"):
        load_run(tmp_path / "away")
    np.testing.assert_array_equal(load_run(tmp_path / "away", trust_code=True).logits(IMAGES), expected)


def test_a_file_that_is_given_away_does_not_say_where_the_images_lie():
    config = small_config(data={"name": "npz", "dir": "/home/me/photos.npz", "subset": None})
    there, elsewhere = (recorded(with_fields(config, data={"dir": place})) for place in ("/home/me/a", "/home/me/b"))
    assert "/home" not in str(there) and there != elsewhere
    cifar = small_config(data={"name": "cifar10", "dir": "/home/me/cifar"})
    assert recorded(cifar)["data"] == {**to_dict(cifar)["data"], "dir": None}


def test_a_run_of_the_librarys_parts_executes_nothing_from_its_folder(moved):
    (moved / "source").mkdir(exist_ok=True)
    (moved / "source" / "small.py").write_text("raise SystemExit('executed')")
    values = {"files": [{"name": "small.py", "path": "/small.py", "sha256": ""}], "origins": {"small.py": "small.py"}}
    (moved / "source.json").write_text(json.dumps(values))
    assert load_run(moved, trust_code=True).predict(IMAGES).shape == (7,)
