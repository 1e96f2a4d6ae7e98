"""Layers that compute what PyTorch's layers of the same name compute, and its initialisers.

Images are NHWC and kernels HWIO. Every layer has two types: `dtype` of what it computes and returns, and `param_dtype`
of what it stores. Means and variances are taken in float32, or in float64 where the parameters are float64.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_cifar.errors import ConfigError
from jax_cifar.ops.channels import add_bias, batch_norm
from jax_cifar.ops.conv import Padding, conv2d

NormName = Literal["batch", "group", "none", "folded"]  # folded: into the convolutions, for evaluation only
Channels = tuple[tuple[str, int], ...]  # (path of a layer, its number of filters)
Layer = Callable[[Array], Array]
Init = Callable[..., Array]  # (key, shape, dtype) -> array

# PyTorch's default, kaiming_uniform_(a=sqrt(5)): uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in).
torch_kernel_init: Init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# torchvision's ResNets, kaiming_normal_(mode="fan_out"): not truncated, so its tails are longer than he_normal's.
resnet_kernel_init: Init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def filters_of(channels: Channels, layer: str, usual: int) -> int:
    """The number of filters of the layer at this path: as `channels` says, else the architecture's own."""
    return dict(channels).get(layer, usual)


def torch_bias_init(fan_in: int) -> Init:
    """PyTorch's default for the bias of a layer with `fan_in` inputs: uniform within 1/sqrt(fan_in) of zero."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dirac_kernel_init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
    """Output channel i passes input channel i through unchanged; channels past the inputs get PyTorch's default.

    The initialisation of airbench (Jordan, arXiv 2404.00498): `torch.nn.init.dirac_` on the first `fan_in` filters.
    """
    height, width, inputs, outputs = shape
    identities = min(inputs, outputs)
    identity = jnp.eye(inputs, identities, dtype=dtype)
    centred = jnp.zeros((height, width, inputs, identities), dtype).at[height // 2, width // 2].set(identity)
    return torch_kernel_init(key, shape, dtype).at[..., :identities].set(centred)


def statistics_dtype(dtype: DTypeLike) -> DTypeLike:
    """The type for means, variances and logits: float64 with float64 parameters, else float32."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


class Conv(nn.Module):
    """Square convolution with `padding` pixels of zeros on every side: `torch.nn.Conv2d` in NHWC.

    `padding` may also be ((top, bottom), (left, right)).
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int | Padding = 0
    use_bias: bool = True
    kernel_init: Init = torch_kernel_init
    bias_init: Init | None = None  # None: PyTorch's default
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"]) -> Float[Array, "batch height2 width2 out"]:
        """Convolve, in `dtype`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        side = self.padding
        padding = ((side, side), (side, side)) if isinstance(side, int) else side
        x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), (self.stride, self.stride), padding)
        if self.use_bias:
            init = self.bias_init or torch_bias_init(math.prod(shape[:3]))
            bias = self.param("bias", init, (self.features,), self.param_dtype)
            x = add_bias(x, bias.astype(self.dtype))
        return x


class Dense(nn.Module):
    """`torch.nn.Linear` and its initialisation."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """Multiply, in `dtype`."""
        inputs = x.shape[-1]
        kernel = self.param("kernel", torch_kernel_init, (inputs, self.features), self.param_dtype)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", torch_bias_init(inputs), (self.features,), self.param_dtype)
            # Added in a wider type, in which the sum over the batch is then taken that is the bias's gradient.
            wide = statistics_dtype(self.dtype)
            x = (x.astype(wide) + bias.astype(self.dtype).astype(wide).reshape(1, -1)).astype(self.dtype)
        return x


class BatchNorm(nn.Module):
    """Batch normalisation as `torch.nn.BatchNorm2d` computes it.

    The batch is normalised with its biased variance, and its unbiased variance goes into the running one;
    `running = (1 - momentum) * running + momentum * batch`. flax's own layer stores the biased variance, and its
    momentum is one minus this one. Running statistics stay in float32 whatever the compute type.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    use_running_average: bool = False
    scale_init: Init = nn.initializers.ones
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Float[Array, "batch height width channel"]:
        """Normalise by the batch's statistics and update the running ones, or by the running ones.

        Raises ConfigError when training with a single value per channel, where the variance means nothing.
        """
        channels, wide = x.shape[-1], statistics_dtype(self.param_dtype)
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype).astype(wide)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype).astype(wide)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), wide)
        if self.use_running_average:
            scale = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            x = (x.astype(wide) - _per_channel(running_mean.value)) * _per_channel(scale) + _per_channel(bias)
            return x.astype(self.dtype)
        if x.size == channels:
            raise ConfigError(
                f"batch normalisation cannot train on one value per channel (shape {x.shape}): "
                "use a larger batch, larger images or --model.norm group."
            )
        y, mean, var = batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // channels
            unbiased = var * (count / (count - 1))
            running_mean.value = (1 - self.momentum) * running_mean.value + self.momentum * mean
            running_var.value = (1 - self.momentum) * running_var.value + self.momentum * unbiased
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He, arXiv 1803.08494) as `torch.nn.GroupNorm(group_count(channels), channels)`.

    flax's layer has to know its number of groups before it sees the channels, and mixes float32 into float64.
    """

    epsilon: float = 1e-5
    scale_init: Init = nn.initializers.ones
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Float[Array, "batch height width channel"]:
        """Normalise every image by the mean and the biased variance of each of its groups of channels."""
        channels, wide = x.shape[-1], statistics_dtype(self.param_dtype)
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype).astype(wide)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype).astype(wide)
        grouped = x.astype(wide).reshape(*x.shape[:3], group_count(channels), -1)
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        var = jnp.mean(jnp.square(grouped - mean), axis=(1, 2, 4), keepdims=True)
        normalised = ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        return (normalised * _per_channel(scale) + _per_channel(bias)).astype(self.dtype)


def group_count(channels: int) -> int:
    """Groups of GroupNorm: the largest divisor of `channels` that is at most 32 and leaves two channels in each group.

    With one channel a group it would be instance normalisation, which loses each channel's strength.
    """
    return next(groups for groups in range(max(1, min(32, channels // 2)), 0, -1) if channels % groups == 0)


def make_layers(
    norm: NormName, train: bool, dtype: DTypeLike, param_dtype: DTypeLike
) -> tuple[Callable[..., Layer], Callable[..., Layer]]:
    """The constructors of a network's convolutions and of its normalisation layers.

    Args:
        norm: kind of normalisation; with "none" the layer is the identity, and the convolutions have a bias instead;
            "folded" is the same at evaluation, and not to be trained.
        train: whether batch normalisation uses the batch's own statistics.
        dtype: compute type.
        param_dtype: type of the parameters.
    """
    if norm == "folded" and train:
        raise ConfigError(
            "A folded network has no batch statistics any more, and cannot be trained: train the run that it is from."
        )
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    conv = functools.partial(Conv, use_bias=norm in ("none", "folded"), **types)
    if norm == "batch":
        return conv, functools.partial(BatchNorm, use_running_average=not train, **types)
    if norm == "group":
        return conv, functools.partial(GroupNorm, **types)
    return conv, _no_norm


def make_head(num_classes: int, param_dtype: DTypeLike, name: str, use_bias: bool = True) -> Dense:
    """The last dense layer. Never in bfloat16: its matmul is small, and rounded logits would round the loss."""
    return Dense(num_classes, use_bias, dtype=statistics_dtype(param_dtype), param_dtype=param_dtype, name=name)


def _per_channel(vector: Float[Array, "channel"]) -> Float[Array, "1 1 1 channel"]:
    return vector.reshape(1, 1, 1, -1)


def _no_norm(**_options: object) -> Layer:
    return lambda x: x
