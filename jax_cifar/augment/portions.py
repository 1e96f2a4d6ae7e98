"""How a CPU works on a batch whose images are changed differently: nothing here changes a result, all of it saves time.

XLA for CPUs has two habits that cost more than all arithmetic. It works a value out anew in every operation that reads
it, and inside a resampling for each of its reads. And whatever differs from image to image is a choice between results
that all exist: every member of a group would see every image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jax_cifar.backend.portions import materialize, on_one_cpu

Images = Shaped[Array, "batch _ _ _"]  # floating pixels, or whole levels with their axes in another order
Draws = Any  # arrays, nested in any way, that begin with the axis of the images

PORTION = 8  # images worked on at a time: small, as the last portion of each change is done in full


def change_chosen(
    images: Images,
    choice: Int[Array, " batch"],
    changes: Sequence[Callable[[Images, Draws], Images]],
    draws: Sequence[Draws],
) -> Images:
    """What the change numbered `choice` makes of each image; a number that none has leaves the image alone.

    A change takes any number of images with their own part of its `draws`. On a CPU images are put in the order of
    their choice, and each change works on the portions that hold an image of its own: the cost follows their number.
    Accelerators work faster on the whole batch, and so does a batch that is spread over several devices.
    """
    if not on_one_cpu():
        result = images
        for i, (change, own) in enumerate(zip(changes, draws, strict=True)):
            result = jnp.where((choice == i)[:, None, None, None], change(images, own), result)
        return result

    batch = images.shape[0]
    size = min(PORTION, batch)
    order = jnp.argsort(choice, stable=True)
    source, sorted_choice = materialize(images)[order], choice[order]
    result = source = materialize(source)
    for i, (change, own) in enumerate(zip(changes, draws, strict=True)):
        start = jnp.sum(choice < i, dtype=jnp.int32)
        count = jnp.sum(choice == i, dtype=jnp.int32)

        def change_portion(number: Array, result: Images, i=i, change=change, own=own, start=start) -> Images:
            # A portion that would reach past the end begins earlier: what was changed before is changed again, from
            # the same source.
            first = jnp.minimum(start + number * size, batch - size)
            portion, before, where = (
                jax.lax.dynamic_slice_in_dim(values, first, size) for values in (source, result, sorted_choice == i)
            )
            chosen = jax.lax.dynamic_slice_in_dim(order, first, size)
            changed = change(portion, jax.tree.map(lambda values: values[chosen], own))
            changed = jnp.where(where[:, None, None, None], changed, before)
            return jax.lax.dynamic_update_slice_in_dim(result, changed, first, 0)

        result = jax.lax.fori_loop(0, (count + size - 1) // size, change_portion, result)
    return result[jnp.argsort(order)]
