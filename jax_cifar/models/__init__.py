"""The networks, as linen modules: `create_model` builds one from its configuration, or takes one of one's own.

What the library asks of a network is told in `jax_cifar.models.protocol`.

Of the networks that ship, a parameter's path becomes PyTorch's name by one rule: "/" becomes ".", a number after an
underscore is an index ("layer1_0" is "layer1.0"), `kernel` and `scale` are `weight`, and the batch statistics `mean`
and `var` are `running_mean` and `running_var`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from jax_cifar.config import ModelConfig
from jax_cifar.errors import check
from jax_cifar.models.cnn import CifarCNN, SimpleCNN, TinyCNN
from jax_cifar.models.protocol import (
    INIT_IMAGES,
    check_network,
    frozen_parameters,
    hold_frozen,
    init_variables,
    wants_images,
)
from jax_cifar.models.resnet import ResNet, ResNet18, ResNet34, ResNet50
from jax_cifar.models.speedrun import SpeedrunNet, whitening_kernel

__all__ = [
    "INIT_IMAGES",
    "CifarCNN",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "SimpleCNN",
    "SpeedrunNet",
    "TinyCNN",
    "check_network",
    "create_model",
    "dtype_warning",
    "frozen_parameters",
    "hold_frozen",
    "init_variables",
    "parameter_table",
    "wants_images",
    "whitening_kernel",
]

_CNNS = {"tiny_cnn": TinyCNN, "simple_cnn": SimpleCNN, "cifar_cnn": CifarCNN}
_RESNETS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}


def create_model(
    config: ModelConfig | nn.Module,
    num_classes: int,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """The network that `config` names, or that it is, for `num_classes` classes.

    `model.apply(variables, images, train=...)` returns the logits [batch, num_classes], of a network that ships in
    float32 or, with float64 parameters, in float64. Where `config.width` or `config.dropout` is None, the
    architecture's own default holds.

    Args:
        config: architecture and its options; or a linen module of one's own, which gets the three values below where
            it has fields of these names.
        num_classes: width of the last layer.
        dtype: type of the activations; bfloat16 on accelerators.
        param_dtype: type of the parameters.

    Raises:
        ConfigError: there is no class, or a network of one's own is made for another number of them.
    """
    check(num_classes >= 1, "num_classes", num_classes, "it must be at least 1")
    if isinstance(config, nn.Module):
        return _fill_in(config, num_classes, dtype, param_dtype)
    options: dict[str, Any] = {"norm": config.norm, "channels": config.channels}
    options |= {"dtype": dtype, "param_dtype": param_dtype}
    if config.width is not None:
        options["width"] = config.width
    if config.name == "speedrun_net":
        own = ("whiten_bias", "whiten_stride", "whiten_pairs", "early_average")
        options |= {name: getattr(config, name) for name in own}
        if config.convs_per_group is not None:
            options["convs_per_group"] = config.convs_per_group
        return SpeedrunNet(num_classes, **options)
    if config.dropout is not None:
        options["dropout"] = config.dropout
    if config.name in _CNNS:
        return _CNNS[config.name](num_classes, **options)
    options |= {"stem": config.stem, "zero_init_residual": config.zero_init_residual}
    return _RESNETS[config.name](num_classes, **options)


def dtype_warning(config: ModelConfig | nn.Module, dtype: DTypeLike) -> str | None:
    """What to tell where a network of one's own was given another `dtype` than it is computed in; None: nothing."""
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    given = getattr(config, "dtype", None)
    if "dtype" not in defaults or given in (None, defaults["dtype"]):
        return None
    try:
        kept = jnp.dtype(given) == jnp.dtype(dtype)
    except TypeError:  # no type: what is filled in is one
        return None
    if kept:
        return None
    asked, used = jnp.dtype(given).name, jnp.dtype(dtype).name
    way_out = (
        f"--train.dtype {asked}" if asked in ("float32", "bfloat16") else "a field of another name is left as it is"
    )
    return f"{type(config).__name__}.dtype = {asked} is not used: train.dtype fills in {used}. For {asked}: {way_out}."


def parameter_table(params: dict[str, Any]) -> list[tuple[str, tuple[int, ...], int]]:
    """One row per parameter: its path ("layer1_0/conv1/kernel"), its shape and how many numbers it holds."""
    leaves: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    return [(path, leaf.shape, math.prod(leaf.shape)) for path, leaf in leaves.items()]


def _fill_in(model: nn.Module, num_classes: int, dtype: DTypeLike, param_dtype: DTypeLike) -> nn.Module:
    defaults = {item.name: item.default for item in dataclasses.fields(model)}
    given = getattr(model, "num_classes", None)
    # A number that is the field's own default was not asked for, as far as anyone can tell.
    good = "num_classes" not in defaults or given in (None, num_classes, defaults["num_classes"])
    check(good, f"{type(model).__name__}.num_classes", given, f"the data have {num_classes} classes; leave it out")
    values = {"num_classes": num_classes, "dtype": dtype, "param_dtype": param_dtype}
    return model.clone(**{name: value for name, value in values.items() if name in defaults})
