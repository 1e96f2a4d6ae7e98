"""Every layer against the PyTorch layer of the same name, each with a wrong variant that must not agree."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tolerances import assert_close

from jax_cifar.models.layers import BatchNorm, Conv, Dense, GroupNorm, group_count
from jax_cifar.ops.activations import gelu
from jax_cifar.ops.channels import batch_norm
from jax_cifar.ops.pooling import average_pool, max_pool


def apply(layer, *inputs, **options) -> Any:
    """`layer.apply`, whose declared result fits no test."""
    return layer.apply(*inputs, **options)


def nhwc(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def nchw(array):
    return torch.from_numpy(np.moveaxis(np.array(array), -1, 1).copy())


def draw(*shape, seed=0, dtype: Any = np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def run_batch_norm(layer, batches, **call) -> tuple[Any, Any]:
    """Train outputs, then running mean and variance."""
    variables, outs = layer.init(jax.random.key(0), batches[0], **call), []
    for batch in batches:
        out, updated = apply(layer, variables, batch, mutable=["batch_stats"], **call)
        variables = {**variables, **updated}
        outs.append(np.asarray(out))
    return outs, variables


def torch_batch_norm(batches) -> tuple[Any, Any]:
    layer = torch.nn.BatchNorm2d(batches[0].shape[-1])
    outs = [nhwc(layer(nchw(batch)).detach()) for batch in batches]
    return outs, layer


# 8 images of 2x2 pixels make n = 32: the unbiased variance is 3 % larger than the biased, far more than any tolerance.
BATCHES = [jnp.asarray(3 + 2 * draw(8, 2, 2, 5, seed=seed, dtype=np.float32)) for seed in range(3)]


def test_batch_norm_in_training_and_evaluation():
    outs, variables = run_batch_norm(BatchNorm(), BATCHES)
    expected, judge = torch_batch_norm(BATCHES)
    assert_close(outs, expected, "float32 operation", "training outputs")
    stats = variables["batch_stats"]
    assert_close(stats["mean"], judge.running_mean.numpy(), "float32 operation", "running mean")
    assert_close(stats["var"], judge.running_var.numpy(), "float32 operation", "running variance")
    evaluated = apply(BatchNorm(use_running_average=True), variables, BATCHES[0])
    judge.eval()
    assert_close(evaluated, nhwc(judge(nchw(BATCHES[0])).detach()), "float32 operation", "evaluation outputs")


@pytest.mark.parametrize(("momentum", "wrong"), [(0.9, "var"), (0.99, "mean")])
def test_flax_batch_norm_does_not_keep_pytorchs_statistics(momentum, wrong):
    outs, variables = run_batch_norm(nn.BatchNorm(momentum=momentum), BATCHES, use_running_average=False)
    expected, judge = torch_batch_norm(BATCHES)
    assert_close(outs, expected, "float32 network", "training outputs")  # flax's fast variance loses a digit
    running = {"mean": judge.running_mean, "var": judge.running_var}[wrong].numpy()
    assert np.abs(variables["batch_stats"][wrong] - running).max() > 1e-2


def test_batch_norm_far_from_zero_needs_two_passes():
    batches = [jnp.asarray(1000 + draw(16, 8, 8, 2, dtype=np.float32))]
    expected, _ = torch_batch_norm(batches)
    assert_close(run_batch_norm(BatchNorm(), batches)[0], expected, "float32 far from zero")
    fast = nn.BatchNorm(use_running_average=False, use_fast_variance=True)
    assert np.abs(run_batch_norm(fast, batches)[0][0] - expected[0]).max() > 1e-2


@pytest.mark.parametrize("channels", [2, 16, 64])
def test_batch_norm_is_as_exact_with_few_channels(channels):
    # Sums over 32,768 pixels: added one after another they were off by 1.7e-5, PyTorch's by 3e-7.
    images = jnp.asarray(1 + draw(128, 16, 16, channels, dtype=np.float32))
    grad = jnp.asarray(draw(128, 16, 16, channels, dtype=np.float32, seed=1))
    one, zero = jnp.ones(channels), jnp.zeros(channels)
    (y, _, _), vjp = jax.vjp(lambda x, bias: batch_norm(x, one, bias, 1e-5), images, zero)
    x_grad, bias_grad = vjp((grad, zero, zero))

    exact = torch.tensor(np.asarray(images, np.float64)).permute(0, 3, 1, 2).requires_grad_()
    bias = torch.zeros(channels, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.batch_norm(exact, None, None, None, bias, training=True)
    expected.backward(torch.tensor(np.asarray(grad, np.float64)).permute(0, 3, 1, 2))
    for ours, theirs in ((y, expected.detach()), (x_grad, exact.grad)):
        assert np.abs(np.asarray(ours) - nhwc(theirs)).max() < 2e-6
    scale = np.abs(np.asarray(grad, np.float64)).sum((0, 1, 2))
    assert np.abs((np.asarray(bias_grad) - np.asarray(bias.grad)) / scale).max() < 1e-7


@pytest.mark.parametrize("channels", [2, 64])
def test_batch_norm_of_a_channel_that_does_not_vary_is_zero(channels):
    """Also with SpeedrunNet's epsilon, by which what rounding leaves of the mean is divided."""
    images = jnp.full((128, 32, 32, channels), 0.3)
    y, _, _ = batch_norm(images, jnp.ones(channels), jnp.zeros(channels), 1e-12)
    assert np.abs(np.asarray(y)).max() < 0.05


@pytest.mark.parametrize(
    ("layer", "judge"),
    [(BatchNorm, lambda: torch.nn.BatchNorm2d(6)), (GroupNorm, lambda: torch.nn.GroupNorm(group_count(6), 6))],
    ids=["batch", "group"],
)
def test_norm_gradients(x64, layer, judge):
    images, weights = jnp.asarray(1 + draw(4, 3, 5, 6)), draw(4, 3, 5, 6, seed=1)
    module = layer(dtype=jnp.float64, param_dtype=jnp.float64)
    params = {"scale": jnp.asarray(draw(6, seed=2)), "bias": jnp.asarray(draw(6, seed=3))}
    variables = module.init(jax.random.key(0), images)

    def loss(params, images):
        out, _ = apply(module, {**variables, "params": params}, images, mutable=["batch_stats"])
        return jnp.sum(out * weights), out

    (grads, image_grad), out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)
    reference = judge().double()
    reference.weight.data, reference.bias.data = (torch.from_numpy(np.array(params[k])) for k in ("scale", "bias"))
    inputs = nchw(images).requires_grad_()
    output = reference(inputs)
    (output * nchw(weights)).sum().backward()
    assert_close(out, nhwc(output.detach()), "float64 operation", "outputs")
    assert_close(image_grad, nhwc(inputs.grad), "float64 operation", "image gradient")
    assert_close(grads["scale"], reference.weight.grad, "float64 operation", "scale gradient")
    assert_close(grads["bias"], reference.bias.grad, "float64 operation", "bias gradient")


def test_group_norm_depends_on_the_number_of_groups(x64):
    images = jnp.asarray(draw(2, 3, 3, 8))
    ours = GroupNorm(dtype=jnp.float64, param_dtype=jnp.float64)
    out = apply(ours, ours.init(jax.random.key(0), images), images)
    right, wrong = (nhwc(torch.nn.GroupNorm(groups, 8).double()(nchw(images)).detach()) for groups in (4, 8))
    assert_close(out, right, "float64 operation")
    assert np.abs(out - wrong).max() > 0.1


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "padding"), [(1, 0), (3, 1), (7, 3)])
def test_convolution(x64, kernel_size, padding, stride, size):
    images = jnp.asarray(draw(2, size, size, 3))
    kernel, bias = draw(kernel_size, kernel_size, 3, 4, seed=1), draw(4, seed=2)
    layer = Conv(4, kernel_size, stride, padding, dtype=jnp.float64, param_dtype=jnp.float64)
    out = apply(layer, {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}, images)
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    expected = torch.nn.functional.conv2d(nchw(images), weight, torch.from_numpy(bias), stride, padding)
    assert_close(out, nhwc(expected), "float64 operation")
    same = jax.lax.conv_general_dilated(
        images, jnp.asarray(kernel), (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    differs = same.shape != out.shape or np.abs(same + bias.reshape(1, 1, 1, -1) - out).max() > 0.1
    # 'SAME' agrees with PyTorch's padding at stride 1 and at odd sizes: only an even size at stride 2 tells them apart.
    assert differs == (kernel_size > 1 and stride == 2 and size == 8)


def test_wide_convolution(x64):
    """On a CPU from 64 to 128 channels, where Winograd's algorithm takes over, with both gradients."""
    images, kernel, weights = draw(2, 7, 8, 64), draw(3, 3, 64, 128, seed=1), draw(2, 7, 8, 128, seed=2)
    layer = Conv(128, 3, padding=1, use_bias=False, dtype=jnp.float64, param_dtype=jnp.float64)

    def loss(kernel, images):
        out = apply(layer, {"params": {"kernel": kernel}}, images)
        return jnp.sum(out * weights), out

    grads, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(jnp.asarray(kernel), jnp.asarray(images))
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    inputs = nchw(images).requires_grad_()
    expected = torch.nn.functional.conv2d(inputs, weight, padding=1)
    (expected * nchw(weights)).sum().backward()
    assert_close(out, nhwc(expected.detach()), "float64 operation", "outputs")
    assert weight.grad is not None
    assert_close(grads[0], weight.grad.numpy().transpose(2, 3, 1, 0), "float64 operation", "kernel gradient")
    assert_close(grads[1], nhwc(inputs.grad), "float64 operation", "image gradient")


def test_dense(x64):
    x, kernel, bias = draw(5, 7), draw(7, 3, seed=1), draw(3, seed=2)
    layer = Dense(3, dtype=jnp.float64, param_dtype=jnp.float64)
    out = apply(layer, {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}, jnp.asarray(x))
    weight = torch.from_numpy(kernel.T.copy())
    expected = torch.nn.functional.linear(torch.from_numpy(x), weight, torch.from_numpy(bias))
    assert_close(out, expected, "float64 operation")
    assert np.abs(out - apply(nn.Dense(3), {"params": {"kernel": kernel, "bias": -bias}}, x)).max() > 0.1


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0)])
def test_max_pool_of_negative_values(window, stride, padding, size):
    images = jnp.asarray(-1 - np.abs(draw(2, size, size, 3, dtype=np.float32)))
    out = max_pool(images, window, stride, padding)
    expected = nhwc(torch.nn.functional.max_pool2d(nchw(images), window, stride, padding))
    np.testing.assert_array_equal(out, expected)
    zeros = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    wrong = np.asarray(nn.max_pool(zeros, (window, window), (stride, stride)))
    assert np.array_equal(wrong, expected) == (padding == 0)


@pytest.mark.parametrize("size", [6, 7])
def test_average_pool(size, x64):
    images, weights = draw(2, size, size, 3), draw(2, 3, 3, 3, seed=1)
    leaf = nchw(images).requires_grad_()
    expected = torch.nn.functional.avg_pool2d(leaf, 2)
    (expected * nchw(weights)).sum().backward()
    out, vjp = jax.vjp(lambda x: average_pool(x, 2), jnp.asarray(images))
    assert_close(out, nhwc(expected.detach()), "float64 operation", "means")
    assert_close(vjp(jnp.asarray(weights))[0], nhwc(leaf.grad), "float64 operation", "gradient")


def test_activations(x64):
    x = jnp.asarray([-3.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 3.0])
    leaf: Any = torch.tensor(np.array(x), requires_grad=True)
    for ours, judge in ((nn.relu, torch.nn.functional.relu), (gelu, torch.nn.functional.gelu)):
        leaf.grad = None
        judge(leaf).sum().backward()
        assert_close(ours(x), judge(leaf).detach(), "float64 operation", "value")
        assert_close(jax.vmap(jax.grad(ours))(x), np.asarray(leaf.grad), "float64 operation", "gradient")
    assert jax.grad(lambda value: jnp.maximum(value, 0))(0.0) == 0.5  # why ReLU is nn.relu
    assert np.abs(nn.gelu(x) - gelu(x)).max() > 1e-4  # flax's default is the tanh form


@pytest.mark.parametrize("padding", [0, 1])
def test_relu_and_max_pool_commute_with_their_gradients(padding):
    images = jnp.asarray(draw(2, 6, 6, 3, dtype=np.float32))
    leaf = nchw(images).requires_grad_()
    window = 3 if padding else 2
    output = torch.nn.functional.max_pool2d(torch.relu(leaf), window, 2, padding)
    (output**2).sum().backward()
    out, vjp = jax.vjp(lambda x: nn.relu(max_pool(x, window, 2, padding)), images)
    np.testing.assert_array_equal(out, nhwc(output.detach()))
    assert_close(vjp(2 * out)[0], nhwc(leaf.grad), "float32 operation", "gradient")


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1)])
def test_max_pool_gives_the_gradient_of_a_tie_to_its_first(window, stride, padding):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 2, (2, 6, 6, 3)).astype(np.float32))
    leaf = nchw(images).requires_grad_()
    torch.nn.functional.max_pool2d(leaf, window, stride, padding).sum().backward()
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, window, stride, padding)))(images)
    np.testing.assert_array_equal(gradient, nhwc(leaf.grad))
    to_last = jax.grad(lambda x: jnp.sum(max_pool(x[:, ::-1], window, stride, padding)))(images)
    assert not np.array_equal(to_last, nhwc(leaf.grad))
