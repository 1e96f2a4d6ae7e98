"""Muon for convolution kernels, as in airbench94_muon (K. Jordan, 2024): its arithmetic, its step, the whole rule.

A kernel [height, width, in, out] counts as the matrix [height * width * in, out]; airbench's is its transpose with the
rows in another order, which changes nothing here. `torch.optim.Muon` differs: it takes matrices only, runs 5 iterations
in bfloat16, scales the rate by sqrt(max(1, rows / columns)) and does not renormalise the weights. So does
`optax.contrib.muon`, but for the number of iterations, and it looks at no convolution kernels unless told to.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from jax_cifar.config import OptimConfig
from jax_cifar.optim.transforms import Rule, add_weight_decay, map_named, momentum, path_name, scale_by_lr, stateless

# Chosen by airbench for slope at zero, not convergence: singular values end up somewhere around 1, which is enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3
EPSILON = 1e-7


def newton_schulz(matrices: Float[Array, "n rows columns"]) -> Float[Array, "n rows columns"]:
    """Push the singular values of each matrix to about 1, keeping its singular vectors, in the dtype given.

    Each matrix is divided by its Frobenius norm + 1e-7; then three times X <- P X with P = a + b A + c A A, A = X X^T.
    On a CPU the factors P are worked out first, from one A, and the matrix is multiplied once: half the operations.
    """
    return lax.platform_dependent(matrices, cpu=_factors_first, default=_step_by_step)


def _step_by_step(matrices: Float[Array, "n rows columns"]) -> Float[Array, "n rows columns"]:
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = jnp.swapaxes(matrices, 1, 2) if tall else matrices  # the Gram matrix of the short side is the small one
    x = x / (jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ jnp.swapaxes(x, 1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return jnp.swapaxes(x, 1, 2) if tall else x


def _factors_first(matrices: Float[Array, "n rows columns"]) -> Float[Array, "n rows columns"]:
    """With A <- P P A, as all of them commute. Rounding adds up there: products of a GPU or TPU have too few digits."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    transposed = jnp.swapaxes(matrices, 1, 2)
    gram = transposed @ matrices if tall else matrices @ transposed
    norm = jnp.sqrt(jnp.trace(gram, axis1=1, axis2=2))[:, None, None] + EPSILON
    gram, one = gram / jnp.square(norm), jnp.eye(gram.shape[1], dtype=gram.dtype)[None]
    for iteration in range(ITERATIONS):
        factor = a * one + b * gram + c * (gram @ gram)
        product = factor @ product if iteration else factor / norm
        if iteration < ITERATIONS - 1:
            gram = factor @ (factor @ gram)
    return matrices @ product if tall else product @ matrices


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


def muon_step(rate: Mapping[str, float], decay: Mapping[str, float]) -> Rule:
    """Orthogonalise the kernels' directions to O, renormalise the kernels, decay and step: s p (1 - lr wd) - lr O.

    s gives p the Frobenius norm sqrt(out), and O is not rescaled by its shape: the conventions of airbench94_muon.
    """

    def update(updates, params, hyper):
        leaves, structure = jax.tree.flatten(updates)
        orthogonal = jax.tree.unflatten(structure, orthogonalise(leaves))

        def step(name, o, p):
            lr = rate.get(name, 1.0) * jnp.asarray(hyper.lr, p.dtype)
            shrink = 1 - lr * decay.get(name, 1.0) * jnp.asarray(hyper.weight_decay, p.dtype)
            return (renormalising_factor(p) * shrink - 1) * p - lr * o

        return map_named(step, orthogonal, params)

    return stateless(update)


def muon(config: OptimConfig, params: PyTree, rate: Mapping[str, float], decay: Mapping[str, float]) -> Rule:
    """Muon for convolution kernels; for all else SGD with Nesterov's momentum, its rate a fixed multiple of Muon's.

    The kernels' decay is decoupled, that of all else coupled, as PyTorch's Muon and SGD have it.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    aux_rate = {name: rate.get(name, 1.0) * config.aux_lr / config.lr for name in names}
    kernels = optax.chain(momentum(True), muon_step(rate, decay))
    others = optax.chain(add_weight_decay(decay), momentum(True, config.aux_momentum), scale_by_lr(aux_rate))
    parts = jax.tree.map(lambda leaf: "kernels" if jnp.ndim(leaf) == 4 else "others", params)
    return optax.partition({"kernels": kernels, "others": others}, parts)
