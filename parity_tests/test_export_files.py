"""What scripts/export.py writes, what it refuses, and what another process makes of the files."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from small_runs import loop, small_config, untrained_run

from jax_cifar import load_config, load_run, load_stablehlo
from jax_cifar.data import Dataset, Splits
from jax_cifar.deploy import artefact
from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.errors import CheckpointError, ConfigError, DataError, ExportError
from jax_cifar.evaluation import latency
from jax_cifar.files import read_record
from jax_cifar.lab import deployed
from jax_cifar.models import TinyCNN
from torch_ref import convert, export
from torch_ref.twin import load_twin, make_twin

SCRIPT = Path(__file__).parents[1] / "scripts" / "export.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything that could lead an export astray: averaged weights, a best checkpoint, bfloat16."""
    config = small_config(optim={"ema_decay": 0.9}, data={"val_fraction": 0.1}, train={"dtype": "bfloat16"})
    return loop.train(config, tmp_path_factory.mktemp("run") / "run")


def call(*arguments):
    """The script's `main`, in this process."""
    runpy.run_path(str(SCRIPT))["main"]([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(finished, tmp_path_factory):
    """The run exported both ways, and what was printed."""
    folder, told = tmp_path_factory.mktemp("exported"), {}
    quick = functools.partial(latency.measure_latencies, seconds=0, least=2)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(latency, "measure_latencies", quick)
    for name, options in {"model.onnx": ["--fold"], "model.stablehlo": []}.items():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            call("--workdir", finished.workdir, "--out", folder / name, *options)
        told[name] = printed.getvalue()
    monkeypatch.undo()
    assert sorted(file.name for file in folder.iterdir()) == ["model.onnx", "model.stablehlo"]
    return folder, told


def entries_of(path):
    """The metadata of an exported file."""
    if path.suffix == ".stablehlo":
        return load_stablehlo(path).metadata
    text = ("input", "dataset", "variant")
    found = export.get_metadata(onnx.load(path))
    return {name: value if name in text else json.loads(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("name", "runtime"), [("model.onnx", "ONNX Runtime"), ("model.stablehlo", "JAX from the file")]
)
def test_the_script_writes_one_file_that_says_what_it_is(finished, files, name, runtime):
    folder, told = files
    assert str(SCRIPT.parents[1]).encode() not in (folder / name).read_bytes()
    entries, images = entries_of(folder / name), int(finished.report.confusion.sum())
    assert entries["label_names"] == list(finished.report.label_names)
    assert entries["config"] == read_record(finished.workdir / "config.json")
    assert (entries["input"], entries["variant"]) == ("uint8 NHWC, 0 to 255", "float32")
    assert (entries["image_shape"], entries["side"], entries["step"]) == ([32, 32, 3], None, 12)
    accuracy = f"{entries['test_accuracy']:.2%}"
    assert f"{accuracy} in JAX, {accuracy} in {runtime}" in told[name]
    assert f"{images} of {images} classes the same" in told[name]
    assert ("batch of 128" in told[name]) == (name == "model.onnx")
    assert {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}.isdisjoint({"BatchNormalization"})


@pytest.mark.slow
def test_the_script_exports_the_best_checkpoint_for_normalised_images(finished, tmp_path):
    options = ("--workdir", finished.workdir, "--out", tmp_path / "model.onnx", "--float-input", "--checkpoint", "best")
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "NCHW" in entries_of(tmp_path / "model.onnx")["input"]
    read, trained = load_onnx(tmp_path / "model.onnx"), load_run(finished.workdir, "best", dtype="float32")
    images = trained.part("test").images[:70]
    assert read.is_normalized
    assert np.abs(read.logits(images) - trained.logits(images)).max() < 1e-5 * np.abs(read.logits(images)).max()


@pytest.mark.parametrize("float_input", [False, True])
def test_a_network_of_grey_images_that_are_no_squares_becomes_a_file_that_takes_them(tmp_path, float_input):
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 24, 1), np.uint8)
    part = Dataset(images, np.arange(5, dtype=np.int32))
    trained = untrained_run(tmp_path, Splits("grey", part, part, None, tuple("abcde")))
    model, spec = export.to_onnx(make_twin(trained), trained.network.spec, float_input), trained.network.spec
    export.set_metadata(model, **dataclasses.asdict(spec))
    onnx.save(model, tmp_path / "grey.onnx")
    read, expected = load_onnx(tmp_path / "grey.onnx"), trained.logits(images)
    assert (read.spec, read.spec.image_shape, read.is_normalized) == (spec, (16, 24, 1), float_input)
    assert np.abs(read.logits(images) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run of images given in Python that are no squares, and a file with arrays like them."""
    images = np.random.default_rng(1).integers(0, 256, (10, 16, 24, 3), np.uint8)
    part, folder = Dataset(images, np.arange(10, dtype=np.int32) % 5), tmp_path_factory.mktemp("given")
    splits = Splits("given", part, part, None, tuple("abcde"))
    config = small_config(data={"subset": None}, train={"steps": 1, "batch_size": 8}, schedule={"warmup": 0.0})
    loop.train(config, folder / "run", splits=splits)
    np.savez(folder / "given.npz", images=images, labels=part.labels, label_names=list("abcde"))
    return folder / "run", folder / "given.npz", part


@pytest.mark.parametrize("name", ["model.stablehlo", "model.onnx"])
def test_a_run_of_images_given_in_python_is_exported_with_those_of_a_file(given, tmp_path, capsys, name):
    run, file, part = given
    words = ["--workdir", run, "--out", tmp_path / name]
    with pytest.raises(DataError, match=r"not keep. Give images again: --split FILE\.npz of .* export\.py, or run"):
        call(*words)
    call(*words, "--split", file)
    accuracy, told = load_run(run).evaluate(part).accuracy, capsys.readouterr().out
    assert f"test accuracy   {accuracy:.2%} in JAX, " in told and f", on {file}\n" in told
    assert entries_of(tmp_path / name)["test_accuracy"] == accuracy


def test_images_that_a_run_cannot_be_exported_with_are_told(given, tmp_path):
    run, _, part = given
    words, file = ["--workdir", run, "--out", tmp_path / "model.onnx"], tmp_path / "x.npz"
    with pytest.raises(ConfigError, match=r"--split train is not allowed: it must be a FILE\.npz"):
        call(*words, "--split", "train")
    whole: dict[str, Any] = {"images": part.images, "labels": part.labels}
    for arrays, message in (
        ({"images": part.images[:, :, :16]}, r"has shape \[10, 16, 16, 3\]; this network takes \[n, 16, 24, 3\]"),
        ({"labels": part.labels + 1}, r"x\.npz: A label is 5, but the run knows 5 classes: 0 to 4"),
        ({"label_names": list("abcdf")}, r"x\.npz: class 4 is 'f', in .* it is 'e'"),
    ):
        np.savez(file, allow_pickle=False, **whole | arrays)
        with pytest.raises(DataError, match=message):
            call(*words, "--split", file)
    np.savez(file, **whole)
    with pytest.raises(ConfigError, match=r"--int8 static is calibrated on training images.*--int8 weights need none"):
        call(*words, "--split", file, "--int8")
    assert not (tmp_path / "model.onnx").exists()


NEIGHBOURS = """
import flax.linen as nn
from jax_cifar.config import Config, DataConfig, TrainConfig

class Neighbours(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))
        return x - x.mean(axis=0, keepdims=True)

def get_config():
    return Config("own", data=DataConfig("synthetic", subset=200), model=Neighbours(), train=TrainConfig(steps=1))
"""


def test_a_network_whose_answer_depends_on_the_other_images_is_told_so(tmp_path):
    (tmp_path / "own.py").write_text(NEIGHBOURS)
    loop.train(load_config(tmp_path / "own.py"), tmp_path / "run")
    with pytest.raises(ExportError, match=r"depends on the others of its batch: in JAX itself .* a batch of 1 and a"):
        call("--workdir", tmp_path / "run", "--out", tmp_path / "model.stablehlo")
    assert not (tmp_path / "model.stablehlo").exists()


WITHOUT_FLAX = """
import sys, numpy
sys.modules.update(dict.fromkeys(("flax", "optax", "orbax", "torch", "onnx", "onnxruntime"), None))
from jax_cifar import load_stablehlo
model = load_stablehlo(sys.argv[1])
images = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], all=model.logits(images), few=model.logits(images[:3]), none=model.logits(images[:0]))
"""


def test_a_stablehlo_file_predicts_with_jax_alone_any_number_of_images(finished, files, tmp_path):
    images = load_run(finished.workdir, dtype="float32").part("test").images[:150]
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", WITHOUT_FLAX, files[0] / "model.stablehlo", tmp_path / "images.npy", "out.npz"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    with np.load(tmp_path / "out.npz") as found:
        want = load_onnx(files[0] / "model.onnx").logits(images)
        assert found["none"].shape == (0, 10) and len(found["all"]) == 150
        assert np.abs(found["all"] - want).max() < 1e-5 * np.abs(want).max()
        assert np.abs(found["few"] - want[:3]).max() < 1e-5 * np.abs(want).max()


def rezipped(path, **changes):
    """The content of a StableHLO file with some entries changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, changes.get(name.partition(".")[0], content))
    return new.getvalue()


def test_a_stablehlo_file_that_is_none_or_damaged_is_one_message(files, tmp_path):
    good, path = files[0] / "model.stablehlo", tmp_path / "x.stablehlo"
    metadata = json.dumps(dict(load_stablehlo(good).metadata) | {"image_shape": [16, 16, 3]}).encode()
    flipped = bytearray(good.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    cases = {
        b"": "no StableHLO file",
        good.read_bytes()[:-100]: "no StableHLO file",
        bytes(flipped): "Bad CRC-32",
        rezipped(good, metadata=b"[]"): "no table of metadata",
        rezipped(good, metadata=b"{}"): "does not say what its network sees",
        rezipped(good, metadata=metadata): "not what its metadata say",
        rezipped(good, module=b"nonsense"): "promised to be readable for six months",
        b"PK" + (files[0] / "model.onnx").read_bytes(): "no StableHLO file",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(ExportError, match=message):
            load_stablehlo(path)
    with pytest.raises(ExportError, match="No such file"):
        load_stablehlo(tmp_path / "missing.stablehlo")


def test_a_stablehlo_program_that_calls_its_host_is_refused(files, tmp_path):
    def hosted(images):
        values = jnp.linalg.eigvalsh(images[:, :10, :10, 0].astype(jnp.float32))
        return values + images.shape[0]

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    program = bytes(jax.export.export(jax.jit(hosted))(images).serialize())
    path = tmp_path / "x.stablehlo"
    path.write_bytes(rezipped(files[0] / "model.stablehlo", module=program))
    with pytest.raises(ExportError, match="calls lapack_ssyevd_ffi of its host, which no network needs"):
        load_stablehlo(path)


def test_a_file_of_another_run_is_replaced_only_where_that_is_said(finished, files, tmp_path):
    recorded, other = read_record(finished.workdir / "config.json"), {"name": "other"}
    for name in ("model.onnx", "model.stablehlo"):
        path = Path(shutil.copy(files[0] / name, tmp_path))
        artefact.require_ours(path, recorded, overwrite=False)
        with pytest.raises(ConfigError, match=r"was made of another run.*--overwrite"):
            artefact.require_ours(path, other, overwrite=False)
        artefact.require_ours(path, other, overwrite=True)
        path.write_text("a letter")
    for name in ("model.onnx", "model.stablehlo"):
        with pytest.raises(ConfigError, match="is there already and is no export of this run"):
            call("--workdir", finished.workdir, "--out", tmp_path / name)
        assert (tmp_path / name).read_text() == "a letter"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/model.onnx", "cannot be written: No such file"),
        ("model.pt", "ends in neither .onnx nor .stablehlo"),
        ("folder.onnx", "is a folder"),
        ("file/model.stablehlo", "cannot be written: Not a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_first(tmp_path, name, message):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        call("--workdir", "nowhere", "--out", tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.onnx"]


def test_options_that_do_nothing_together_are_refused(finished, tmp_path):
    for out, options, message in (
        ("model.stablehlo", ["--float-input"], "--float-input does nothing with model.stablehlo"),
        ("model.onnx", ["--torch-twin", "x.py:Twin"], "tiny_cnn has a twin that ships"),
    ):
        with pytest.raises(ConfigError, match=message):
            call("--workdir", finished.workdir, "--out", tmp_path / out, *options)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("{}", r"--torch-twin = 'own\.py' is not allowed: it must be FILE\.py:Name"),
        ("{}.py:Twin", r"own\.py\.py is not there\.$"),
        ("{}:Twins", r"own\.py: it defines no class or function Twins, which --torch-twin names$"),
        ("{}:Broken", r"own\.py, line 2: ZeroDivisionError: division by zero$"),
        ("{}:Empty", r"own\.py:Empty returned NoneType; it must return a torch\.nn\.Module\.$"),
    ],
)
def test_a_twin_that_is_none_is_told_by_file_and_line(tmp_path, monkeypatch, named, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def Broken(net, image_shape):\n    1 / 0\ndef Empty(net, image_shape):\n    pass\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_twin(named.format("own.py"), None, (32, 32, 3))


TWIN = """
from jax_cifar.config import ModelConfig
from torch_ref.models import create_model

def Twin(net, image_shape):
    norm = "none" if net.norm == "folded" else net.norm
    return create_model(ModelConfig("tiny_cnn", norm=norm, width=net.width), net.num_classes, image_shape[0])
"""


@pytest.mark.parametrize("float_input", [False, True])
def test_a_network_of_ones_own_is_timed_before_and_after_folding(tmp_path, monkeypatch, float_input):
    monkeypatch.setattr(latency, "measure_latencies", functools.partial(latency.measure_latencies, seconds=0, least=2))
    file = tmp_path / "own.py"
    file.write_text(TWIN)
    original = untrained_run(tmp_path, model=TinyCNN(num_classes=10, width=4))
    images = np.zeros((128, 32, 32, 3), np.uint8)
    source: Any = SimpleNamespace(run=original.folded(), original=original, test=SimpleNamespace(images=images))
    twin = f"{file}:Twin"
    content = export.to_onnx(make_twin(source.run, twin), original.network.spec, float_input).SerializeToString()
    told = list(runpy.run_path(str(SCRIPT))["fold_latencies"](source, content, twin, float_input))
    assert told[0].startswith("latency         ONNX Runtime on ") and len(told) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("option", "timed"), [("--float-input", True), ("--bfloat16", False)])
def test_before_and_after_folding_one_variant_is_timed(finished, tmp_path, monkeypatch, capsys, option, timed):
    """A smaller variant has its own table; beside an unfolded float32 network its gain would not be folding's."""
    measure = latency.measure_latencies
    for module in (deployed, latency):
        monkeypatch.setattr(module, "measure_latencies", lambda ways, *_: measure(ways, seconds=0, least=2))
    call("--workdir", finished.workdir, "--out", tmp_path / "model.onnx", "--fold", option)
    told = capsys.readouterr().out
    assert "written" in told and ("unfolded" in told) is timed


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
def test_a_checkpoint_that_cannot_be_exported_is_refused(finished, tmp_path, fault, message):
    folder = shutil.copytree(finished.workdir, tmp_path / "run")
    fault(folder)
    with pytest.raises(CheckpointError, match=message):
        call("--workdir", folder, "--out", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_logits_that_disagree_are_never_written(finished, tmp_path, monkeypatch):
    to_torch = convert.to_torch
    monkeypatch.setattr(convert, "to_torch", lambda *given: {k: v * 1.001 for k, v in to_torch(*given).items()})
    with pytest.raises(ExportError, match="Nothing was written"):
        call("--workdir", finished.workdir, "--out", tmp_path / "model.onnx")
    assert not [*tmp_path.iterdir()]
