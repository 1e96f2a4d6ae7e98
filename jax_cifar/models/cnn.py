"""Three plain convolutional networks, small to large.

Pooling comes before ReLU where the two meet: the result and its gradient are the same, on a quarter of the values.

The dense layers read the feature map flattened in the order height, width, channel. PyTorch flattens channel, height,
width: the rows of the first dense kernel (`fc`, `fc1`) must be permuted when weights cross over.

`channels` names the layers that have another number of filters than follows from `width`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_cifar.models.layers import Channels, Dense, NormName, filters_of, make_head, make_layers
from jax_cifar.ops.pooling import max_pool


class TinyCNN(nn.Module):
    """Three stages of conv 3x3, norm, ReLU, max-pool 2 (`width`, twice and four times that), dropout, one dense layer.

    Parameters: `conv1`..`conv3`, `bn1`..`bn3`, `fc`.
    """

    num_classes: int
    norm: NormName = "batch"
    width: int = 32
    channels: Channels = ()
    dropout: float = 0.3
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    smallest_image = 8

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channel"], train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits, in float32 (float64 with float64 parameters)."""
        conv, norm = make_layers(self.norm, train, self.dtype, self.param_dtype)
        x = images
        for stage in (1, 2, 3):
            features = filters_of(self.channels, f"conv{stage}", self.width * 2 ** (stage - 1))
            x = conv(features, 3, padding=1, name=f"conv{stage}")(x)
            x = nn.relu(max_pool(norm(name=f"bn{stage}")(x), 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(_flatten(x))
        return make_head(self.num_classes, self.param_dtype, "fc")(x)


class SimpleCNN(nn.Module):
    """Two stages of conv 3x3, norm, ReLU, max-pool 2 (`width` and twice that), then two dense layers.

    The hidden dense layer has four times `width` features; dropout, if any, comes after it.
    Parameters: `conv1`, `bn1`, `conv2`, `bn2`, `fc1`, `fc2`.
    """

    num_classes: int
    norm: NormName = "batch"
    width: int = 32
    channels: Channels = ()
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    smallest_image = 4

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channel"], train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits, in float32 (float64 with float64 parameters)."""
        conv, norm = make_layers(self.norm, train, self.dtype, self.param_dtype)
        x = images
        for stage in (1, 2):
            features = filters_of(self.channels, f"conv{stage}", self.width * stage)
            x = conv(features, 3, padding=1, name=f"conv{stage}")(x)
            x = nn.relu(max_pool(norm(name=f"bn{stage}")(x), 2))
        hidden = filters_of(self.channels, "fc1", 4 * self.width)
        x = Dense(hidden, dtype=self.dtype, param_dtype=self.param_dtype, name="fc1")(_flatten(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return make_head(self.num_classes, self.param_dtype, "fc2")(x)


class CifarCNN(nn.Module):
    """Four blocks of two conv 3x3 + norm + ReLU, each with max-pool 2 and dropout, then three dense layers.

    Block i has `width * 2**(i-1)` channels; the hidden dense layers have 16 and 8 times `width` (2048-1024-512 at 32x32
    pixels and the default width). One dropout probability serves the blocks and the dense layers.
    Parameters: `block1`..`block4`, each with `conv1`, `bn1`, `conv2`, `bn2`; `fc1`, `fc2`, `fc3`.
    """

    num_classes: int
    norm: NormName = "batch"
    width: int = 64
    channels: Channels = ()
    dropout: float = 0.25
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    smallest_image = 16

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channel"], train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits, in float32 (float64 with float64 parameters)."""
        x = images
        for stage in (1, 2, 3, 4):
            usual = self.width * 2 ** (stage - 1)
            features = tuple(filters_of(self.channels, f"block{stage}/conv{i}", usual) for i in (1, 2))
            x = _Block(features, self.norm, self.dtype, self.param_dtype, name=f"block{stage}")(x, train)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = _flatten(x)
        for name, usual in (("fc1", 16 * self.width), ("fc2", 8 * self.width)):
            features = filters_of(self.channels, name, usual)
            x = nn.relu(Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return make_head(self.num_classes, self.param_dtype, "fc3")(x)


class _Block(nn.Module):
    features: tuple[int, ...]
    norm: NormName
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv, norm = make_layers(self.norm, train, self.dtype, self.param_dtype)
        x = nn.relu(norm(name="bn1")(conv(self.features[0], 3, padding=1, name="conv1")(x)))
        x = norm(name="bn2")(conv(self.features[1], 3, padding=1, name="conv2")(x))
        return nn.relu(max_pool(x, 2))


def _flatten(x: Float[Array, "batch height width channel"]) -> Float[Array, "batch features"]:
    return x.reshape(x.shape[0], -1)
