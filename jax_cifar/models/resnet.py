"""ResNet-18, -34 and -50 (He et al., arXiv 1512.03385) with torchvision's structure, names and initialisation."""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_cifar.models.layers import (
    Channels,
    Init,
    Layer,
    NormName,
    filters_of,
    make_head,
    make_layers,
    resnet_kernel_init,
    statistics_dtype,
)
from jax_cifar.ops.pooling import max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first has the stride."""

    features: int
    inner: tuple[int, ...]  # filters of the convolutions before the last
    stride: int
    conv: Callable[..., Layer]
    norm: Callable[..., Layer]
    last_scale_init: Init

    convs, expansion = 2, 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"]) -> Float[Array, "batch height2 width2 out"]:
        y = self.conv(self.inner[0], 3, self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y)
        return nn.relu(y + _shortcut(self, x, self.features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the 3x3 has the stride (torchvision's "v1.5")."""

    features: int
    inner: tuple[int, ...]  # filters of the convolutions before the last
    stride: int
    conv: Callable[..., Layer]
    norm: Callable[..., Layer]
    last_scale_init: Init

    convs, expansion = 3, 4

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"]) -> Float[Array, "batch height2 width2 out"]:
        out = self.features * self.expansion
        y = nn.relu(self.norm(name="bn1")(self.conv(self.inner[0], 1, name="conv1")(x)))
        y = self.conv(self.inner[1], 3, self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.norm(name="bn3", scale_init=self.last_scale_init)(self.conv(out, 1, name="conv3")(y))
        return nn.relu(y + _shortcut(self, x, out))


class ResNet(nn.Module):
    """Stem, four stages of residual blocks (`width`, 2, 4 and 8 times that), global average, dropout, one dense layer.

    The stem is 3x3 stride 1 (`cifar`), or 7x7 stride 2 and max-pool (`imagenet`). `zero_init_residual` starts the scale
    of every block's last norm at zero, so that the block begins as its shortcut. `channels` names convolutions within a
    block, before its last, that have another number of filters than the stage.
    Parameters: `conv1`, `bn1`, `layer1_0` (torchvision's `layer1.0`) and so on, `fc`.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    norm: NormName = "batch"
    width: int = 64
    channels: Channels = ()
    dropout: float = 0.0
    stem: Literal["cifar", "imagenet"] = "cifar"
    zero_init_residual: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channel"], train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits, in float32 (float64 with float64 parameters)."""
        conv, norm = make_layers(self.norm, train, self.dtype, self.param_dtype)
        conv = functools.partial(conv, kernel_init=resnet_kernel_init)
        last_scale_init = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        if self.stem == "cifar":
            x = nn.relu(norm(name="bn1")(conv(self.width, 3, padding=1, name="conv1")(images)))
        else:
            x = nn.relu(norm(name="bn1")(conv(self.width, 7, stride=2, padding=3, name="conv1")(images)))
            x = max_pool(x, 3, stride=2, padding=1)
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name, features = f"layer{stage + 1}_{index}", self.width * 2**stage
                convs = range(1, self.block.convs)
                inner = tuple(filters_of(self.channels, f"{name}/conv{i}", features) for i in convs)
                x = self.block(features, inner, stride, conv, norm, last_scale_init, name=name)(x)
        x = jnp.mean(x.astype(statistics_dtype(self.param_dtype)), axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return make_head(self.num_classes, self.param_dtype, "fc")(x)


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)


def _shortcut(block: BasicBlock | Bottleneck, x: Array, features: int) -> Array:
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, 1, block.stride, name="downsample_0")(x)
    return block.norm(name="downsample_1")(x)
