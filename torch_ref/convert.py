"""Parameters and batch statistics between JAX and PyTorch: plain nested dictionaries of NumPy, and state dicts.

Both directions are exact: a round trip gives every bit back. A value takes the type of the place it goes to.

A JAX path becomes PyTorch's name by one rule: "/" becomes ".", a number after an underscore is an index ("layer1_0" is
"layer1.0"), `kernel` and `scale` are `weight`, the batch statistics `mean` and `var` are `running_mean` and
`running_var`. `num_batches_tracked`, which PyTorch only counts and JAX does not keep, stays the PyTorch model's own.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jax_cifar.errors import CheckpointError

# Axes of a JAX kernel in PyTorch's order, HWIO -> OIHW and [in, out] -> [out, in], and the way back.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}
# Dense kernels that read a flattened feature map, with the convolution whose channels it has: JAX flattens it in the
# order height, width, channel; PyTorch in the order channel, height, width. An architecture has one of the pairs.
_FLATTENED = (
    ("params/fc/kernel", "params/conv3/kernel"),  # TinyCNN
    ("params/fc1/kernel", "params/conv2/kernel"),  # SimpleCNN
    ("params/fc1/kernel", "params/block4/conv2/kernel"),  # CifarCNN
)
_COUNTER = "num_batches_tracked"
_NAMES_SHOWN = 4

Shapes = dict[str, tuple[int, ...]]


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The state dict that `model.load_state_dict(..., strict=True)` takes, from JAX variables.

    Args:
        variables: {"params": ..., "batch_stats": ...}, nested dictionaries of arrays ("batch_stats" may be left out).
        model: the same architecture, from `torch_ref.models.create_model`; it is not changed.

    Raises:
        CheckpointError: the variables are not those of this architecture; the message lists the keys.
    """
    leaves = _leaves(variables)
    current = model.state_dict()
    counters = {name: value.cpu().clone() for name, value in current.items() if name.endswith(_COUNTER)}
    found = {name: _torch_shape(leaves[path]) for name, path in _names(leaves).items()} | _shapes(counters)
    _compare(_shapes(current), found, "The JAX variables do not fit the model:")
    channels = _flattened_channels(leaves)
    state = {}
    for name, path in _names(leaves).items():
        # In float64, which holds every narrower type exactly, bfloat16 included.
        value = np.array(leaves[path], np.float64)
        if path in channels:
            value = _reorder_rows(value, value.shape[0] // channels[path], channels[path])
        value = value.transpose(_TO_TORCH.get(value.ndim, range(value.ndim)))
        state[name] = torch.from_numpy(value.copy()).to(current[name].dtype)
    return {name: (state | counters)[name] for name in current}


def from_torch(state_dict: Mapping[str, Tensor], template: Mapping[str, Any]) -> dict[str, Any]:
    """JAX variables {"params": ..., "batch_stats": ...} in NumPy, from a PyTorch state dict.

    Args:
        state_dict: what `model.state_dict()` returns, on any device.
        template: variables of the same architecture; only their structure, shapes and types are read, so the
            result of `jax.eval_shape` serves.

    Raises:
        CheckpointError: the state dict is not one of this architecture; the message lists the keys.
    """
    leaves = _leaves(template)
    names = _names(leaves)
    expected = {name: _torch_shape(leaves[path]) for name, path in names.items()}
    expected |= {name.replace("running_mean", _COUNTER): () for name in names if name.endswith("running_mean")}
    _compare(expected, _shapes(state_dict), "The state dict does not fit the model:")
    channels = _flattened_channels(leaves)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, path in names.items():
        value = state_dict[name].detach().cpu().double().numpy()
        value = value.transpose(_FROM_TORCH.get(value.ndim, range(value.ndim)))
        if path in channels:
            value = _reorder_rows(value, channels[path], value.shape[0] // channels[path])
        *parents, last = path.split("/")
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value.astype(leaves[path].dtype, order="C")
    return variables


def torch_name(path: str) -> str:
    """PyTorch's name, such as "layer1.0.conv1.weight", of the JAX variable "params/layer1_0/conv1/kernel"."""
    name = re.sub(r"_(\d+)(?=/)", r".\1", path.partition("/")[2]).replace("/", ".")
    name = re.sub(r"\b(kernel|scale)$", "weight", name)
    return re.sub(r"\b(mean|var)$", r"running_\1", name) if path.startswith("batch_stats/") else name


def jax_path(name: str, ndim: int) -> str:
    """The JAX path, such as "layer1_0/conv1/kernel", of PyTorch's parameter "layer1.0.conv1.weight" of rank `ndim`."""
    path = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).replace(".", "/")
    return re.sub(r"\bweight$", "kernel" if ndim > 1 else "scale", path)


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path, such as "params/layer1_0/conv1/kernel"."""

    def walk(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(tree, Mapping):
            yield path, tree
            return
        for key, child in tree.items():
            yield from walk(child, f"{path}/{key}")

    return {
        path: leaf
        for collection in ("params", "batch_stats")
        for path, leaf in walk(variables.get(collection, {}), collection)
    }


def _names(leaves: Mapping[str, Any]) -> dict[str, str]:
    """JAX path by PyTorch name."""
    return {torch_name(path): path for path in leaves}


def _torch_shape(leaf: Any) -> tuple[int, ...]:
    shape = np.shape(leaf)
    return tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))


def _flattened_channels(leaves: Mapping[str, Any]) -> dict[str, int]:
    """Channels of the feature map that a dense kernel reads flattened, by the kernel's path."""
    return {dense: leaves[conv].shape[-1] for dense, conv in _FLATTENED if dense in leaves and conv in leaves}


def _reorder_rows(kernel: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """A dense kernel whose rows count through `outer`, then `inner`, with rows that count through `inner` first."""
    return kernel.reshape(outer, inner, -1).swapaxes(0, 1).reshape(kernel.shape)


def _shapes(state_dict: Mapping[str, Any]) -> Shapes:
    # A whole checkpoint passed by mistake holds more than tensors; its keys are to be listed too.
    return {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}


def _compare(expected: Shapes, found: Shapes, headline: str) -> None:
    """Raise CheckpointError, in at most five lines, unless both have the same names and shapes."""
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    if not any(problems.values()):
        return
    lines = [headline]
    for what, names in problems.items():
        if names:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            lines.append(f"  {what}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    raise CheckpointError("\n".join([*lines, "Convert with the configuration that the weights were trained with."]))
