"""What the networks are made of: their convolutions and norms, and the types of what they take and give."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

NormName = Literal["batch", "group", "none"]
Channels = Mapping[str, int]  # filters of the layers, by JAX's paths, that have another number than follows from width
Conv = Callable[..., nn.Conv2d]
Norm = Callable[[int], nn.Module]
Images = Float[Tensor, "batch channel height width"]
Logits = Float[Tensor, "batch num_classes"]


def make_layers(norm: NormName, momentum: float = 0.1, epsilon: float = 1e-5) -> tuple[Conv, Norm]:
    """The constructors of a network's convolutions, with a bias if `norm` is "none", and of its norms."""
    conv = functools.partial(nn.Conv2d, bias=norm == "none")
    if norm == "batch":
        return conv, functools.partial(nn.BatchNorm2d, momentum=momentum, eps=epsilon)
    if norm == "group":
        return conv, lambda channels: nn.GroupNorm(group_count(channels), channels)
    return conv, nn.Identity


def group_count(channels: int) -> int:
    """Groups of GroupNorm: the largest divisor of `channels` that is at most 32 and leaves two channels a group."""
    return next(groups for groups in range(max(1, min(32, channels // 2)), 0, -1) if channels % groups == 0)
