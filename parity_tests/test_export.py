"""ONNX files against the JAX networks, in ONNX Runtime; and what scripts/export.py does when something is wrong."""

import functools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
import torch
from networks import CLASSES, CONFIGS, QUICK_COMPILE, draw_variables, image_size, template
from small_runs import loop, small_config
from tolerances import TOLERANCES

from jax_cifar import load_run, models
from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.errors import CheckpointError, ConfigError, ExportError
from jax_cifar.files import read_record
from torch_ref import convert, export
from torch_ref.models import create_model

SCRIPT = Path(__file__).parents[1] / "scripts" / "export.py"
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def pixels(case, count=65):
    size = image_size(case)
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@functools.cache
def jax_logits(case):
    """What the JAX network makes of `pixels`."""
    normalized = export.normalize(pixels(case), MEAN, STD).transpose(0, 2, 3, 1)
    apply = functools.partial(models.create_model(CONFIGS[case], CLASSES).apply, train=False)
    return np.asarray(jax.jit(apply, compiler_options=QUICK_COMPILE)(draw_variables(template(case)), normalized))


def torch_network(case):
    network = create_model(CONFIGS[case], CLASSES, image_size(case))
    network.load_state_dict(convert.to_torch(draw_variables(template(case)), network), strict=True)
    return network


def exported(case, network, float_input=False):
    return export.to_onnx(network, pixels(case).shape[1:], MEAN, STD, float_input)


# Every architecture and every norm once; the rest is left to the slow tests.
QUICK = ("tiny_cnn-group", "simple_cnn-none", "simple_cnn-batch", "cifar_cnn-batch", "resnet18-imagenet")
QUICK += ("speedrun_net-residual",)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CONFIGS]
)
def test_every_network_agrees_at_every_batch_size(case):
    model = exported(case, torch_network(case))
    (images,), (logits,) = model.graph.input, model.graph.output
    dims = images.type.tensor_type.shape.dim
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [*pixels(case).shape[1:]]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert TOLERANCES["onnxruntime"].limit == export.TOLERANCE
    assert export.require_agreement(model, pixels(case), jax_logits(case)).shape == (65, CLASSES)


def test_float_images_in_torchs_layout():
    case = "simple_cnn-batch"
    model = exported(case, torch_network(case), float_input=True)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    logits = export.require_agreement(model, export.normalize(pixels(case), MEAN, STD), jax_logits(case))
    assert np.array_equal(logits.argmax(1), jax_logits(case).argmax(1))


def larger_epsilon(network):
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3


def not_a_number(network):
    torch.nn.init.constant_(network.fc2.bias, float("nan"))


@pytest.mark.parametrize("fault", [larger_epsilon, not_a_number])
def test_a_model_that_computes_something_else_is_refused(fault):
    case = "simple_cnn-batch"
    network = torch_network(case)
    fault(network)
    with pytest.raises(ExportError, match="batch size 1 they differ by"):
        export.require_agreement(exported(case, network), pixels(case), jax_logits(case))


def test_a_model_that_is_wrong_at_one_batch_size_is_refused(monkeypatch):
    case, predict = "simple_cnn-batch", export.predict
    model = exported(case, torch_network(case))
    monkeypatch.setattr(export, "predict", lambda session, images, size: predict(session, images, size) + (size == 7))
    with pytest.raises(ExportError, match="batch size 7 "):
        export.require_agreement(model, pixels(case), jax_logits(case))


def test_a_write_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    path, model = tmp_path / "model.onnx", onnx.ModelProto()
    path.write_text("older")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        export.save(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "older"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything that could lead an export astray: averaged weights, a best checkpoint, bfloat16."""
    config = small_config(optim={"ema_decay": 0.9}, data={"val_fraction": 0.1}, train={"dtype": "bfloat16"})
    return loop.train(config, tmp_path_factory.mktemp("run") / "run")


def run_script(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="uint8"),
        pytest.param(["--float-input", "--checkpoint", "best"], id="float", marks=pytest.mark.slow),
    ],
)
def test_the_script_writes_one_file_that_says_what_it_is(finished, tmp_path, options):
    out = tmp_path / "model.onnx"
    done = run_script("--workdir", finished.workdir, "--out", out, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert str(SCRIPT.parents[1]).encode() not in out.read_bytes()

    entries = export.get_metadata(onnx.load(out))
    labels, images = finished.report.label_names, int(finished.report.confusion.sum())
    assert json.loads(entries["label_names"]) == list(labels)
    assert json.loads(entries["config"]) == read_record(finished.workdir / "config.json")
    assert ("NCHW" in entries["input"]) == bool(options)
    accuracy = f"{float(entries['test_accuracy']):.2%}"
    assert f"{accuracy} in JAX, {accuracy} in ONNX Runtime" in done.stdout
    assert f"{images} of {images} classes the same" in done.stdout

    read, run = load_onnx(out), load_run(finished.workdir, "best" if options else "last", dtype="float32")
    images = run.part("test").images[:70]
    expected = run.logits(images)
    assert (read.label_names, read.image_shape, read.is_normalized) == (labels, run.image_shape, bool(options))
    assert np.abs(read.logits(images) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture
def main():
    """The script's `main`, called in this process."""
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/model.onnx", "cannot be written: No such file"),
        ("model.pt", "does not end in .onnx"),
        ("folder.onnx", "is a folder"),
        ("file/model.onnx", "cannot be written: Not a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_first(main, tmp_path, name, message):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        main(["--workdir", "nowhere", "--out", str(tmp_path / name)])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.onnx"]


def cut_short(folder):
    """As a copy of a run folder that was broken off."""
    for file in (folder / "checkpoints").rglob("state/**/*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def narrower(folder):
    config = read_record(folder / "config.json")
    config["model"]["width"] = 3
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (cut_short, r"can be used\. .* is damaged"),
        (narrower, r"belongs to another configuration:\n.*checkpoint \(4,\), this configuration \(3,\)"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "holds no last checkpoint"),
        (lambda folder: (folder / "config.json").unlink(), "is not a run folder"),
    ],
    ids=["cut-short", "narrower", "none", "no-config"],
)
def test_a_checkpoint_that_cannot_be_exported_is_refused(main, finished, tmp_path, fault, message):
    folder = shutil.copytree(finished.workdir, tmp_path / "run")
    fault(folder)
    with pytest.raises(CheckpointError, match=message):
        main(["--workdir", str(folder), "--out", str(tmp_path / "model.onnx")])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_logits_that_disagree_are_never_written(main, finished, tmp_path, monkeypatch):
    to_torch = convert.to_torch
    monkeypatch.setattr(convert, "to_torch", lambda *given: {k: v * 1.001 for k, v in to_torch(*given).items()})
    with pytest.raises(ExportError, match="Nothing was written"):
        main(["--workdir", str(finished.workdir), "--out", str(tmp_path / "model.onnx")])
    assert not [*tmp_path.iterdir()]
