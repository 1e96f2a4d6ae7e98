"""Where the training images lie, and how a step takes a batch of them.

Whole on every device, or a part on each where they are large for it. Either way a batch is the same, bit for bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, UInt8

from jax_cifar.backend.hosts import least
from jax_cifar.backend.memory import device_memory
from jax_cifar.backend.mesh import AnyMesh, place, replicated, split_batch
from jax_cifar.errors import ConfigError

# The share of a device's memory up to which the training images lie on it whole: that costs a step nothing, but takes
# the room of what it makes of a batch. In parts they cost sending each batch, as bytes: little beside its gradients.
WHOLE_SHARE = 0.1


class Parts(NamedTuple):
    """Images of which every device has a part, the last filled up with zeros."""

    images: UInt8[Array, "devices n height width channel"]


def place_images(
    images: UInt8[np.ndarray, "n height width channel"], mesh: Mesh
) -> UInt8[Array, "n height width channel"] | Parts:
    """Images of which every step takes any: whole on each device, or a part on each where they are large for it.

    Raises:
        ConfigError: they take more than the memory of the devices.
    """
    count, memory = mesh.shape["data"], device_memory()
    # The devices of a CPU have one memory, which is the machine's.
    on_cpu = jax.default_backend() == "cpu"
    sharing, there = (jax.local_device_count(), memory) if on_cpu else (1, count * memory)
    if images.nbytes > there:
        raise ConfigError(
            f"{len(images):,} training images of {images[0].nbytes:,} bytes take {images.nbytes / 1e9:,.1f} GB, and"
            f" there are {there / 1e9:,.1f}: keep fewer of them by --data.subset, or of a folder smaller ones by"
            " --data.image_size."
        )
    if count == 1 or least(images.nbytes * sharing <= WHOLE_SHARE * memory):
        return place(jnp.asarray(images), replicated(mesh))
    size = -(-len(images) // count)
    missing = count * size - len(images)
    filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
    return Parts(place(filled.reshape(count, size, *images.shape[1:]), split_batch(mesh)))


def take_images(parts: Parts, index: Int[Array, " batch"], mesh: AnyMesh) -> UInt8[Array, "batch height width channel"]:
    """The images of these numbers, spread over the devices.

    Each device gives what it has of the batch, and zeros for the rest: the sum is the batch, bit for bit.
    """

    def of_part(part: Array, index: Array) -> Array:
        size = part.shape[1]
        own = index - lax.axis_index("data") * size
        own = jnp.where((own >= 0) & (own < size), own, size)
        return lax.psum_scatter(part[0].at[own].get(mode="fill", fill_value=0), "data", tiled=True)

    spread = PartitionSpec("data")
    return jax.shard_map(of_part, mesh=mesh, in_specs=(spread, PartitionSpec()), out_specs=spread)(parts.images, index)
