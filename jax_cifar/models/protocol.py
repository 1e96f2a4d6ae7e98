"""What the library asks of a network, of one's own as of those that ship.

A network is an instance of a linen module that is called `module(images, train=...)`, normalised images [batch, height,
width, channel] to logits [batch, num_classes] of any floating type. Its variables are `params`, in float32, and
`batch_stats` where it has some; it may draw from the "dropout" key. What else it may say of itself:

    num_classes, dtype, param_dtype     fields that `create_model` fills in: classes of the data, type of activations
    smallest_image: int                 fewest pixels a side that it works with; default: 1
    frozen: tuple[str, ...]             regular expressions on the paths ("group1/bn1/scale") of the parameters that
                                        training leaves as they are; may be a property; default: none
    init_from(params, images) -> params  its start, where that depends on training images (INIT_IMAGES of them at most,
                                        normalised); default: what `init` drew
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, PyTree

from jax_cifar.config.modules import in_one_line
from jax_cifar.errors import ConfigError, UserError, check

INIT_IMAGES = 5000  # cifar10-airbench's number


def wants_images(model: nn.Module) -> bool:
    """Whether its start depends on training images; for others one image, which gives the shapes, is enough."""
    return hasattr(model, "init_from")


def frozen_parameters(model: nn.Module) -> tuple[str, ...]:
    """Regular expressions on the paths of the parameters that training leaves as they are."""
    return tuple(getattr(model, "frozen", ()))


def hold_frozen(model: nn.Module, params: PyTree) -> PyTree:
    """The parameters as a loss should see them: without a gradient, and its cost, for those that are frozen."""
    patterns = frozen_parameters(model)

    def held(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.lax.stop_gradient(leaf) if any(re.search(pattern, name) for pattern in patterns) else leaf

    return jax.tree_util.tree_map_with_path(held, params)


def init_variables(
    model: nn.Module, key: Array, sample_images: Float[Array, "batch height width channel"]
) -> dict[str, Any]:
    """Fresh parameters and batch statistics, as {"params": ..., "batch_stats": ...} ({} where the model keeps none).

    Args:
        model: what `create_model` returned.
        key: typed key; it fixes the values.
        sample_images: normalised training images. One is enough for the shapes; a network that `wants_images` is given
            the first `INIT_IMAGES`.

    Raises:
        ConfigError: the images are too small, or `init_from` gave parameters of other places, shapes or types.
    """
    _check_size(model, sample_images.shape[1:])
    try:
        init = _init_program(model)
    except TypeError:  # a field that cannot be hashed, such as a list: compiled anew each time
        init = _init_program.__wrapped__(model)
    variables: Any = init(key, sample_images[:1])
    params = variables["params"]
    if wants_images(model):
        started = model.init_from(params, sample_images[:INIT_IMAGES])  # pyright: ignore[reportAttributeAccessIssue]
        if _shapes(started) != _shapes(params):
            name = _difference(_shapes(params), _shapes(started))
            raise ConfigError(f"{type(model).__name__}.init_from changed the shape, type or place of {name}.")
        params = started
    return {"params": params, "batch_stats": variables.get("batch_stats", {})}


@lru_cache(maxsize=8)
def _init_program(model: nn.Module) -> Callable[..., Any]:
    # Compiled, because only the shapes of the forward pass are needed: none of it is computed.
    return jax.jit(partial(model.init, train=False))


def check_network(model: nn.Module, image_shape: tuple[int, int, int], sides: Sequence[int], num_classes: int) -> int:
    """Prove by its shapes alone that a network can be trained and evaluated; nothing is computed.

    Returns how many parameters it has.

    Args:
        model: what `create_model` returned.
        image_shape: height, width and channels of the images.
        sides: the sides that they are downsampled to while training; empty where they stay as they are.
        num_classes: classes of the data.

    Raises:
        ConfigError: the images are too small; the network fails, with the line of its file; it does not return logits
            [batch, num_classes]; it has no parameters, or some not in float32 or float64; it keeps other collections
            than `params` and `batch_stats`; its parameters depend on the side; or `frozen` matches none of them.
    """
    try:
        return _check_network(model, image_shape, tuple(dict.fromkeys(sides)), num_classes)
    except TypeError:  # a field that cannot be hashed
        return _check_network.__wrapped__(model, image_shape, tuple(dict.fromkeys(sides)), num_classes)


@lru_cache(maxsize=8)
def _check_network(
    model: nn.Module, image_shape: tuple[int, int, int], sides: tuple[int, ...], num_classes: int
) -> int:
    # Several runs of a process, as of a sweep, have the same network.
    shapes = [(side, side, image_shape[2]) for side in sides] or [image_shape]
    smallest = getattr(model, "smallest_image", 1)
    for side in sides:
        check(side >= smallest, "train.resolutions", side, f"{type(model).__name__} needs {smallest} pixels a side")
    variables = [_variables(model, shape) for shape in shapes]
    params = [_shapes(tree["params"]) for tree in variables]
    _check_outputs(model, variables[0], shapes[0], num_classes)
    for shape, other in zip(shapes[1:], params[1:], strict=True):
        if other != params[0]:
            name = _difference(params[0], other)
            sizes = f"{params[0].get(name)} at {shapes[0][0]} pixels a side, {other.get(name)} at {shape[0]}"
            raise ConfigError(
                f"train.resolutions needs a network whose parameters fit every image side, and {name} of"
                f" {type(model).__name__} does not: {sizes}. Average over height and width before the dense layers, or"
                " train at one resolution; of those that ship, the ResNets and speedrun_net take any."
            )
    for pattern in _patterns(model):
        matches = any(re.search(pattern, name) for name in params[0])
        expected = f"it matches no parameter; their paths look like {', '.join(list(params[0])[:4])}"
        check(matches, f"{type(model).__name__}.frozen", pattern, expected)
    return sum(math.prod(shape) for shape, _ in params[0].values())


def _variables(model: nn.Module, shape: tuple[int, int, int]) -> Any:
    """The shapes and types of the network's variables, checked, for one size of images."""
    _check_size(model, shape)
    name = type(model).__name__
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = traced(model, partial(model.init, train=False), jax.random.key(0), images)
    stray = set(variables) - {"params", "batch_stats"}
    if stray:
        raise ConfigError(f"{name} keeps {', '.join(sorted(stray))}: a network may have params and batch_stats only.")
    if not variables.get("params"):
        raise ConfigError(f"{name} has no parameters: there is nothing to train.")
    for path, (_, dtype) in _shapes(variables["params"]).items():
        check(dtype in ("float32", "float64"), f"{name}: the type of {path}", dtype, "parameters are kept in float32")
    return variables


def _check_size(model: nn.Module, shape: Sequence[int]) -> None:
    height, width, smallest = *shape[:2], getattr(model, "smallest_image", 1)
    if min(height, width) < smallest:
        name, needed = type(model).__name__, f"{smallest}x{smallest}"
        raise ConfigError(
            f"images of {height}x{width} pixels are too small: {name} needs {needed} or more. "
            "Take larger images, or another model.name."
        )


def _check_outputs(model: nn.Module, variables: Any, shape: tuple[int, int, int], num_classes: int) -> None:
    """Check the logits in evaluation and in training, and that the batch statistics keep their shapes."""
    name, images = type(model).__name__, jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def evaluate(variables: PyTree, images: Array) -> Any:
        return model.apply(variables, images, train=False)

    def train(variables: PyTree, images: Array) -> Any:
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    logits = traced(model, evaluate, variables, images)
    trained_logits, updated = traced(model, train, variables, images)
    for output, way in ((logits, "train=False"), (trained_logits, "train=True")):
        good = getattr(output, "shape", None) == (2, num_classes) and jnp.issubdtype(output.dtype, jnp.floating)
        got = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", output)
        expected = f"for 2 images and {num_classes} classes it must return logits, one array float32[2, {num_classes}]"
        check(good, f"{name}: the output with {way}", got, expected)
    before, after = _shapes(variables.get("batch_stats", {})), _shapes(updated.get("batch_stats", {}))
    if before != after:
        raise ConfigError(f"{name} changes the shape, type or place of batch_stats {_difference(before, after)}.")


def traced(model: nn.Module, function: Callable, *arguments: Any) -> Any:
    """`jax.eval_shape`, with whatever the network raises as one message that shows the line in its file."""
    try:
        return jax.eval_shape(function, *arguments)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} failed, called as module(images, train=...) with normalised images"
            f" [batch, height, width, channel]: {in_one_line(error)}."
        ) from error


def _patterns(model: nn.Module) -> tuple[str, ...]:
    patterns = getattr(model, "frozen", ())
    expected = "it must be a tuple of regular expressions on parameter paths"
    try:
        good = not isinstance(patterns, str) and all(re.compile(pattern) is not None for pattern in patterns)
    except (re.error, TypeError):
        good = False
    check(good, f"{type(model).__name__}.frozen", patterns, expected)
    return tuple(patterns)


def _shapes(tree: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves: dict[str, Any] = dict(flatten_dict(tree, sep="/"))
    return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves.items()}


def _difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    return next(path for path in [*first, *second] if first.get(path) != second.get(path))
