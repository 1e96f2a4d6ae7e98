"""What a network sees of its data set: the shape of the images, their statistics, and what the classes are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from jax_cifar.config.checks import Probability, above, check_fields, not_empty
from jax_cifar.config.sections import Count
from jax_cifar.errors import ConfigError, check


@dataclass(frozen=True)
class InputSpec:
    """What a network sees, and what its classes are called: all that prediction needs to know of a data set."""

    image_shape: tuple[Count, Count, Count]  # height, width, channel of the images it is given
    mean: tuple[Probability, ...]  # of every channel over the training images, in units of the full range (0 to 1)
    std: tuple[Annotated[Probability, above(0)], ...]  # likewise the standard deviation
    side: Count | None  # pixels that images are downsampled to; None: as they are
    label_names: Annotated[tuple[str, ...], not_empty]

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("mean", "std"):
            values, channels = getattr(self, name), self.image_shape[2]
            check(len(values) == channels, name, values, f"it must have one number for each of {channels} channels")
        smallest = min(self.image_shape[:2])
        check(self.side is None or self.side <= smallest, "side", self.side, f"the images have {smallest} pixels")
        names = self.label_names
        check(len(set(names)) == len(names), "label_names", names, "every class needs a name of its own")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "InputSpec":
        """The fields as JSON has them, with lists for tuples; raises `ConfigError` where they are not what they are."""
        fields: dict[str, Any] = {name: tuple(of) if isinstance(of, list) else of for name, of in values.items()}
        try:
            return cls(**fields)
        except TypeError as error:  # a field is missing, or one too many
            raise ConfigError(str(error).partition("__init__() ")[2] or str(error)) from None
