"""The networks, as linen modules: `create_model` builds one from its configuration.

A parameter's path becomes PyTorch's name by one rule: "/" becomes ".", a number after an underscore is an index
("layer1_0" is "layer1.0"), `kernel` and `scale` are `weight`, and the batch statistics `mean` and `var` are
`running_mean` and `running_var`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_cifar.config import ModelConfig
from jax_cifar.errors import check
from jax_cifar.models.cnn import CifarCNN, SimpleCNN, TinyCNN
from jax_cifar.models.resnet import ResNet, ResNet18, ResNet34, ResNet50
from jax_cifar.models.speedrun import SpeedrunNet, whitening_kernel

__all__ = [
    "CifarCNN",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "SimpleCNN",
    "SpeedrunNet",
    "TinyCNN",
    "create_model",
    "frozen_parameters",
    "init_variables",
    "parameter_table",
    "whitening_kernel",
]

_CNNS = {"tiny_cnn": TinyCNN, "simple_cnn": SimpleCNN, "cifar_cnn": CifarCNN}
_RESNETS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}


def create_model(
    config: ModelConfig, num_classes: int, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> nn.Module:
    """The network that `config` names, for `num_classes` classes.

    `model.apply(variables, images, train=...)` returns the logits [batch, num_classes], in float32 or, with float64
    parameters, in float64. Where `config.width` or `config.dropout` is None, the architecture's own default holds.

    Args:
        config: architecture and its options.
        num_classes: width of the last layer.
        dtype: type of the activations; bfloat16 on accelerators.
        param_dtype: type of the parameters.

    Raises:
        ConfigError: there is no class.
    """
    check(num_classes >= 1, "num_classes", num_classes, "it must be at least 1")
    options: dict[str, Any] = {"norm": config.norm, "dtype": dtype, "param_dtype": param_dtype}
    if config.width is not None:
        options["width"] = config.width
    if config.name == "speedrun_net":
        options["whiten_bias"] = config.whiten_bias
        if config.convs_per_group is not None:
            options["convs_per_group"] = config.convs_per_group
        return SpeedrunNet(num_classes, **options)
    if config.dropout is not None:
        options["dropout"] = config.dropout
    if config.name in _CNNS:
        return _CNNS[config.name](num_classes, **options)
    options |= {"stem": config.stem, "zero_init_residual": config.zero_init_residual}
    return _RESNETS[config.name](num_classes, **options)


def init_variables(
    model: nn.Module, key: Array, sample_images: Float[Array, "batch height width channel"]
) -> dict[str, Any]:
    """Fresh parameters and batch statistics, as {"params": ..., "batch_stats": ...} ({} where the model keeps none).

    Args:
        model: what `create_model` returned.
        key: typed key; it fixes the values.
        sample_images: normalised training images. One is enough for the shapes; SpeedrunNet takes its whitening kernel
            from the first 5000.
    """
    variables = _init(model, key, sample_images[:1])
    params = variables["params"]
    if isinstance(model, SpeedrunNet):
        kernel = jax.jit(whitening_kernel)(sample_images).astype(model.param_dtype)
        params = {**params, "whiten": {**params["whiten"], "kernel": kernel}}
    return {"params": params, "batch_stats": variables.get("batch_stats", {})}


def frozen_parameters(model: nn.Module) -> tuple[str, ...]:
    """Regular expressions on the paths ("group1/bn1/scale") of the parameters that training must leave alone."""
    if not isinstance(model, SpeedrunNet):
        return ()
    return (r"^whiten/kernel$",) if model.norm == "none" else (r"^whiten/kernel$", r"^group\d/bn\d/scale$")


def parameter_table(params: dict[str, Any]) -> list[tuple[str, tuple[int, ...], int]]:
    """One row per parameter: its path ("layer1_0/conv1/kernel"), its shape and how many numbers it holds."""
    leaves: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    return [(path, leaf.shape, math.prod(leaf.shape)) for path, leaf in leaves.items()]


@functools.partial(jax.jit, static_argnums=0)
def _init(model: nn.Module, key: Array, images: Array) -> Any:
    # Compiled, because only the shapes of the forward pass are needed: none of it is computed.
    return model.init(key, images, train=False)
