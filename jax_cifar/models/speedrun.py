"""The speedrun network: airbench's (Jordan, arXiv 2404.00498), which reaches 94 % on CIFAR-10 in under ten epochs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_cifar.errors import ConfigError
from jax_cifar.models.layers import (
    Channels,
    Conv,
    Layer,
    NormName,
    dirac_kernel_init,
    filters_of,
    make_head,
    make_layers,
    statistics_dtype,
)
from jax_cifar.ops.activations import gelu
from jax_cifar.ops.pooling import average_pool, max_pool


class SpeedrunNet(nn.Module):
    """Frozen whitening of patches, three groups of convolutions, global max-pool, a head without bias.

    The whitening has a trained bias (`whiten_bias`) and is followed by GELU. The bias starts from PyTorch's default, as
    airbench94_muon's does; airbench's other networks start it from zeros. Patches are 2x2, a pixel apart; with
    `whiten_stride` s they are 2s x 2s, s pixels apart, within images that have s - 1 pixels of zeros around them.
    `whiten_pairs` keeps as many filters, those of the patches' largest variances, and leaves the negatives to be worked
    out, as GELU(-x) = GELU(x) - x: half the work. It needs a whitening without bias.
    The groups have `width`, 4 `width` and 4 `width` channels. A group of one convolution computes

        x = GELU(bn1(max_pool(conv1(input))))

    one of two goes on with GELU(bn2(conv2(x))), and one of three, airbench96's, with a residual connection over its
    last two convolutions: GELU(x + bn3(conv3(GELU(bn2(conv2(x)))))). Convolutions are 3x3, the max-pool is 2x2. The
    norms' scale stays at one: only their bias is trained. GELU is exact. Logits are multiplied by `logit_scale`.
    With `early_average` the last group begins with the mean of 2x2 pixels, and has no max-pool: its first convolution
    works on a quarter of the pixels.
    `channels` names convolutions of the groups that have another number of filters, of three in a group the second.
    Parameters: `whiten`; `group1`..`group3`, each with `conv1`, `bn1` to `conv3`, `bn3` as far as it goes; `head`.
    The whitening kernel comes from images, by `init_from`; `init` alone leaves it random.
    """

    num_classes: int
    norm: NormName = "batch"
    width: int = 64
    channels: Channels = ()
    convs_per_group: int = 2
    whiten_bias: bool = True
    whiten_stride: int = 1
    whiten_pairs: int | None = None
    early_average: bool = False
    norm_momentum: float = 0.4  # PyTorch's sense: the running statistics keep 0.6 of themselves
    norm_epsilon: float = 1e-12
    logit_scale: float = 1 / 9
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @property
    def smallest_image(self) -> int:
        """Of which the whitening leaves 8 pixels: the groups halve them three times."""
        return 7 * self.whiten_stride + 2

    @property
    def pooled_norms(self) -> tuple[str, ...]:
        """Those behind a max-pool."""
        return (r"^group[12]/bn1$" if self.early_average else r"^group\d/bn1$",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The whitening kernel and the norms' scales."""
        return (
            (r"^whiten/kernel$",) if self.norm in ("none", "folded") else (r"^whiten/kernel$", r"^group\d/bn\d/scale$")
        )

    def init_from(self, params: dict[str, Any], images: Float[Array, "batch height width channel"]) -> dict[str, Any]:
        """The parameters with the whitening kernel of these normalised images."""
        whitening = jax.jit(partial(whitening_kernel, patch=2 * self.whiten_stride, pairs=self.whiten_pairs))
        kernel = whitening(images).astype(self.param_dtype)
        return {**params, "whiten": {**params["whiten"], "kernel": kernel}}

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channel"], train: bool
    ) -> Float[Array, "batch num_classes"]:
        """Logits, in float32 (float64 with float64 parameters)."""
        if self.convs_per_group not in (1, 2, 3):
            raise ConfigError(f"convs_per_group = {self.convs_per_group} is not allowed: it must be 1, 2 or 3.")
        numbers, pairs = 4 * self.whiten_stride**2 * images.shape[-1], self.whiten_pairs
        if pairs is not None and (self.whiten_bias or not 1 <= pairs <= numbers):
            raise ConfigError(
                f"whiten_pairs = {pairs} is not allowed: it must be from 1 to {numbers}, and whiten_bias False."
            )
        conv, norm = make_layers(self.norm, train, self.dtype, self.param_dtype)
        if self.norm == "batch":
            norm = partial(norm, momentum=self.norm_momentum, epsilon=self.norm_epsilon)
        conv = partial(conv, kernel_init=dirac_kernel_init, bias_init=nn.initializers.zeros)
        whiten = Conv(
            features=2 * numbers if pairs is None else pairs,
            kernel_size=2 * self.whiten_stride,
            stride=self.whiten_stride,
            padding=self.whiten_stride - 1,
            use_bias=self.whiten_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="whiten",
        )
        x = whiten(images)
        on = gelu(x)
        x = on if pairs is None else jnp.concatenate((on, on - x), -1)
        for number, factor in enumerate((1, 4, 4), start=1):
            name, convs = f"group{number}", range(1, self.convs_per_group + 1)
            features = tuple(filters_of(self.channels, f"{name}/conv{i}", factor * self.width) for i in convs)
            x = _Group(features, self.early_average and number == 3, conv, norm, name=name)(x)
        head = make_head(self.num_classes, self.param_dtype, "head", use_bias=False)
        return head(jnp.max(x, axis=(1, 2))) * self.logit_scale


class _Group(nn.Module):
    features: tuple[int, ...]  # of each convolution
    early_average: bool
    conv: Callable[..., Layer]
    norm: Callable[..., Layer]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.early_average:
            x = self.conv(self.features[0], 3, padding=1, name="conv1")(average_pool(x, 2))
        else:
            # The pool reads no odd last row or column: they are not computed.
            rows, columns = ((1, 1 - size % 2) for size in x.shape[1:3])
            x = max_pool(self.conv(self.features[0], 3, padding=(rows, columns), name="conv1")(x), 2)
        x = gelu(self.norm(name="bn1")(x))
        if len(self.features) == 1:
            return x
        y = self.norm(name="bn2")(self.conv(self.features[1], 3, padding=1, name="conv2")(x))
        if len(self.features) == 2:
            return gelu(y)
        y = self.norm(name="bn3")(self.conv(self.features[2], 3, padding=1, name="conv3")(gelu(y)))
        return gelu(x + y)


def whitening_kernel(
    images: Float[Array, "batch height width channel"],
    epsilon: float = 5e-4,
    patch: int = 2,
    pairs: int | None = None,
) -> Float[Array, "patch patch channel filters"]:
    """Filters that turn patches into uncorrelated values of variance one, and the negatives of those filters.

    Args:
        images: normalised images.
        epsilon: added to every eigenvalue of the patches' covariance, so that nearly constant directions stay small.
        patch: side of the patches in pixels.
        pairs: how many filters to return, without their negatives; None: all, and the negatives.

    Returns:
        HWIO kernel, its filters by falling eigenvalue, in float32 (float64 for float64 images).
        Each eigenvector's largest component is positive, so that every device gives the same sign.
    """
    channels = images.shape[-1]
    covariance = _patch_covariance(images.astype(statistics_dtype(images.dtype)), patch)
    eigenvalues, eigenvectors = jnp.linalg.eigh(covariance)
    largest = jnp.argmax(jnp.abs(eigenvectors), axis=0, keepdims=True)
    eigenvectors = eigenvectors * jnp.sign(jnp.take_along_axis(eigenvectors, largest, axis=0))
    scale = jax.lax.rsqrt(jnp.maximum(eigenvalues, 0) + epsilon).reshape(1, -1)
    filters = jnp.flip(eigenvectors * scale, axis=1)
    filters = jnp.concatenate((filters, -filters), axis=1) if pairs is None else filters[:, :pairs]
    return filters.reshape(patch, patch, channels, -1)


def _patch_covariance(images: Float[Array, "batch height width channel"], patch: int) -> Float[Array, "size size"]:
    # Image by image, and about the channels' means: sums of millions of squares would lose digits in float32.
    images = images - jnp.mean(images, axis=(0, 1, 2), keepdims=True)

    def moments(image: Float[Array, "height width channel"]) -> tuple[Array, Array]:
        height, width = (size - patch + 1 for size in image.shape[:2])
        shifts = [image[row : row + height, column : column + width] for row in range(patch) for column in range(patch)]
        patches = jnp.concatenate(shifts, axis=-1).reshape(height * width, -1)
        second = jnp.matmul(patches.T, patches, precision=jax.lax.Precision.HIGHEST)
        return jnp.mean(patches, axis=0), second / patches.shape[0]

    means, seconds = jax.lax.map(moments, images, batch_size=100)
    mean = jnp.mean(means, axis=0)
    return jnp.mean(seconds, axis=0) - jnp.outer(mean, mean)
