"""ONNX files are read back as classifiers: those of the export, and of strangers none that is not one of them."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import METADATA, WEIGHTS, make_model, node, save, tensor

from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.errors import ConfigError, DataError, ExportError

IMAGES = np.random.default_rng(0).integers(0, 256, (130, 4, 4, 3), dtype=np.uint8)
ROOT = Path(__file__).parents[1]


def expected_logits(images: np.ndarray) -> np.ndarray:
    normalized = (images / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3]
    return normalized.mean(axis=(1, 2)) @ WEIGHTS


@pytest.mark.parametrize("float_input", [False, True])
def test_a_file_predicts_what_its_graph_computes_for_any_number_of_images(float_input: bool, tmp_path: Path) -> None:
    model = load_onnx(save(make_model(float_input), tmp_path))
    assert (model.label_names, model.image_shape) == (("red", "green", "blue"), (4, 4, 3))
    assert dict(model.metadata) == METADATA
    logits = model.logits(IMAGES)
    np.testing.assert_allclose(logits, expected_logits(IMAGES), atol=1e-5)
    np.testing.assert_array_equal(model.predict(IMAGES), logits.argmax(axis=1))
    powers = np.exp(logits)
    np.testing.assert_allclose(model.probabilities(IMAGES), powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(model.logits(IMAGES / np.float32(255)), logits)
    assert logits.dtype == np.float32 and model.logits(IMAGES[:0]).shape == (0, 3)
    assert np.abs(model.logits(IMAGES[..., ::-1]) - logits).max() > 0.1  # BGR is another image
    with pytest.raises(DataError, match=r"Images have shape \[130, 3, 4, 3\]; this network takes \[n, 4, 4, 3\]"):
        model.logits(IMAGES[:, :3])


def test_files_of_earlier_versions_say_their_shape_by_the_graph(tmp_path: Path) -> None:
    old = {name: text for name, text in METADATA.items() if name not in ("image_shape", "side", "variant")}
    assert load_onnx(save(make_model(metadata=old), tmp_path)).image_shape == (4, 4, 3)
    new = METADATA | {"side": "2"}
    assert load_onnx(save(make_model(metadata=new), tmp_path)).spec.side == 2


def with_metadata(**entries: Any) -> onnx.ModelProto:
    """`make_model` with other entries in its metadata; None: without that one."""
    return make_model(metadata={name: text for name, text in (METADATA | entries).items() if text is not None})


def changed(change: Any) -> onnx.ModelProto:
    model = make_model()
    change(model.graph)
    return model


def rename_input(graph: Any) -> None:
    graph.input[0].name = graph.node[0].input[0] = "pictures"


def rename_output(graph: Any) -> None:
    graph.output[0].name = graph.node[-1].output[0] = "classes"


def fix_batch(graph: Any) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def other_type(graph: Any) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def second_input(graph: Any) -> None:
    graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def custom_operation(graph: Any) -> None:
    graph.node[-1].op_type, graph.node[-1].domain = "Steal", "evil"


def cannot_run(graph: Any) -> None:
    graph.initializer.append(tensor("wrong", np.zeros((5, 3), np.float32)))
    graph.node[-1].input[1] = "wrong"
    del graph.node[-2:-1]
    graph.node[-1].input[0] = graph.node[-2].output[0]


def elsewhere(graph: Any, location: str = "/etc/passwd") -> None:
    weights = graph.initializer[-1]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "36")):
        weights.external_data.add(key=key, value=value)


def elsewhere_in_a_node(graph: Any) -> None:
    elsewhere(graph)
    graph.node.insert(0, node("Constant", [], "w2", value=graph.initializer.pop()))
    graph.node[-1].input[1] = "w2"


def elsewhere_in_a_branch(graph: Any) -> None:
    elsewhere(graph)
    branch = helper.make_graph([node("Identity", ["w3"], "w4")], "branch", [], [tensor_info("w4")])
    branch.initializer.append(graph.initializer.pop())
    branch.initializer[0].name = "w3"
    graph.initializer.append(tensor("yes", np.array(True)))
    graph.node.insert(0, node("If", ["yes"], "w2", then_branch=branch, else_branch=branch))
    graph.node[-1].input[1] = "w2"


def tensor_info(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 3])


DEEP = "[" * 100_000
REFUSED: list[tuple[Any, str]] = [
    (changed(rename_input), r"takes pictures tensor\(uint8\) \['batch', 4, 4, 3\] and gives logits; expected images, "),
    (
        changed(rename_output),
        r"and gives classes; expected images, .* and logits\. Name a file that scripts/export\.py",
    ),
    (changed(fix_batch), r"takes images tensor\(uint8\) \[1, 4, 4, 3\]"),
    (changed(second_input), r"takes images .*, more tensor\(float\) \[1\]"),
    (changed(other_type), r"takes images tensor\(int64\)"),
    (changed(custom_operation), r"is no ONNX file that can be used \(.*evil"),
    (changed(cannot_run), r"does not run: |is no ONNX file that can be used"),
    (changed(elsewhere), r"keeps weights in another file\. Name"),
    (changed(elsewhere_in_a_node), r"keeps weights in another file"),
    (changed(elsewhere_in_a_branch), r"keeps weights in another file"),
    (with_metadata(label_names=None, mean=None), r"does not say its label_names, mean in its metadata\. Name a file"),
    (with_metadata(label_names="red, green"), r"says 'red, green' for label_names, which is no JSON"),
    (with_metadata(label_names=DEEP), r"says '\[\[\[.*for label_names, which is no JSON"),
    (with_metadata(label_names='"red"'), r"metadata that cannot be \(InputSpec\.label_names = 'red' is not allowed"),
    (with_metadata(label_names='["a", "a", "b"]'), r"every class needs a name of its own"),
    (with_metadata(label_names='["a", "b"]'), r"gives float32 \[2, 3\] for 2 images of 2 classes"),
    (with_metadata(std="[0.1, 0, 0.1]"), r"InputSpec\.std = .* is not allowed"),
    (with_metadata(mean="[0.1, NaN, 0.1]"), r"InputSpec\.mean = .* is not allowed"),
    (with_metadata(mean='{"a": 1}'), r"InputSpec\.mean = \{'a': 1\} is not allowed"),
    (with_metadata(image_shape="[8, 8, 3]"), r"takes images of \[4, 4, 3\], while its metadata say \[8, 8, 3\]"),
    (b"", r"is no ONNX file that can be used"),
    (b"\x89PNG\r\n", r"is no ONNX file that can be used \(Failed to load model because protobuf parsing failed\)"),
    (b"location", r"is damaged, or no ONNX file|is no ONNX file"),
    (make_model().SerializeToString()[:400], r"is no ONNX file that can be used"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_another_model_or_a_damaged_one_is_one_message(
    content: Any, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(ExportError, match=message) as error:
        load_onnx(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value) and len(str(error.value)) < 500
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file_is_one_message(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for name, message in [
        ("pipe", "a pipe or a device"),
        ("huge", "at most"),
        ("", "a directory"),
        ("x", "No such file"),
    ]:
        with pytest.raises(ExportError, match=f"cannot be read: .*{message}.* Name a file"):
            load_onnx(tmp_path / name)


def test_a_stablehlo_file_is_told_with_what_reads_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.stablehlo", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"location": "here"}))
        archive.writestr("module.bin", b"program")
    with pytest.raises(ExportError, match=r"is a StableHLO file, which .*load_stablehlo reads .* model\.onnx$"):
        load_onnx(tmp_path / "model.stablehlo")


def test_a_class_may_be_called_location(tmp_path: Path) -> None:
    model = with_metadata(label_names=json.dumps(["location", "green", "blue"]))
    assert load_onnx(save(model, tmp_path)).label_names[0] == "location"


def test_without_onnxruntime_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        load_onnx(save(make_model(), tmp_path))


def test_neither_jax_nor_torch_nor_onnx_is_imported(tmp_path: Path) -> None:
    path = save(make_model(), tmp_path)
    code = f"""
import sys
from jax_cifar.deploy.onnx import load_onnx
from jax_cifar.evaluation.classify import predict_pictures
list(predict_pictures(load_onnx({str(path)!r}), ["gone.png"]))
print([name for name in ("jax", "flax", "torch", "onnx", "tyro", "scipy", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
