"""Prediction over a whole set, with test-time augmentation."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, UInt8

from jax_cifar.augment import HorizontalFlip, OneOf, Sometimes
from jax_cifar.backend.compiler import compiler_options, one_program_at_a_time
from jax_cifar.backend.hosts import several
from jax_cifar.backend.mesh import place, replicated
from jax_cifar.backend.portions import by_shares, devices_of, map_chunks
from jax_cifar.models.network import Network

Views = Literal["none", "mirror", "mirror-translate"]
TestTimeAugmentation = Literal[Views, "unsure"]
Logits = Float32[np.ndarray, "images classes"]  # on the host
Predictor = Callable[[Any, UInt8[Array, "batch height width channel"]], Float32[Array, "batch classes"]]

# On a CPU, images in a forward pass. More do not fit into the cache, fewer cost more in starting operations.
LEAST_IMAGES, MOST_IMAGES = 16, 40

# Between two looks at whether a prediction is still wanted.
LOOK_SECONDS = 0.25

# Weight of every view, the image as it is first. The views of an image and of its mirror image always count the same.
VIEW_WEIGHTS: dict[Views, tuple[float, ...]] = {
    "none": (1.0,),
    "mirror": (0.5, 0.5),
    "mirror-translate": (0.25, 0.25, 0.125, 0.125, 0.125, 0.125),
}

# `unsure` is `mirror-translate` for the images whose likeliest class leads by less: further views hardly ever turn a
# larger lead (experiments.md). Of a network of 90 % they are this share, which only tells how long it will take.
SURE_LEAD, UNSURE_SHARE = 0.5, 0.28


def make_predictor(network: Network, deterministic: bool = False, mesh: Mesh | None = None) -> Predictor:
    """The compiled function `(variables, images) -> logits` of a network at evaluation.

    Make it once and use it for every evaluation: it compiles once per batch shape, whatever the test-time augmentation.
    Images are an argument of the program, never a constant in it. `deterministic` as `train.deterministic`; `mesh`
    is that of the devices which batches are spread over, where they are.
    """

    def predict(variables: Any, images: Array) -> Array:
        return by_portions(partial(forward, variables), images)

    def forward(variables: Any, images: Array) -> Array:
        return network.logits(variables, images).astype(jnp.float32)

    # Of several processes each takes all logits; else they lie as the compiler likes it.
    everywhere = replicated(mesh) if mesh is not None and several() else None
    options = {"compiler_options": compiler_options(deterministic), "out_shardings": everywhere}
    return jax.jit(predict if mesh is None else by_shares(predict, mesh), **options)


def by_portions(forward: Callable[[Array], Array], images: Array) -> Array:
    """`forward` of a batch, which treats every image alike: on a CPU a few images at a time.

    What a layer hands to the next then stays in the cache, in memory that is used again for the next portion. A batch
    that no portion divides goes through at once, as it does on other devices.
    """
    if jax.default_backend() != "cpu":
        return forward(images)
    devices = devices_of(images)
    sizes = range(MOST_IMAGES // devices * devices, LEAST_IMAGES - 1, -devices)
    size = next((size for size in sizes if len(images) % size == 0), None)
    return forward(images) if size is None else map_chunks(forward, images, size)


def mirror_warning(tta: TestTimeAugmentation, augment: Sequence[object]) -> str | None:
    """What a user should hear whose test-time augmentation mirrors images, where training did not; else None.

    `augment` are the transforms of the training; of one's own none knows whether they mirror.
    """
    if tta == "none" or any(map(_may_mirror, augment)):
        return None
    return (
        f"tta {tta} shows mirror images, and training showed none (no HorizontalFlip in augment): what they are is a"
        " guess, and accuracy may fall, as of digits. Judge by tta none."
    )


def _may_mirror(transform: object) -> bool:
    match transform:
        case HorizontalFlip():
            return transform.p > 0
        case OneOf():
            return any(map(_may_mirror, transform.transforms))
        case Sometimes():
            return _may_mirror(transform.inner)
    return not type(transform).__module__.startswith("jax_cifar.augment.")


@partial(jax.jit, static_argnames="tta")
def tta_views(
    images: UInt8[Array, "batch height width channel"], tta: Views
) -> tuple[UInt8[Array, "batch height width channel"], ...]:
    """The versions of a batch whose logits are averaged with `VIEW_WEIGHTS[tta]`.

    `mirror` is the image and its mirror image. `mirror-translate` adds the same two of the image moved by one pixel
    down and right and by one pixel up and left, the border filled by reflection (cifar10-airbench, `infer`).
    """
    views = [images]
    if tta == "mirror-translate":
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        views += [padded[:, :height, :width], padded[:, 2:, 2:]]
    if tta == "none":
        return (images,)
    return tuple(version for view in views for version in (view, view[:, :, ::-1]))


def passes(tta: TestTimeAugmentation) -> float:
    """Forward passes that an image takes, about."""
    further = len(VIEW_WEIGHTS[_views_of(tta)]) - 1
    return 1 + further * (UNSURE_SHARE if tta == "unsure" else 1)


def _views_of(tta: TestTimeAugmentation) -> Views:
    return "mirror-translate" if tta == "unsure" else tta


class Batches(NamedTuple):
    """Images in batches of one shape, on the devices; the last is filled up with copies of the last image."""

    images: tuple[UInt8[Array, "rows height width channel"], ...]
    host: UInt8[np.ndarray, "images height width channel"]  # without the copies
    sharding: jax.sharding.Sharding | None = None

    def take(self, index: Int[np.ndarray, " images"]) -> "Batches":
        """The images of these numbers, at least one, in batches of the same shape."""
        return _in_rows(self.host[index], len(self.images[0]), self.sharding)


def _in_rows(
    images: UInt8[np.ndarray, "images height width channel"], rows: int, sharding: jax.sharding.Sharding | None
) -> Batches:
    starts, last = range(0, len(images), rows), len(images) - 1
    batches = (images[np.minimum(np.arange(start, start + rows), last)] for start in starts)
    return Batches(tuple(place(batch, sharding) for batch in batches), images, sharding)


def rows_per_batch(count: int, batch_size: int, sharding: jax.sharding.Sharding | None = None) -> int:
    """Rows of every batch for `count` images: at most `batch_size`, rounded up to a multiple of the devices."""
    devices = len(sharding.device_set) if sharding is not None else 1
    return -(-min(batch_size, count) // devices) * devices


def make_batches(
    images: UInt8[np.ndarray, "images height width channel"],
    batch_size: int,
    sharding: jax.sharding.Sharding | None = None,
) -> Batches:
    """Put a whole set on the devices once, for any number of evaluations.

    Args:
      images: on the host.
      batch_size: images per forward pass; rounded up to a multiple of the sharding's devices.
      sharding: how a batch is spread over devices; default: left to JAX.
    """
    return _in_rows(images, rows_per_batch(len(images), batch_size, sharding), sharding)


class Unwanted(Exception):
    """A prediction was given up halfway, because it was no longer wanted."""


def predict_logits(
    predict: Predictor,
    variables: Any,
    batches: Batches,
    tta: TestTimeAugmentation = "none",
    stop: Callable[[], object] | None = None,
    plain: Logits | None = None,
) -> Logits:
    """Logits of every image exactly once, in order, on the host.

    Args:
      predict: from `make_predictor`.
      variables: the model's, passed on to `predict`.
      batches: from `make_batches`.
      tta: test-time augmentation. Logits are averaged (not probabilities), as in cifar10-airbench.
      stop: asked a few times a second; once true, what the devices are at is left to itself.
      plain: the logits of `tta` none, where they are known already.

    Raises:
      Unwanted: `stop()` was true.
    """
    if plain is None:
        plain = _sum_of_views(predict, variables, batches, lambda images: [(1.0, images)], stop)
    if tta == "none":
        return plain
    views = _views_of(tta)
    first, *others = VIEW_WEIGHTS[views]

    def further(images: Array) -> list[tuple[float, Array]]:
        return list(zip(others, tta_views(images, views)[1:], strict=True))

    if tta != "unsure":
        return first * plain + _sum_of_views(predict, variables, batches, further, stop)
    logits, unsure = plain.copy(), np.flatnonzero(lead(plain) < SURE_LEAD)
    if len(unsure):
        logits[unsure] = first * plain[unsure] + _sum_of_views(predict, variables, batches.take(unsure), further, stop)
    return logits


def warm_up(batches: Batches, tta: TestTimeAugmentation) -> None:
    """Compile what test-time augmentation needs beside the network."""
    if tta != "none":
        jax.block_until_ready(tta_views(batches.images[0], _views_of(tta)))


def lead(logits: Logits) -> Float32[np.ndarray, " images"]:
    """By how much the probability of the likeliest class is above that of the next, if there is one."""
    powers = np.sort(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)
    return (powers[:, -1] - powers[:, -2:-1].sum(axis=1)) / powers.sum(axis=1)


def _sum_of_views(
    predict: Predictor,
    variables: Any,
    batches: Batches,
    views: Callable[[Array], list[tuple[float, Array]]],
    stop: Callable[[], object] | None,
) -> Logits:
    """The logits of a batch's views, each times the weight that stands beside it, added up."""
    logits = []
    with one_program_at_a_time():
        for batch in batches.images:
            logits.append(sum(weight * predict(variables, view) for weight, view in views(batch)))
            if several():
                jax.block_until_ready(logits[-1])  # two programs that wait for other processes can wait for ever
            if stop is not None:
                _wait(logits[-2:-1], stop)  # one batch runs ahead, so that the device never waits for the host
        if stop is not None:
            _wait(logits[-1:], stop)
        # One transfer at the end, so that the device never waits for the host between batches.
        return np.concatenate(jax.device_get(logits))[: len(batches.host)]


def _wait(arrays: Sequence[Any], stop: Callable[[], object]) -> None:
    looked = time.monotonic()
    while not all(array.is_ready() for array in arrays):
        time.sleep(0.001)
        if time.monotonic() - looked > LOOK_SECONDS:
            if stop():
                raise Unwanted
            looked = time.monotonic()
