"""Batch normalisation folded into the convolution before it: in evaluation both are one convolution with a bias."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_cifar.errors import CheckpointError, check
from jax_cifar.models.layers import BatchNorm


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of `model.clone(norm="folded")`, whose logits are those of `model` in evaluation.

    Per output channel, as `torch.nn.utils.fusion.fuse_conv_bn_weights`: the kernel is multiplied by
    scale / sqrt(var + epsilon), the bias is the norm's bias less mean times that factor. Computed in float64, so that
    the only rounding is the one to the type of each parameter.

    Args:
        model: a network with norm "batch". It says which epsilon the norms have (`norm_epsilon`, where it is not
            PyTorch's) and which of them stand behind a max-pool (`pooled_norms`, regular expressions on their paths).
        variables: its trained {"params": ..., "batch_stats": ...}; they are not changed.

    Returns:
        {"params": ..., "batch_stats": {}} in NumPy.

    Raises:
        ConfigError: the network has another norm, which depends on the images and cannot be folded, or none.
        CheckpointError: the variables are not this network's, or a norm behind a max-pool has a negative scale: what
            was the maximum is the minimum then, which no convolution can say. Of the networks that ship only
            SpeedrunNet pools there, and never trains those scales: they stay at one.
    """
    norm = getattr(model, "norm", None)
    expected = f"only batch normalisation can be folded into convolutions; {type(model).__name__} is used as it is"
    check(norm == "batch", "model.norm", norm, expected)
    host = jax.device_get(variables)
    params: dict[str, Any] = dict(flatten_dict(host["params"], sep="/"))
    stats: dict[str, Any] = dict(flatten_dict(host["batch_stats"], sep="/"))
    epsilon = getattr(model, "norm_epsilon", BatchNorm.epsilon)
    pooled = getattr(model, "pooled_norms", ())
    for path in [name.removesuffix("/scale") for name in params if name.endswith("/scale")]:
        conv = _convolution_before(path)
        if f"{conv}/kernel" not in params or f"{path}/bias" not in params or f"{path}/var" not in stats:
            raise CheckpointError(
                f"{path} lacks its convolution or its statistics: the variables are another network's."
            )
        scale, bias = (params.pop(f"{path}/{name}").astype(np.float64) for name in ("scale", "bias"))
        mean, var = (stats[f"{path}/{name}"].astype(np.float64) for name in ("mean", "var"))
        # With a max-pool between the two, the maximum is the same after the factor only where that keeps the order.
        if scale.min() < 0 and any(re.search(pattern, path) for pattern in pooled):
            raise CheckpointError(
                f"{path}/scale goes down to {scale.min():.3g}: behind a max-pool a negative scale cannot be folded."
                " Use the network unfolded."
            )
        factor, kernel = scale / np.sqrt(var + epsilon), params[f"{conv}/kernel"]
        params[f"{conv}/kernel"] = (kernel.astype(np.float64) * factor).astype(kernel.dtype)
        params[f"{conv}/bias"] = (bias - mean * factor).astype(kernel.dtype)
    return {"params": unflatten_dict(params, sep="/"), "batch_stats": {}}


def _convolution_before(norm: str) -> str:
    """Path of the convolution that the norm at this path reads: conv1 for bn1, downsample_0 for downsample_1."""
    parent, slash, name = norm.rpartition("/")
    return parent + slash + ("downsample_0" if name == "downsample_1" else name.replace("bn", "conv"))
