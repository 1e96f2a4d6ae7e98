"""ONNX models against the JAX networks, in ONNX Runtime; and what scripts/export.py does when something is wrong."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import torch
from networks import CLASSES, CONFIGS, QUICK_COMPILE, draw_variables, image_size, template
from small_runs import loop, small_config
from tolerances import TOLERANCES, assert_close

from jax_cifar import load_run, load_stablehlo, models
from jax_cifar.config.spec import InputSpec
from jax_cifar.data.dataset import normalize
from jax_cifar.deploy import artefact, stablehlo
from jax_cifar.deploy.agreement import Expected, require_agreement, sample_of
from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.errors import CheckpointError, ConfigError, ExportError
from jax_cifar.evaluation import latency
from jax_cifar.evaluation.exact import in_float64
from jax_cifar.files import read_record
from jax_cifar.models.network import Network, downsample
from torch_ref import convert, export
from torch_ref.models import create_model

SCRIPT = Path(__file__).parents[1] / "scripts" / "export.py"
BATCHES = (1, 2, 7, 64)


def spec_of(case, side=None):
    size = image_size(case)
    names = tuple(map(str, range(CLASSES)))
    return InputSpec((size, size, 3), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), side, names)


def pixels(case, count=65):
    return np.random.default_rng(1).integers(0, 256, (count, *spec_of(case).image_shape), dtype=np.uint8)


def jax_network(case, side=None):
    return Network(models.create_model(CONFIGS[case], CLASSES), spec_of(case, side))


@functools.cache
def exact(case, side=None):
    images = pixels(case)
    return in_float64(jax_network(case, side), draw_variables(template(case)), images[sample_of(len(images))])


@functools.cache
def expected(case, side=None):
    """What the JAX network makes of `pixels`."""
    compute = jax.jit(jax_network(case, side).logits, compiler_options=QUICK_COMPILE)
    return Expected(np.asarray(compute(draw_variables(template(case)), pixels(case))), exact(case, side).logits)


def torch_network(case):
    network = create_model(CONFIGS[case], CLASSES, image_size(case))
    network.load_state_dict(convert.to_torch(draw_variables(template(case)), network), strict=True)
    return network


def exported(case, network, side=None, float_input=False):
    return export.to_onnx(network, spec_of(case, side), float_input)


def run_onnx(model, images):
    """Logits of all images, and of the first ones in calls of every size."""
    session = export.open_session(model)
    return [export.predict(session, images if size == 64 else images[: 2 * size], size) for size in BATCHES]


# Every architecture and every norm once; the rest is left to the slow tests.
QUICK = ("tiny_cnn-group", "simple_cnn-none", "simple_cnn-batch", "cifar_cnn-batch", "resnet18-imagenet")
QUICK += ("speedrun_net-residual",)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CONFIGS]
)
def test_every_network_agrees_at_every_batch_size(case):
    network = torch_network(case)
    export.require_twin(network, exact(case).inputs, exact(case).logits)
    model = exported(case, network)
    (images,), (logits,) = model.graph.input, model.graph.output
    dims = images.type.tensor_type.shape.dim
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [*spec_of(case).image_shape]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    for found in run_onnx(model, pixels(case)):
        seen = require_agreement(found, expected(case))
        assert seen.gap <= TOLERANCES["onnxruntime"].limit


def test_float_images_in_torchs_layout():
    case = "simple_cnn-batch"
    model = exported(case, torch_network(case), float_input=True)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    images = normalize(pixels(case), spec_of(case).mean, spec_of(case).std)
    assert require_agreement(run_onnx(model, images)[-1], expected(case)).same == 65


@pytest.mark.parametrize("side", [7, 16, 18, 24, 31])
@pytest.mark.usefixtures("x64")
def test_downsampling_by_two_products_is_jaxs(side):
    images = np.random.default_rng(0).random((3, 32, 40, 3))
    rows, columns = export.downsampling(32, side), export.downsampling(40, side)
    found = np.einsum("rh,bhwc,sw->brsc", rows, images, columns)
    assert_close(found, np.asarray(downsample(jnp.asarray(images), side)), "float64 operation")


def test_a_network_that_looks_at_smaller_images_has_them_made_in_the_graph():
    case, side = "speedrun_net-shallow", 12
    (found, *_) = reversed(run_onnx(exported(case, torch_network(case), side), pixels(case)))
    assert require_agreement(found, expected(case, side)).gap <= TOLERANCES["onnxruntime"].limit
    without_antialiasing = torch.nn.functional.interpolate(torch.eye(18)[None, None], (side, 18), mode="bilinear")
    network = export.Deployed(torch_network(case), spec_of(case, side)).eval()
    network.rows, network.columns = without_antialiasing[0, 0], without_antialiasing[0, 0].T
    with torch.no_grad(), pytest.raises(ExportError, match="where rounding explains"):
        require_agreement(network(torch.from_numpy(pixels(case))).numpy(), expected(case, side))


def larger_epsilon(network):
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3


def not_a_number(network):
    torch.nn.init.constant_(network.fc2.bias, float("nan"))


def one_channels_scale(network):
    with torch.no_grad():
        network.bn2.weight[3] *= 1.001


@pytest.mark.parametrize("fault", [larger_epsilon, not_a_number, one_channels_scale])
def test_a_model_that_computes_something_else_is_refused(fault):
    case = "simple_cnn-batch"
    network = torch_network(case)
    fault(network)
    with pytest.raises(ExportError, match="The PyTorch network is not the JAX network"):
        export.require_twin(network, exact(case).inputs, exact(case).logits)
    with torch.no_grad(), pytest.raises(ExportError, match=r"batch size 2.* where rounding explains"):
        found = export.Deployed(network.eval(), spec_of(case))(torch.from_numpy(pixels(case)))
        require_agreement(found.numpy(), expected(case), " at batch size 2")


def test_the_bound_is_the_networks_own_error_in_float32():
    case = "simple_cnn-batch"
    right, noise = expected(case), np.random.default_rng(0).normal(size=expected(case).logits.shape)
    scale, own = abs(right.logits).max(), np.sqrt(np.mean((right.logits[sample_of(65)] - right.exact) ** 2))
    require_agreement(right.logits + np.float32(own) * noise.astype(np.float32), right)
    assert own < 1e-6 * scale
    with pytest.raises(ExportError, match="in the mean"):
        require_agreement(right.logits + np.float32(6 * own) * noise.astype(np.float32), right)
    rough = Expected(right.logits + np.float32(1e-4 * scale) * noise.astype(np.float32), right.exact)
    require_agreement(right.logits + np.float32(1e-4 * scale) * noise[::-1].astype(np.float32), rough)


def test_a_network_without_float64_is_bound_by_a_constant():
    logits = expected("simple_cnn-batch").logits
    assert "no float64" in str(require_agreement(logits, Expected(logits, None)))
    with pytest.raises(ExportError, match="where rounding explains"):
        require_agreement(logits + 2e-5 * abs(logits).max(), Expected(logits, None))


def test_another_process_that_gives_other_logits_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("older")
    right = expected("simple_cnn-batch")
    shifted = {0: right.logits, 7: right.logits[:14] + 1}
    monkeypatch.setattr(artefact, "logits_elsewhere", lambda *given: shifted)
    with pytest.raises(ExportError, match="at batch size 7"):
        artefact.write_verified(path, b"new", pixels("simple_cnn-batch"), right)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.onnx", "older")]


@pytest.mark.parametrize(("suffix", "told"), [(".onnx", "no ONNX file"), (".stablehlo", "no StableHLO file")])
def test_what_another_process_cannot_load_is_removed(tmp_path, suffix, told):
    path = tmp_path / f"model{suffix}"
    with pytest.raises(ExportError, match=f"cannot be used in another process: .*{told}"):
        artefact.write_verified(path, b"no network", pixels("simple_cnn-batch"), expected("simple_cnn-batch"))
    assert not [*tmp_path.iterdir()]


def test_a_write_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.onnx"
    path.write_text("older")
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(artefact, "logits_elsewhere", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        artefact.write_verified(path, b"new", pixels("simple_cnn-batch"), expected("simple_cnn-batch"))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.onnx", "older")]


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


@pytest.mark.parametrize("case", ["cifar_cnn-batch", pytest.param("speedrun_net-residual", marks=pytest.mark.slow)])
def test_a_stablehlo_program_is_the_same_for_all_platforms_and_has_no_form_made_for_a_cpu(case):
    # Wide enough for Winograd's algorithm, which a CPU would get.
    model = models.create_model(dataclasses.replace(CONFIGS[case], width=64), CLASSES)
    network = Network(model, spec_of(case, 16))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False))
    values = {"batch_stats": {}} | jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    program = jax.export.deserialize(bytearray(stablehlo.to_program(network, values)))
    text = program.mlir_module()
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert stablehlo.custom_calls(program) == {"shape_assertion"}
    operations = set(re.findall(r"stablehlo\.(\w+)", text))
    assert "convolution" in operations
    assert operations.isdisjoint({"while", "dynamic_slice", "gather", "dynamic_gather", "optimization_barrier"})
    assert set(re.findall(r"precision (\w+)", text)) == {"HIGHEST"}
    assert "bf16" not in text and "f16" not in text


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
