"""What a network costs: its multiply-adds, told by shapes alone."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jax_cifar.models.network import Network


def multiply_adds(network: Network) -> int:
    """Multiplications, each with its addition, in the kernels of a network for one image at evaluation.

    Of every layer with a kernel: the kernel's size times the places where it is laid on. For a convolution that is
    height x width of the output x kernel height x kernel width x channels in x filters, for a dense layer inputs x
    outputs. Norms, biases, activations and pooling are not counted, as is the custom (one multiply-add is two FLOP).
    Nothing is computed.
    """
    counts = []

    def count(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        output, layer = call(*arguments, **options), context.module
        if context.method_name == "__call__" and layer.has_variable("params", "kernel"):
            counts.append(layer.get_variable("params", "kernel").size * (output.size // output.shape[-1]))
        return output

    def run(key: jax.Array, image: jax.Array) -> Any:
        return network.model.init(key, network.inputs(image), train=False)

    with nn.intercept_methods(count):
        jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((1, *network.spec.image_shape), jnp.float32))
    return sum(counts)
