"""Prepared TFDS folders without TensorFlow: read those that TFDS or this project made, and make one.

TFDS's own CIFAR builders can neither generate nor read TFRecord files without TensorFlow. Reading here needs only the
files; making a folder goes through a TFDS builder of our own.
"""

import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jax_cifar.data.dataset import Dataset, Decoded
from jax_cifar.data.layouts import Reader, decode_binary
from jax_cifar.data.published import (
    IMAGE_BYTES,
    IMAGE_SHAPE,
    LARGEST_MEMBER,
    CifarSpec,
    check_complete,
    check_names,
    read_members,
)
from jax_cifar.data.tfds_records import needed_packages, read_records
from jax_cifar.errors import DataError
from jax_cifar.files import read_bytes, read_json

_VERSION = "3.0.2"  # of TFDS's cifar10 and cifar100, whose features are kept
_COARSE_NAMES_FILE = "coarse_label_names.txt"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class _Content:
    """What a builder writes."""

    images: dict[str, np.ndarray]  # by split
    labels: dict[str, dict[str, np.ndarray]]  # by split and feature
    names: dict[str, tuple[str, ...]]  # of the labels, by feature


def load_prepared(root: Path, spec: CifarSpec) -> Decoded | None:
    """Read the newest version prepared in `root`/<name>/[<config>/]<version>, or return None where there is none.

    Images come in the published order (TFDS shuffles them, and keeps their place in `id`), so that a run does not
    depend on where its data came from.

    Raises:
        DataError: a file is missing, truncated, damaged or in another format, or holds something else than images of
            CIFAR's size; or the extra `tfds` is not installed. The class counts are the caller's to check, with
            `check_complete`.
    """
    folder = _newest_version(root / spec.name)
    if folder is None:
        return None
    info_file = folder / "dataset_info.json"
    try:
        info = read_json(info_file)
        file_format = info.get("fileFormat", "tfrecord")
        shards = [_shards(folder, info, file_format, split) for split in ("train", "test")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{info_file} is damaged ({error!r}). {_again(folder)}") from None
    train, test = (_read_split(files, file_format, _again(folder)) for files in shards)
    names_file, names = folder / "label.labels.txt", spec.label_names
    if names_file.is_file():
        names = tuple(_read(names_file).decode(errors="replace").split())
        check_names(names, spec.num_classes, str(names_file))
    return Decoded({"train": train, "test": test}, names)


def prepare(spec: CifarSpec, source: Path, data_dir: Path) -> Path:
    """Make the TFDS folder `data_dir`/<name>/<version> (ArrayRecord files of PNG images) and return it.

    `source` is the published binary archive or the folder of the published binary layout. A folder that is there
    already is returned as it is; a new one appears only when it is complete.

    Raises:
        DataError: `source` is not the published data, `data_dir` cannot be written to, or the extra `tfds` is not
            installed.
    """
    folder = data_dir / spec.name / _VERSION
    if (folder / "dataset_info.json").is_file():
        return folder
    content = _read_source(spec, source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".preparing-", dir=folder.parent) as staging:
            made = _run_builder(spec.name, content, Path(staging))
            # Fails where another process was quicker, whose folder is as good as this one.
            with contextlib.suppress(OSError):
                os.rename(made, folder)
    except OSError as error:
        raise DataError(f"Cannot write {folder} ({error.strerror}); choose a folder that can be written to.") from None
    if not (folder / "dataset_info.json").is_file():
        raise DataError(f"{folder} is in the way and is no prepared data set; move it and try again.")
    return folder


def builder_class(name: str, content: _Content) -> type:
    """Return a TFDS builder of the data set `name` that needs neither TensorFlow nor a network.

    It has the features of TFDS's own builder, which can therefore read what it prepared.
    """
    tfds = _import_tfds()
    label_features = {key: tfds.features.ClassLabel(names=list(names)) for key, names in content.names.items()}
    # The name is taken by TFDS's own builder; the file format is the one that can be written without TensorFlow.
    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(_VERSION)

            def _info(self) -> Any:
                image = tfds.features.Image(shape=IMAGE_SHAPE)
                features = {"id": tfds.features.Text(), "image": image, **label_features}
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=f"{name} as published, prepared by jax_cifar.",
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {split: self._generate_examples(split) for split in content.images}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                for index, image in enumerate(content.images[split]):
                    labels = {key: int(values[index]) for key, values in content.labels[split].items()}
                    # Encoded bytes are taken as they are; an array would be encoded with TensorFlow.
                    yield index, {"id": f"{split}_{index:05d}", "image": _encode_png(image), **labels}

    Builder.name = name
    return Builder


def _run_builder(name: str, content: _Content, data_dir: Path) -> Path:
    tfds = _import_tfds()
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder = builder_class(name, content)(data_dir=data_dir, file_format="array_record")
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_dir=data_dir / "downloads", download_config=config)
    return Path(builder.data_dir)


def _import_tfds() -> Any:
    with warnings.catch_warnings(), needed_packages():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.utils import gcs_utils

    # Older releases ask a bucket for every new builder, and without a network do so for minutes.
    gcs_utils._is_gcs_disabled = True
    return tfds


def _read_source(spec: CifarSpec, source: Path) -> _Content:
    read = _source_reader(spec, source)
    decoded = decode_binary(spec, read, str(source))
    train, test = decoded.parts["train"], decoded.parts["test"]
    check_complete(spec, train, test, str(source))
    labels = {"train": {"label": train.labels}, "test": {"label": test.labels}}
    label_names = {"label": decoded.label_names}
    coarse_names = read(_COARSE_NAMES_FILE)
    if spec.coarse_classes is not None and coarse_names is not None:
        names = tuple(coarse_names.decode(errors="replace").split())
        label_names["coarse_label"] = check_names(names, spec.coarse_classes, f"{source}/{_COARSE_NAMES_FILE}")
        labels["train"]["coarse_label"] = _coarse_labels(read, spec.train_batches)
        labels["test"]["coarse_label"] = _coarse_labels(read, (spec.test_batch,))
    return _Content({"train": train.images, "test": test.images}, labels, label_names)


def _coarse_labels(read: Reader, batches: tuple[str, ...]) -> np.ndarray:
    content = b"".join(read(f"{batch}.bin") or b"" for batch in batches)
    return np.frombuffer(content, np.uint8)[:: 2 + IMAGE_BYTES]


def _source_reader(spec: CifarSpec, source: Path) -> Reader:
    archive = spec.archives[0].file_name
    wanted = f"Name {archive}, or the folder {spec.binary_folder}/ that it holds."
    if not source.exists():
        raise DataError(f"{source} does not exist. {wanted}")
    if source.name in (spec.python_folder, *(each.file_name for each in spec.archives if each.layout == "python")):
        raise DataError(f"{source} holds the python layout, which has no place here. {wanted}")
    if source.is_dir():
        folder = source / spec.binary_folder if (source / spec.binary_folder).is_dir() else source
        return lambda name: _read(folder / name) if (folder / name).is_file() else None
    files = [f"{batch}.bin" for batch in spec.batches] + [spec.names_file, _COARSE_NAMES_FILE]
    members = read_members(source, spec.archives[0], [f"{spec.binary_folder}/{name}" for name in files])
    return lambda name: members.get(f"{spec.binary_folder}/{name}")


def _newest_version(folder: Path) -> Path | None:
    """Return the folder of the highest version; what a stopped TFDS left (`incomplete.*`) is passed over."""
    infos = [*folder.glob("*/dataset_info.json"), *folder.glob("*/*/dataset_info.json")]
    versions = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
    return max(versions, key=lambda path: ([int(part) for part in path.name.split(".")], str(path)), default=None)


def _shards(folder: Path, info: dict[str, Any], file_format: str, split: str) -> list[tuple[Path, int]]:
    """Return path and number of records of every file of `split`."""
    entry = {entry["name"]: entry for entry in info["splits"]}[split]
    lengths = [int(length) for length in entry["shardLengths"]]
    template = entry.get("filepathTemplate", _TEMPLATE)
    places = [f"{index:05d}-of-{len(lengths):05d}" for index in range(len(lengths))]
    names = [_file_name(template, info["name"], split, file_format, place) for place in places]
    return [(folder / name, length) for name, length in zip(names, lengths, strict=True)]


def _file_name(template: str, dataset: str, split: str, file_format: str, place: str) -> str:
    """The name of a file in the folder; raises `ValueError` where it leads out of it."""
    fields = {"DATASET": dataset, "SPLIT": split, "FILEFORMAT": file_format, "SHARD_X_OF_Y": place}
    name = template
    for field, text in fields.items():  # str.format would do more than that
        name = name.replace("{" + field + "}", text)
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no file in this folder")
    return name


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST_MEMBER)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None


def _read_split(shards: list[tuple[Path, int]], file_format: str, again: str) -> Dataset:
    with needed_packages():
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

    messages: Any = tf_example_pb2  # its classes are made when it is loaded
    examples: list[tuple[str, np.ndarray, int]] = []
    for path, length in shards:
        records = read_records(path, file_format)
        if len(records) != length:
            raise DataError(f"{path} holds {len(records):,} records, expected {length:,}. {again}")
        for index, record in enumerate(records):
            try:
                examples.append(_decode_example(messages.Example.FromString(record)))
            except (DecodeError, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{path}: record {index} is not a CIFAR example ({error}). {again}") from None
    # Old versions have no ids; a stable sort then keeps the order of the files.
    examples.sort(key=lambda example: example[0])
    images = np.array([image for _, image, _ in examples], np.uint8).reshape(-1, *IMAGE_SHAPE)
    return Dataset(images, np.array([label for _, _, label in examples], np.int32))


def _decode_example(example: Any) -> tuple[str, np.ndarray, int]:
    """Return id ("" where there is none), image and label of a `tf.train.Example`."""
    features = example.features.feature
    (encoded,), (label,) = features["image"].bytes_list.value, features["label"].int64_list.value
    (name,) = features["id"].bytes_list.value or [b""]
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        if (image.height, image.width, len(image.getbands())) != IMAGE_SHAPE:
            raise ValueError(f"a {image.mode} image of {image.width}x{image.height} pixels")
        return name.decode(), np.asarray(image), label


def _encode_png(image: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    stream.seek(0)
    return stream


def _again(folder: Path) -> str:
    return f"Delete {folder} and prepare it again."
