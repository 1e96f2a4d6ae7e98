"""Muon's arithmetic for convolution kernels, as in airbench94_muon (K. Jordan, 2024): pure functions on arrays.

A kernel [height, width, in, out] counts as the matrix [height * width * in, out]; airbench's is its transpose with the
rows in another order, which changes nothing here. `torch.optim.Muon` differs: it takes matrices only, runs 5 iterations
in bfloat16, scales the rate by sqrt(max(1, rows / columns)) and does not renormalise the weights.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# Chosen by airbench for slope at zero, not convergence: singular values end up somewhere around 1, which is enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3
EPSILON = 1e-7


def newton_schulz(matrices: Float[Array, "n rows columns"]) -> Float[Array, "n rows columns"]:
    """Push the singular values of each matrix to about 1, keeping its singular vectors, in the dtype given.

    Each matrix is divided by its Frobenius norm + 1e-7; then three times X <- a X + (b A + c A A) X with A = X X^T.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = jnp.swapaxes(matrices, 1, 2) if tall else matrices  # the Gram matrix of the short side is the small one
    x = x / (jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ jnp.swapaxes(x, 1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return jnp.swapaxes(x, 1, 2) if tall else x


def orthogonalise(
    kernels: list[Float[Array, "_ _ _ _"]],
) -> list[Float[Array, "_ _ _ _"]]:
    """Apply `newton_schulz` to every kernel [height, width, in, out], those of one matrix shape in one batch."""
    groups: dict[tuple, list[int]] = {}
    matrices = [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels]
    for index, matrix in enumerate(matrices):
        groups.setdefault((matrix.shape, matrix.dtype), []).append(index)
    result = list(kernels)
    for members in groups.values():
        done = newton_schulz(jnp.stack([matrices[index] for index in members]))
        for place, index in enumerate(members):
            result[index] = done[place].reshape(kernels[index].shape)
    return result


def renormalising_factor(kernel: Float[Array, "height width in out"]) -> Float[Array, ""]:
    """The factor that gives the kernel the Frobenius norm sqrt(out), that is filters of mean square norm 1.

    A kernel of zeros has no direction to keep and stays as it is: factor 1.
    """
    norm = jnp.sqrt(jnp.sum(kernel * kernel))
    return jnp.where(norm > 0, math.sqrt(kernel.shape[-1]) / jnp.where(norm > 0, norm, 1), 1)
