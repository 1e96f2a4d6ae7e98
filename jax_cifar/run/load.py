"""A trained network, read back from its run folder: `load_run(folder)` needs neither its data nor its config file."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float32, Int

from jax_cifar.backend.mesh import find_devices
from jax_cifar.config import Config
from jax_cifar.config.placeholder import Recorded
from jax_cifar.config.revive import has_placeholders, is_installed, revive, revive_all
from jax_cifar.config.source import trusted_namespaces
from jax_cifar.config.spec import InputSpec
from jax_cifar.data import Dataset, Splits, load_data, read_npz
from jax_cifar.data.dataset import Images, as_pixels
from jax_cifar.errors import CheckpointError, DataError, print_warning
from jax_cifar.evaluation.classify import softmax
from jax_cifar.evaluation.metrics import Report, report
from jax_cifar.evaluation.predict import (
    Predictor,
    TestTimeAugmentation,
    make_batches,
    make_predictor,
    predict_logits,
)
from jax_cifar.files import expand
from jax_cifar.models import create_model
from jax_cifar.models.fold import fold_batch_norm
from jax_cifar.models.network import Network, compute_dtype
from jax_cifar.models.protocol import traced
from jax_cifar.run.folder import CHECKPOINTS, input_spec, read_config, read_spec
from jax_cifar.run.manifest import Damaged, Foreign, leaves_by_path, read_manifest, require_same_leaves, signature
from jax_cifar.run.reading import folder_of, read_variables

Split = Literal["train", "val", "test"]
PARTS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Run:
    """A run's network with the weights of one of its checkpoints: the averaged ones where it averaged."""

    folder: Path
    config: Config
    network: Network
    variables: dict[str, Any] = field(repr=False)  # so many numbers that a notebook would be full of them
    step: int  # completed updates
    data_name: str | None  # the set that `config.data` loads; None: its images were given in Python
    checksums: Mapping[str, int] = field(default_factory=dict, repr=False)  # of the parts of its set, where recorded

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of every class."""
        return self.network.spec.label_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channel of the images that the network is given."""
        return self.network.spec.image_shape

    def predict(self, images: Images) -> Int[np.ndarray, " n"]:
        """The most likely class of every image: an index into `label_names`. Images as for `logits`."""
        return self.logits(images).argmax(axis=1)

    def probabilities(self, images: Images, tta: TestTimeAugmentation = "none") -> Float32[np.ndarray, "n classes"]:
        """Softmax of the logits. Images as for `logits`."""
        return softmax(self.logits(images, tta))

    def logits(self, images: Images, tta: TestTimeAugmentation = "none") -> Float32[np.ndarray, "n classes"]:
        """Logits of any number of images, in order.

        Args:
          images: uint8 [n, height, width, channel], or floating between 0 and 1, which are rounded to 256 levels; of
            the shape that the network was trained on.
          tta: test-time augmentation.

        Raises:
          DataError: the images have another shape, dtype or range.
        """
        images = as_pixels(images, self.image_shape)
        if len(images) == 0:
            return np.zeros((0, len(self.label_names)), np.float32)
        return predict_logits(self._predict, self.variables, make_batches(images, self.config.eval.batch_size), tta)

    def evaluate(
        self, data: Split | Dataset = "test", tta: TestTimeAugmentation = "none", *, data_dir: str | None = None
    ) -> Report:
        """Judge a part of the run's own data set, read from `data_dir` (default: its `data.dir`), or any other images.

        Training images whose labels were made noisy are judged by their true labels. Raises `DataError` where the set
        is not at hand, or its labels are not the run's classes.
        """
        dataset = data if isinstance(data, Dataset) else self.part(data, data_dir)
        labels = dataset.labels if dataset.true_labels is None else dataset.true_labels
        self.require_labels(dataset)
        return report(self.logits(dataset.images, tta), labels, self.label_names)

    def part(self, split: Split, data_dir: str | None = None) -> Dataset:
        """One part of the run's own data set; raises `DataError` where that has changed (`require_same_images`)."""
        splits = self.splits(data_dir)
        part = {"train": splits.train, "val": splits.validation, "test": splits.test}[split]
        if part is None:
            raise DataError("This run held no validation images out: data.val_fraction = 0.")
        self.require_same_images(split, part, splits)
        return part

    def images_of(self, split: str, data_dir: str | None = None) -> Dataset:
        """A part of the run's own data set by its name, or what a FILE.npz holds: images of the run's classes."""
        if split in PARTS:
            return self.part(split, data_dir)
        path = expand(split)
        dataset, names = read_npz(path, self.image_shape)
        if names is not None:
            self.require_classes(names, split)
        self.require_labels(dataset, f"{split}: A label")
        return dataset

    def splits(self, data_dir: str | None = None) -> Splits:
        """The run's own data set, as it was divided for it."""
        if self.data_name is None:
            raise DataError(
                f"{self.folder} was trained on images given in Python, which it does not keep."
                " Give images again: --split FILE.npz of evaluate.py and export.py, or run.evaluate(dataset)."
            )
        place = self.config.data.dir
        if data_dir is None and place is not None and not expand(place).exists():
            raise DataError(f"The data set of this run lay in {place}, which is not there. Say where: --data.dir DIR.")
        data = self.config.data if data_dir is None else dataclasses.replace(self.config.data, dir=data_dir)
        splits = load_data(data)
        self.require_classes(splits.label_names, splits.source)
        return splits

    def require_classes(self, names: tuple[str, ...], source: str) -> None:
        """Raise `DataError` where the images of `source` are of other classes, or these in another order.

        Classes without names, called by their numbers, may be any.
        """
        numbers = tuple(map(str, range(max(len(names), len(self.label_names)))))
        unnamed = any(own == numbers[: len(own)] for own in (names, self.label_names))
        if unnamed or names == self.label_names:
            return
        pairs = enumerate(itertools.zip_longest(names, self.label_names, fillvalue="none"))
        label, (theirs, own) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise DataError(
            f"{source}: class {label} is {theirs!r}, in {self.folder} it is {own!r}. Give images of the run's own"
            f" classes, in their order."
        )

    def require_same_images(self, split: Split, part: Dataset, splits: Splits) -> None:
        """Raise `DataError` where `part` of `splits` has changed, and with it the images that the run was trained on.

        A set that is divided by a share is divided anew where pictures were added: some that the run was trained on are
        test images then, which it knows. Beside the same training images, other ones to judge by are a warning.
        """
        if self.checksums.get(split) == part.checksum:
            return
        before, now = self.checksums.get("train"), splits.train.checksum
        if before not in (None, now):
            raise DataError(
                f"{splits.source}: {self.folder} was trained on other images (checksum {before:08x}, now {now:08x}),"
                " which may be among those to judge it by. Restore the data set, say where it is (--data.dir DIR), or"
                " judge the run by other images: --split FILE.npz, run.evaluate(dataset)."
            )
        if split in self.checksums:
            print_warning(
                f"{splits.source}: its {split} images or labels are not those that {self.folder} was judged by, with"
                " the figures that it has written down."
            )

    def require_labels(self, dataset: Dataset, which: str = "A label") -> None:
        """Raise `DataError` for a label that is no class of the run."""
        classes, highest = len(self.label_names), int(dataset.labels.max(initial=0))
        if highest >= classes:
            raise DataError(f"{which} is {highest}, but the run knows {classes} classes: 0 to {classes - 1}.")

    def folded(self) -> "Run":
        """The same run with every batch norm folded into the convolution before it: the same predictions, sooner.

        It is for prediction only. Raises `ConfigError` where the network has no batch norm, or is one of one's own that
        does not say so in a field `norm`.
        """
        model = self.network.model
        variables = fold_batch_norm(model, self.variables)
        network = dataclasses.replace(self.network, model=model.clone(norm="folded"))  # pyright: ignore[reportCallIssue]
        return dataclasses.replace(self, network=network, variables=variables)

    @cached_property
    def _predict(self) -> Predictor:
        return make_predictor(self.network)


def load_run(
    workdir: str | Path,
    which: Literal["last", "best"] = "last",
    *,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    data_dir: str | None = None,
    trust_code: bool = False,
) -> Run:
    """Read a run folder: its configuration, what its network sees, its newest or best checkpoint.

    Args:
      workdir: the folder, wherever it lies now.
      which: "last", or "best" by validation accuracy.
      dtype: what the network computes in; default: as the run's `train.dtype` says.
      data_dir: where the data set lies, for a run of an earlier version, which did not record what its network sees.
      trust_code: the network is code of the run's own: run the source that the folder recorded. Without it that is done
        only while the file it came from is unchanged at its place. A network of the library never executes anything.

    Raises:
      CheckpointError: the folder is no run or holds no such checkpoint.
      ConfigError: the run has code of its own that is not trusted.
    """
    find_devices()  # before anything else asks for them, in words of its own
    folder = expand(workdir)
    config = with_own_code(folder, read_config(folder), trust_code)
    spec, data_name = read_spec(folder) or spec_of_data(config, data_dir)
    found = read_variables(folder / CHECKPOINTS, which)
    if found is None:
        hint = " Only runs with data.val_fraction > 0 keep a best one." if which == "best" else ""
        raise CheckpointError(f"{folder} holds no {which} checkpoint.{hint}")
    step, variables = found
    model = create_model(config.model, spec.num_classes, compute_dtype(dtype or config.train.dtype))
    network = Network(model, spec)
    require_fitting(folder / CHECKPOINTS / str(step), network, variables)
    checksums = recorded_checksums(folder_of(folder / CHECKPOINTS, which) / str(step))
    return Run(folder, config, network, variables, step, data_name, checksums)


def recorded_checksums(checkpoint: Path) -> dict[str, int]:
    """Checksum of each part of the data set that a checkpoint was trained on and judged by, where it says so."""
    try:
        extra = read_manifest(checkpoint)["extra"]
    except (Damaged, Foreign):  # the run that is still training has newer ones by now
        return {}
    judges = extra.get("judged_by")
    judges = judges if isinstance(judges, dict) else {}
    found = {"train": extra.get("fingerprint"), "val": judges.get("validation"), "test": judges.get("test")}
    return {part: checksum for part, checksum in found.items() if isinstance(checksum, int)}


def require_fitting(path: Path, network: Network, variables: dict[str, Any]) -> None:
    """Raise `CheckpointError` unless weights and statistics have the places and shapes that the network asks for."""
    image = jax.ShapeDtypeStruct((1, *network.spec.image_shape), np.float32)

    def fresh(key: jax.Array, image: jax.Array) -> Any:
        return network.model.init(key, network.inputs(image), train=False)

    wanted = {"params": {}, "batch_stats": {}} | traced(network.model, fresh, jax.random.key(0), image)
    shapes = ({name: signature(leaf) for name, leaf in leaves_by_path(tree).items()} for tree in (variables, wanted))
    require_same_leaves(path, *shapes)


def with_own_code(folder: Path, config: Config, trust_code: bool) -> Config:
    """`config` with its network ready to be used, and with all code of the run's own where that is trusted."""
    if not has_placeholders(config):
        return config
    if trust_code:
        return revive_all(config, trusted_namespaces(folder, trust_code))
    if not isinstance(config.model, Recorded):
        return config  # transforms, rules and losses are not needed for prediction
    installed = is_installed(config.model.origin or "")
    model = revive(config.model, {} if installed else trusted_namespaces(folder, trust_code))
    return dataclasses.replace(config, model=model)


def spec_of_data(config: Config, data_dir: str | None) -> tuple[InputSpec, str]:
    """What the network of a run of an earlier version sees, worked out from its data set again."""
    data = config.data if data_dir is None else dataclasses.replace(config.data, dir=data_dir)
    splits = load_data(data)
    return input_spec(config, splits), splits.name
