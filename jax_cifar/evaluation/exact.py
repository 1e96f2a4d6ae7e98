"""Logits in float64: what a float32 program of a network, in whatever runtime, can be judged by."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, UInt8

from jax_cifar.backend.precision import float64
from jax_cifar.models.network import Network


class Exact(NamedTuple):
    """A network in float64, with the weights and the statistics of its float32 self."""

    inputs: Float64[np.ndarray, "n height width channel"]  # normalised, of the side that the network looks at
    logits: Float64[np.ndarray, "n classes"]


def in_float64(network: Network, variables: Any, images: UInt8[np.ndarray, "n height width channel"]) -> Exact | None:
    """The network of these images in float64; None for one that does not compute in it, whatever it is given."""
    names = {field.name for field in dataclasses.fields(network.model)} & {"dtype", "param_dtype"}
    # The statistics are float32 wherever the network is used: it is their rounded values that count.
    rounded = {name: tuple(map(_float32, getattr(network.spec, name))) for name in ("mean", "std")}
    spec = dataclasses.replace(network.spec, **rounded)
    with float64():
        model = network.model.clone(**dict.fromkeys(names, jnp.float64))  # pyright: ignore[reportArgumentType]
        wide = Network(model, spec)

        def compute(variables: Any, images: jax.Array) -> Any:
            inputs = wide.inputs(images / 255)
            return inputs, model.apply(variables, inputs, train=False)

        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        inputs, logits = map(np.asarray, jax.jit(compute)(variables, images.astype(np.float64)))
    return Exact(inputs, logits) if logits.dtype == np.float64 else None


def _float32(value: float) -> float:
    return float(np.float32(value))
