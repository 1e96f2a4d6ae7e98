"""Activations of a network by the names of its modules: what PyTorch's forward hooks are used for."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jax_cifar.backend.compiler import one_program_at_a_time
from jax_cifar.data.dataset import Images, as_pixels
from jax_cifar.errors import ConfigError
from jax_cifar.models.layers import statistics_dtype
from jax_cifar.models.network import Network
from jax_cifar.models.protocol import traced

BATCH = 250  # images of a forward pass


class Trained(Protocol):
    """A network with its weights, such as what `load_run` returns."""

    @property
    def network(self) -> Network:
        """The network."""
        ...

    @property
    def variables(self) -> dict[str, Any]:
        """Its weights and statistics."""
        ...


Modules = str | Sequence[str] | None
# A batch as bytes to what the wanted modules returned, by name, in the order in which they returned.
Watched = Callable[[Any, UInt8[Array, "batch height width channel"]], Mapping[str, Float[Array, "batch ..."]]]


def capture(
    run: Trained | tuple[Network, Mapping[str, Any]], images: Images, modules: Modules = None, batch_size: int = BATCH
) -> dict[str, np.ndarray]:
    """What modules of a network return for images, at evaluation; of any module, one's own too.

        maps = capture(load_run("runs/first"), images, ["conv1", "block2/*"])
        maps["conv1"]  # float32 [n, height, width, channel]

    Args:
      run: what `load_run` returned, or a network and its variables.
      images: uint8 [n, height, width, channel], or floating between 0 and 1, as the run's `predict` takes them.
      modules: names ("group1/conv1") or patterns ("group1/*", where * stands for any characters); None: all. What is
        not asked for is neither kept nor, where nothing needs it, computed.
      batch_size: images of a forward pass.

    Returns:
      Arrays [n, ...] by name, in the order in which the modules returned, an inner one before its outer one. The second
      call of a module is "name#2"; of several values that one returns each has its place in its name: "name[0]".

    Raises:
      ConfigError: no module has such a name; the nearest are shown.
      DataError: the images are not of the network's shape.
    """
    network, variables = run if isinstance(run, tuple) else (run.network, run.variables)
    images = as_pixels(images, network.spec.image_shape)
    names = choose(outputs(network, variables), modules)
    program, captured = jax.jit(make_watched(network, names)), dict[str, np.ndarray]()
    for rows, batch in batches(network, images, batch_size):
        with one_program_at_a_time():
            found = jax.device_get(program(variables, batch))
        for name in names:  # a compiled program has sorted them
            value = found[name]
            if name not in captured:
                captured[name] = np.empty((len(images), *value.shape[1:]), value.dtype)
            captured[name][rows] = value[: rows.stop - rows.start]
    return captured


def batches(
    network: Network, images: UInt8[np.ndarray, "n height width channel"], batch_size: int = BATCH
) -> Iterator[tuple[slice, UInt8[np.ndarray, "batch height width channel"]]]:
    """The rows of every batch, and its images: all of one shape, the last filled up with copies of the last image."""
    if len(images) == 0:  # the shapes of what is computed are wanted all the same
        yield slice(0, 0), np.zeros((1, *network.spec.image_shape), np.uint8)
    size = min(batch_size, len(images))
    for start in range(0, len(images), max(size, 1)):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        yield slice(start, min(start + size, len(images))), images[rows]


def make_watched(network: Network, names: Iterable[str] | None) -> Watched:
    """The forward pass at evaluation that returns what these modules did, in float32 at least; None: all of them."""

    def watched(variables: Any, images: Array) -> dict[str, Array]:
        order: list[tuple[str, ...]] = []

        def returned(module: Any, method: str) -> bool:
            # Asked when a method has returned.
            if method == "__call__":
                order.append(module.path)
            return method == "__call__" and module.path != ()

        kept: Any
        _, kept = network.model.apply(
            variables,
            network.inputs(images.astype(jnp.float32) / 255),
            train=False,
            mutable=["intermediates"],
            capture_intermediates=returned,
        )
        found = _by_name(order, kept.get("intermediates", {}))
        return {name: found[name] for name in (found if names is None else names)}

    return watched


def outputs(network: Network, variables: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """What every module returns for seven images that has an axis of images; nothing is computed."""
    images = jax.ShapeDtypeStruct((7, *network.spec.image_shape), jnp.uint8)
    order: list[str] = []

    def shapes(variables: Any, images: Array) -> dict[str, Array]:
        found = make_watched(network, None)(variables, images)
        order.extend(found)
        return dict(found)

    found: Any = traced(network.model, shapes, variables, images)
    return {name: found[name] for name in order if found[name].shape[:1] == (7,)}


def choose(known: Iterable[str], modules: Modules) -> list[str]:
    """The known names that a name or pattern stands for, in the order known; `ConfigError` for one without any."""
    known = list(known)
    if modules is None:
        return known
    patterns = [modules] if isinstance(modules, str) else list(modules)
    matches = {pattern: [name for name in known if _matches(name, pattern)] for pattern in patterns}
    for pattern, names in matches.items():
        if not names:
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5) or known
            shown = ", ".join(near[:8]) + (", ..." if len(near) > 8 else "")
            raise ConfigError(f"No module is called {pattern!r}; there are {shown}. * stands for any characters.")
    wanted = {name for names in matches.values() for name in names}
    return [name for name in known if name in wanted]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _by_name(order: Iterable[tuple[str, ...]], kept: Mapping[str, Any]) -> dict[str, Array]:
    """What was kept by path and call, under one name each, in the order of the calls."""
    calls: dict[tuple[str, ...], int] = {}
    found: dict[str, Array] = {}
    for path in order:
        results: Any = kept
        for part in path:
            results = results.get(part, {})
        results, call = results.get("__call__", ()) if path else (), calls.get(path, 0)
        calls[path] = call + 1
        if call < len(results):
            name = "/".join(path) + (f"#{call + 1}" if call else "")
            for place, value in jax.tree_util.tree_leaves_with_path(results[call]):
                found[name + jax.tree_util.keystr(place)] = value.astype(statistics_dtype(value.dtype))
    return found
