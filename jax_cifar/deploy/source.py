"""What an exported file is made of: a run, real images, and what the network gives for them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jax_cifar.config import Config
from jax_cifar.config.files import OWN_DATA, to_dict
from jax_cifar.data import Dataset
from jax_cifar.deploy.agreement import Expected, sample_of
from jax_cifar.deploy.verify import BATCHES
from jax_cifar.errors import ExportError
from jax_cifar.evaluation.exact import Exact, in_float64
from jax_cifar.evaluation.metrics import Report, report
from jax_cifar.files import sha256_of_json
from jax_cifar.run.folder import read_config
from jax_cifar.run.load import Run

# Of the largest logit: what lies beyond is no rounding in float32, even of a deep network.
NEIGHBOURS = 1e-4
PIXELS, NORMALIZED = "uint8 NHWC, 0 to 255", "float32 NCHW, normalised with mean and std"  # what a file may take


def recorded(config: Config) -> Mapping[str, Any]:
    """A configuration as a file that is given away has it: without the place of the images on its maker's machine.

    Of images of one's own a sum of the place is left, by which exports of two runs are told apart.
    """
    values = to_dict(config)
    place = values["data"]["dir"] if config.data.name in OWN_DATA else None
    values["data"]["dir"] = place and sha256_of_json(place)[:12]
    return values


@dataclass(frozen=True)
class Source:
    """A network to be exported, and what the exported one has to give; what is computed is computed once."""

    run: Run  # folded, where that is wanted
    original: Run  # as it was trained
    test: Dataset

    @cached_property
    def exact(self) -> Exact | None:
        """`run` in float64, of the images `sample_of`; None where it does not compute in float64."""
        return self._exact(self.run)

    @cached_property
    def expected(self) -> Expected:
        """What the original gives for the test images."""
        exact = self.exact if self.run is self.original else self._exact(self.original)
        return Expected(self.original.logits(self.test.images), None if exact is None else exact.logits)

    @cached_property
    def report(self) -> Report:
        """How well the original does on the test images."""
        return report(self.expected.logits, self.test.labels, self.original.label_names)

    def require_same_alone(self) -> None:
        """Raise `ExportError` where the original gives images other logits among few others than among all."""
        scale = float(np.abs(self.expected.logits).max()) or 1.0
        for size in BATCHES:
            alone = self.original.logits(self.test.images[:size])
            gap = float(np.abs(alone - self.expected.logits[:size]).max())
            if gap > NEIGHBOURS * scale:  # a NaN is another matter
                raise ExportError(
                    "The network's answer for an image depends on the others of its batch: in JAX itself logits differ"
                    f" by {gap:.2g}, at a scale of {scale:.2g}, between a batch of {len(alone)} and a larger one."
                    " A file that takes any number of images cannot give both. Let the network see every image by"
                    " itself where train is False, as a BatchNorm does by its running statistics."
                )

    def metadata(self, takes: str = PIXELS, variant: str = "float32") -> dict[str, Any]:
        """What a file says of itself; docs/deploy.md lists the entries.

        Args:
            takes: `PIXELS` or `NORMALIZED`.
            variant: the numbers of its weights.
        """
        return {
            "input": takes,
            **dataclasses.asdict(self.run.network.spec),
            "variant": variant,
            "dataset": self.run.data_name,
            "step": self.run.step,
            "test_accuracy": self.report.accuracy,
            "config": self.recorded,
        }

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The run's configuration as a file has it."""
        return recorded(read_config(self.run.folder))

    def _exact(self, run: Run) -> Exact | None:
        return in_float64(run.network, run.variables, self.test.images[sample_of(len(self.test.images))])
