"""Convolution, normalisation and activation against XLA's own operations and NumPy."""

import re
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from jax_cifar.backend.portions import map_chunks, sum_chunks
from jax_cifar.ops import channels, conv, winograd
from jax_cifar.ops.activations import gelu
from jax_cifar.ops.conv import conv2d

SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))
# (batch, height, width, in_channel, out_channel), (kernel_height, kernel_width), strides, padding
CASES = {
    "3x3": ((33, 8, 8, 8, 5), (3, 3), (1, 1), SAME),
    "3x3-odd-valid": ((5, 9, 7, 8, 5), (3, 3), (1, 1), NONE),
    "3x3-stride": ((5, 8, 8, 8, 5), (3, 3), (2, 2), SAME),
    "3x3-uneven": ((5, 9, 8, 6, 5), (3, 3), (2, 1), ((0, 1), (2, 0))),
    "3x3-first-layer": ((33, 8, 8, 3, 16), (3, 3), (1, 1), SAME),
    "2x2-whitening": ((5, 7, 8, 3, 24), (2, 2), (1, 1), NONE),
    "2x2-stride": ((1, 7, 9, 16, 5), (2, 2), (2, 2), NONE),
    "3x3-many-channels": ((33, 4, 4, 40, 8), (3, 3), (1, 1), SAME),
    "3x3-uneven-height": ((33, 9, 8, 6, 5), (3, 3), (1, 2), ((0, 1), (2, 0))),
    "3x3-much-padding": ((5, 4, 5, 8, 5), (3, 3), (1, 1), ((3, 0), (4, 1))),
    "3x3-many-channels-valid": ((33, 6, 5, 40, 8), (3, 3), (1, 1), NONE),
    "3x3-many-channels-larger": ((33, 5, 4, 40, 8), (3, 3), (1, 1), ((3, 1), (1, 2))),
    "1x1": ((33, 5, 5, 40, 4), (1, 1), (1, 1), NONE),
    "1x1-stride": ((5, 7, 8, 40, 4), (1, 1), (2, 2), NONE),
    "1x1-padded": ((1, 4, 4, 8, 3), (1, 1), (1, 1), SAME),
    "7x7-stride": ((5, 12, 13, 3, 4), (7, 7), (2, 2), ((3, 3), (3, 3))),
    "2x3-first-layer-stride": ((5, 7, 8, 3, 5), (2, 3), (2, 1), ((1, 0), (0, 2))),
    "whole-image": ((1, 4, 4, 8, 5), (4, 4), (1, 1), NONE),
}
CANONICAL = "b01f_01io->b01f"
CONVOLUTION = "x[0, 1, i, o]->"  # as StableHLO writes one in the canonical layout


def elsewhere(patch):
    """Run what a GPU or TPU runs, whatever this platform is."""
    patch.setattr(lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))


@pytest.fixture(params=["here", "elsewhere"])
def platform(request, monkeypatch):
    if request.param == "elsewhere":
        elsewhere(monkeypatch)


@pytest.fixture
def small_chunks(monkeypatch):
    """Split even these small batches: 33 images go as 3 times 11, 11 times 3 or 33 times 1."""
    monkeypatch.setattr(conv, "CHUNK_BYTES", 20_000)


def lax_conv(x, kernel, strides=(1, 1), padding=NONE):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(sizes, taps, dtype):
    batch, height, width, in_channel, out_channel = sizes
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, height, width, in_channel))
    return jnp.asarray(x, dtype), jnp.asarray(rng.normal(size=(*taps, in_channel, out_channel)), dtype)


def value_and_gradients(function, x, kernel, strides=(1, 1), padding=NONE):
    """Output and both gradients for a fixed, uneven output gradient."""

    @jax.jit
    def run(x, kernel):
        out, vjp = jax.vjp(lambda x, kernel: function(x, kernel, strides, padding), x, kernel)
        return out, *vjp(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

    return run(x, kernel)


def assert_close(actual, expected, tolerance):
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


# Some of each: kernels, strides, paddings, what is split and what is not.
QUICK = ("3x3-uneven", "3x3-first-layer", "2x2-stride", "3x3-many-channels", "1x1", "1x1-stride", "7x7-stride")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_conv_matches_lax_in_float32(name, small_chunks):
    sizes, taps, strides, padding = CASES[name]
    x, kernel = arrays(sizes, taps, jnp.float32)
    ours = value_and_gradients(conv2d, x, kernel, strides, padding)
    assert_close(ours, value_and_gradients(lax_conv, x, kernel, strides, padding), 1e-5)


@pytest.mark.parametrize("name", ["3x3", "3x3-uneven", "3x3-first-layer", "7x7-stride"])
def test_conv_matches_lax_in_float64(name, x64, small_chunks):
    sizes, taps, strides, padding = CASES[name]
    x, kernel = arrays(sizes, taps, jnp.float64)
    ours = value_and_gradients(conv2d, x, kernel, strides, padding)
    assert ours[0].dtype == jnp.float64
    assert_close(ours, value_and_gradients(lax_conv, x, kernel, strides, padding), 1e-12)


def test_bfloat16_sums_its_kernel_gradient_in_float32(small_chunks):
    ones = jnp.ones((33, 9, 11, 16), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 16, 4), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda kernel: conv2d(ones, kernel).astype(jnp.float32).sum()))(kernel)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, jnp.full(kernel.shape, 33 * 7 * 9, jnp.bfloat16))


@pytest.mark.parametrize("name", ["3x3", "3x3-first-layer"])
def test_conv_in_bfloat16_stays_close_to_float32(name):
    sizes, taps, strides, padding = CASES[name]
    x, kernel = arrays(sizes, taps, jnp.bfloat16)
    ours = value_and_gradients(conv2d, x, kernel, strides, padding)
    assert all(array.dtype == jnp.bfloat16 for array in ours)
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    expected = value_and_gradients(lax_conv, x, kernel, strides, padding)
    assert_close([array.astype(jnp.float32) for array in ours], expected, 2**-7)


# batch, height, width; padding. Two chunks and a rest, odd sizes, uneven padding, one tile, no padding.
WIDE = {
    "even": ((5, 8, 8), SAME),
    "odd": ((5, 7, 9), SAME),
    "valid": ((3, 6, 5), NONE),
    "uneven": ((2, 5, 6), ((0, 2), (1, 0))),
    "one-tile": ((1, 2, 2), SAME),
    "tiles-of-3x3": ((5, 9, 6), SAME),
    "tiles-of-5x5": ((5, 10, 15), SAME),
}
# Of outputs m x m by F(m x m, 3x3): the most that float32 may err, root mean square, as a share of the deviation. Those
# of the definition err by 2e-7.
ROUNDING = {2: 5e-7, 3: 8e-7, 4: 1e-6, 5: 3e-6}


@pytest.fixture
def every_winograd(monkeypatch):
    """Send even narrow convolutions through Winograd's algorithm, and split small batches."""
    for bound in (name for name in vars(conv) if name.startswith("WINOGRAD_")):
        monkeypatch.setattr(conv, bound, 0)
    monkeypatch.setattr(winograd, "CHUNK_BYTES", 20_000)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(jnp.float32, 3.0, id="f32", marks=pytest.mark.slow),
        pytest.param(jnp.float64, 1e-7, id="f64"),
    ],
)
def test_winograd_matches_lax(name, dtype, tolerance, x64, every_winograd):
    (batch, height, width), padding = WIDE[name]
    x, kernel = arrays((batch, height, width, 8, 12), (3, 3), dtype)
    ours = value_and_gradients(conv2d, x, kernel, (1, 1), padding)
    expected = value_and_gradients(lax_conv, x, kernel, (1, 1), padding)
    sizes = {array.shape[1:3] for array in ours[:2]}
    rounding = max(ROUNDING[winograd.scheme_for(*size).outputs] for size in sizes)
    assert_close(ours, expected, tolerance * rounding)


# Points of F(4x4, 3x3) and of F(5x5, 3x3) that were not taken.
OTHER_POINTS = [
    (1, -1, 2, Fraction(1, 2)),
    (Fraction(1, 2), -Fraction(1, 2), 2, -2),
    (1, Fraction(1, 2), -Fraction(1, 2), 2, -2),
]


def test_tiles_by_other_points_round_more(x64, monkeypatch):
    """The kernel gradient in float32: its error's root mean square, as a share of the gradient's deviation."""
    rng = np.random.default_rng(0)
    x, grad = np.maximum(rng.normal(size=(64, 20, 20, 64)), 0), rng.normal(size=(64, 20, 20, 64))
    _, exact = jax.vjp(lambda kernel: lax_conv(jnp.asarray(x), kernel, (1, 1), SAME), jnp.zeros((3, 3, 64, 64)))
    (expected,) = exact(jnp.asarray(grad))

    def error(scheme):
        monkeypatch.setattr(winograd, "SCHEMES", (scheme,))
        with jax.default_matmul_precision("highest"):
            ours = winograd.winograd_kernel_gradient(jnp.float32(x), jnp.float32(grad), SAME)
        return float(jnp.std(ours.astype(jnp.float64) - expected) / jnp.std(expected))

    errors = [error(scheme) for scheme in winograd.SCHEMES]
    assert errors == sorted(errors), errors
    for points in OTHER_POINTS:
        other = error(winograd.scheme_of(1, *points))
        assert other > 1.3 * errors[len(points) - 2], (points, other, errors)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other platforms have JAX's own convolution")
@pytest.mark.parametrize(("size", "outputs"), [(8, 4), (6, 3), (5, 5), (4, 4), (2, 2), (32, 4), (10, 5), (14, 5)])
def test_tiles_that_cover_what_is_asked_for(size, outputs, x64):
    """Of 6x6 outputs F(3x3, 3x3) takes 100 products, where F(2x2) and F(4x4) take 144: of 8x8 F(4x4) takes fewest."""
    x, kernel = arrays((4, size, size, 64, 64), (3, 3), jnp.float64)
    expected = lax_conv(x, kernel, (1, 1), SAME)

    def error(out):
        return float(jnp.std(out.astype(jnp.float64) - expected) / jnp.std(expected))

    def call(x, kernel):
        return conv2d(x, kernel, (1, 1), SAME)

    x, kernel = jnp.float32(x), jnp.float32(kernel)
    with jax.default_matmul_precision("highest"):
        predicted, differentiated = error(call(x, kernel)), error(jax.vjp(call, x, kernel)[0])
    assert winograd.scheme_for(size, size).outputs == outputs
    assert predicted == differentiated
    assert 0.4 * ROUNDING[outputs] < predicted < ROUNDING[outputs]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other platforms have JAX's own convolution")
def test_winograd_has_a_product_for_each_core_and_the_same_numbers(monkeypatch, every_winograd):
    """A batched product of small matrices keeps one core busy, whatever there are; columns of a square are six."""
    x, kernel = arrays((2, 8, 8, 8, 12), (3, 3), jnp.float32)
    results = []
    for cores, products in ((1, 1), (2, 2), (4, 4), (64, 6)):
        monkeypatch.setattr(winograd, "cpu_count", lambda cores=cores: cores)
        for operation, other in ((winograd.winograd_conv, kernel), (winograd.winograd_kernel_gradient, x)):
            made = jax.make_jaxpr(partial(operation, padding=SAME))(x, other)
            assert str(made).count("dot_general[") == products
        results.append(value_and_gradients(conv2d, x, kernel, (1, 1), SAME))

    def same(made, first):  # but for rounding: the compiler fuses the sums of some columns otherwise than those of all
        np.testing.assert_allclose(made, first, rtol=0, atol=1e-6 * np.abs(first).max())

    for each in results[1:]:
        jax.tree.map(same, each, results[0])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other platforms have JAX's own convolution")
def test_nothing_that_winograds_products_read_is_overwritten_before_the_last(monkeypatch):
    """The compiled program has the branch that keeps it: tiles, kernels or gradients, and rows, with the products."""
    x, kernel = arrays((2, 8, 8, 32, 32), (3, 3), jnp.float32)
    monkeypatch.setattr(winograd, "cpu_count", lambda: 2)
    for operation, other, kept in ((winograd.winograd_conv, kernel, 5), (winograd.winograd_kernel_gradient, x, 6)):
        program = str(jax.jit(partial(operation, padding=SAME)).lower(x, other).compile().as_text())
        held = dict(re.findall(r" (%[\w.-]+) = (\(.*?\)) tuple\(", program))
        branches = re.findall(r" conditional\(%[\w.-]+, (%[\w.-]+), (%[\w.-]+)\)", program)
        assert max(abs(held[one].count("f32[") - held[other].count("f32[")) for one, other in branches) == kept


def test_winograd_is_taken_where_it_pays():
    def operations(channels, taps=(3, 3), strides=(1, 1), dtype=jnp.float32):
        x, kernel = arrays((2, 8, 8, *channels), taps, dtype)
        compiled = jax.jit(lambda x, kernel: conv2d(x, kernel, strides, SAME)).lower(x, kernel).compile()
        return set(re.findall(r" (dot|convolution)\(", str(compiled.as_text())))

    if jax.default_backend() == "cpu":
        assert operations((24, 48)) == operations((24, 16)) == operations((18, 18)) == {"dot"}
        assert operations((24, 40)) == operations((16, 24)) == operations((24, 12)) == {"convolution"}
        assert operations((64, 64), strides=(2, 2)) == {"convolution"}
        assert operations((64, 64), taps=(5, 5)) == operations((64, 64), dtype=jnp.bfloat16) == {"convolution"}


@pytest.mark.parametrize(
    ("batch", "limit", "sizes"),
    [(7, 3, {3, 1}), (6, 3, {3}), (6, 4, {3}), (8, 3, {4}), (3, 9, {3}), (5, 1, {1}), (3, 2, {3})],
)
def test_chunks_cover_every_row_once(batch, limit, sizes):
    x, seen = jnp.arange(1.0, batch + 1).reshape(-1, 1), []

    def double(part):
        seen.append(len(part))
        return 2 * part

    np.testing.assert_array_equal(map_chunks(double, x, limit), 2 * x)
    assert sum_chunks(lambda part, other: jnp.sum(part * other), (x, x), limit) == jnp.sum(x * x)
    assert set(seen) - {batch} == sizes - {batch}


def normalised(x, scale, bias):
    """The definition, differentiated by JAX."""
    mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-6), (jnp.float64, 1e-13)], ids=["f32", "f64"])
def test_batch_norm_matches_its_definition(dtype, tolerance, platform, x64, monkeypatch):
    monkeypatch.setattr(channels, "CHUNK_BYTES", 2000)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3, 2, (7, 5, 4, 6)), dtype)
    scale, bias = (jnp.asarray(rng.normal(size=6), dtype) for _ in range(2))

    def run(function):
        out, vjp = jax.vjp(function, x, scale, bias)
        return out, *vjp(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(dtype))

    ours = jax.jit(lambda: run(lambda x, scale, bias: channels.batch_norm(x, scale, bias, 1e-5)[0]))()
    assert_close(ours, jax.jit(lambda: run(normalised))(), tolerance)
    _, mean, var = channels.batch_norm(x, scale, bias, 1e-5)
    assert_close((mean, var), (x.mean((0, 1, 2)), x.var((0, 1, 2))), tolerance)


def test_batch_norm_of_bfloat16_computes_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (33, 8, 8, 3)), jnp.bfloat16)
    scale, bias = jnp.ones(3), jnp.zeros(3)
    out, mean, _ = channels.batch_norm(x, scale, bias, 1e-5)
    assert out.dtype == mean.dtype == jnp.float32
    assert_close([out], [normalised(x.astype(jnp.float32), scale, bias)], 1e-5)
    assert jax.grad(lambda x: channels.batch_norm(x, scale, bias, 1e-5)[0].max())(x).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_bias_gradient_is_a_sum_over_every_pixel(dtype, platform, monkeypatch):
    monkeypatch.setattr(channels, "CHUNK_BYTES", 2000)
    x = jnp.zeros((33, 8, 8, 3), dtype)
    grad = jax.jit(jax.grad(lambda bias: channels.add_bias(x, bias).astype(jnp.float32).sum()))(jnp.zeros(3, dtype))
    assert grad.dtype == dtype
    np.testing.assert_array_equal(grad, jnp.full(3, 33 * 64, dtype))


def test_conv_gradients_under_vmap(small_chunks):
    sizes, taps, strides, padding = CASES["3x3"]
    x, kernel = arrays(sizes, taps, jnp.float32)
    many_x, many_kernels = jnp.stack([x, -2 * x]), jnp.stack([kernel, kernel + 1])

    def gradients(function):
        return jax.grad(lambda x, kernel: (function(x, kernel, strides, padding) ** 2).sum(), (0, 1))

    together = jax.jit(jax.vmap(gradients(conv2d)))(many_x, many_kernels)
    for i in range(2):
        assert_close([part[i] for part in together], jax.jit(gradients(lax_conv))(many_x[i], many_kernels[i]), 1e-5)


def two_layer_scan(function, wrap=lambda f: f):
    """Sum over a scan of the kernel gradient of two stacked 3x3 convolutions, so that both gradients are needed."""

    def loss(kernel, x):
        return (function(function(x, kernel, (1, 1), SAME), kernel, (1, 1), SAME) ** 2).mean()

    def body(total, x):
        return total + jax.grad(wrap(loss))(total * 0 + 0.1, x), None

    return lambda xs: lax.scan(body, jnp.zeros((3, 3, 16, 16)), xs)[0]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "checkpoint"])
def test_conv_gradients_in_scan(wrap, small_chunks):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8, 8, 16)), jnp.float32)
    ours = jax.jit(two_layer_scan(conv2d, wrap))(xs)
    assert_close([ours], [jax.jit(two_layer_scan(lax_conv))(xs)], 1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the layouts that matter to XLA's CPU backend")
def test_scan_on_cpu_holds_only_canonical_convolutions():
    xs = jnp.zeros((3, 4, 8, 8, 16))

    def layouts(function):
        compiled = jax.jit(two_layer_scan(function)).lower(xs).compile().as_text()
        return re.findall(r"dim_labels=([\w>-]+)", str(compiled))

    # Two forward convolutions, gradients of one input and two kernels; XLA's own bring other layouts into the loop.
    assert layouts(conv2d) == [CANONICAL] * 5
    assert set(layouts(lax_conv)) > {CANONICAL}


@pytest.mark.parametrize(
    ("in_channel", "out_channel", "taps", "padding", "form"),
    [
        (3, 28, 3, SAME, CONVOLUTION),
        (24, 28, 3, SAME, "dot_general"),
        (24, 28, 5, ((2, 2), (2, 2)), CONVOLUTION),
        (32, 24, 5, ((2, 2), (2, 2)), CONVOLUTION),
        (32, 28, 5, ((2, 2), (2, 2)), "dot_general"),
        (24, 8, 3, NONE, CONVOLUTION),
        (32, 24, 3, NONE, "dot_general"),  # its images, the gradient's channels, would be smaller than its kernel
        (24, 28, 1, NONE, "dot_general"),
    ],
)
def test_form_follows_the_platform_lowered_for(in_channel, out_channel, taps, padding, form):
    x, kernel = arrays((4, 8, 8, in_channel, out_channel), (taps, taps), jnp.float32)

    def lowered(platform):
        gradient = jax.jit(jax.grad(lambda kernel: conv2d(x, kernel, (1, 1), padding).sum()))
        return export.export(gradient, platforms=[platform])(kernel).mlir_module()

    assert form in lowered("cpu")
    assert all(form not in lowered(platform) for platform in ("cuda", "tpu"))
    assert all("stablehlo.convolution" in lowered(platform) for platform in ("cuda", "tpu"))


@pytest.mark.parametrize("channels", [(8, 5), (5, 8), (28, 8), (8, 28)], ids=str)
@pytest.mark.parametrize("padding", [NONE, SAME, ((2, 2), (2, 2)), ((2, 2), (0, 0))], ids=str)
def test_no_kernel_is_larger_than_its_image_on_a_cpu(channels, padding):
    # XLA's convolution is naive there, and takes twenty times as long.
    x, kernel = arrays((4, 8, 8, *channels), (3, 3), jnp.float32)
    gradient = jax.jit(jax.grad(lambda kernel: conv2d(x, kernel, (1, 1), padding).sum()))
    text = export.export(gradient, platforms=["cpu"])(kernel).mlir_module()
    for convolution in re.findall(r"stablehlo\.convolution.*: \((.*)\) ->", text):
        image, taps = (list(map(int, sizes.split("x"))) for sizes in re.findall(r"tensor<([\dx]+)xf32>", convolution))
        assert image[1] >= taps[0], convolution
        assert image[2] >= taps[1], convolution


@pytest.mark.parametrize("padding", [((3, 0), (4, 1)), ((1, 0), (1, 1)), ((0, 2), (1, 0))])
def test_elsewhere_uneven_padding_is_evened_and_cut(padding, monkeypatch):
    x, kernel = arrays((2, 5, 6, 8, 5), (3, 3), jnp.float32)
    with monkeypatch.context() as patch:
        elsewhere(patch)
        ours = value_and_gradients(conv2d, x, kernel, (1, 1), padding)
    assert_close(ours, value_and_gradients(lax_conv, x, kernel, (1, 1), padding), 1e-5)
    text = export.export(jax.jit(lambda kernel: conv2d(x, kernel, (1, 1), padding)), platforms=["cuda"])(kernel)
    low_high = re.search(r"pad = \[\[(\d), (\d)\], \[(\d), (\d)\]\]", text.mlir_module())
    assert low_high is not None
    assert low_high[1] == low_high[2]
    assert low_high[3] == low_high[4]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.float64, 1e-14), (jnp.bfloat16, 1e-2)])
def test_gelu_and_its_gradient(x64, dtype, tolerance):
    x = jnp.concatenate([jnp.linspace(-9, 9, 361), jnp.asarray([-1e4, -0.0, 0.0, 1e-30, 1e4])]).astype(dtype)
    grad = jnp.cos(jnp.arange(len(x))).astype(dtype)
    out, vjp = jax.vjp(jax.jit(gelu), x)
    assert out.dtype == vjp(grad)[0].dtype == dtype
    exact, exact_vjp = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), x.astype(jnp.float64))
    for ours, expected in ((out, exact), (vjp(grad)[0], exact_vjp(grad.astype(jnp.float64))[0])):
        np.testing.assert_allclose(ours.astype(jnp.float64), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(out.astype(jnp.float64), gelu(x).astype(jnp.float64), rtol=tolerance, atol=tolerance)


def test_gelu_in_bfloat16_rounds_once():
    x = jnp.linspace(-4, 4, 801).astype(jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))
