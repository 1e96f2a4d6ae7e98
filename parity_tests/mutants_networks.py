"""Faults in layers and networks, and in what carries weights to PyTorch and ONNX."""

from planting import Mutant

LAYERS = "jax_cifar/models/layers.py"
CNN = "jax_cifar/models/cnn.py"
RESNET = "jax_cifar/models/resnet.py"
SPEEDRUN = "jax_cifar/models/speedrun.py"
CONVERT = "torch_ref/convert.py"

NETWORKS = (
    # Layers.
    Mutant(
        "convolution: padding 'SAME'",
        LAYERS,
        "padding = ((side, side), (side, side)) if isinstance(side, int) else side",
        "n, s = x.shape[1], self.stride; p = max(0, (-(-n // s) - 1) * s + self.kernel_size - n); "
        "padding = ((p // 2, p - p // 2),) * 2 if isinstance(side, int) else side",
        "test_layers.py::test_convolution",
    ),
    Mutant(
        "convolution: input gradient with the kernel unturned",
        "jax_cifar/ops/conv.py",
        "kernel[::-1, ::-1].swapaxes(2, 3)",
        "kernel.swapaxes(2, 3)",
        "test_submodules.py::test_every_layer_agrees[simple_cnn-none]",
    ),
    Mutant(
        "convolution: kernel gradient by the gradient's channels, taps unturned",
        "jax_cifar/ops/conv.py",
        "turned[::-1, ::-1].swapaxes(2, 3)",
        "turned.swapaxes(2, 3)",
        "test_submodules.py::test_every_layer_agrees[cifar_cnn-batch]",
    ),
    Mutant(
        "wide convolution: output transform of the unturned kernel",
        "jax_cifar/ops/winograd.py",
        "padding, scheme.turned, contract=2",
        "padding, scheme.turned._replace(output=scheme.output), contract=2",
        "test_layers.py::test_wide_convolution",
    ),
    Mutant(
        "wide convolution: tiles of images at the inverse of a kernel's points",
        "jax_cifar/ops/winograd.py",
        "[1 / point / 2, Fraction(1, 2), point / 2]",
        "[point / 2, Fraction(1, 2), 1 / point / 2]",
        "test_layers.py::test_wide_convolution",
    ),
    Mutant(
        "batch norm: gradient as if mean and variance were constants",
        "jax_cifar/ops/channels.py",
        "(grad - _per_channel(bias_grad / count) - normalised)",
        "grad",
        "test_layers.py::test_norm_gradients[batch]",
    ),
    Mutant(
        "batch norm: momentum 0.01 for 0.1 (flax's 0.99)",
        LAYERS,
        "momentum: float = 0.1",
        "momentum: float = 0.01",
        "test_layers.py::test_batch_norm_in_training_and_evaluation",
    ),
    Mutant(
        "batch norm: biased running variance",
        LAYERS,
        "var * (count / (count - 1))",
        "var * (count / count)",
        "test_layers.py::test_batch_norm_in_training_and_evaluation",
    ),
    Mutant(
        "batch norm: epsilon 1e-3",
        LAYERS,
        "epsilon: float = 1e-5\n    momentum",
        "epsilon: float = 1e-3\n    momentum",
        "test_layers.py::test_norm_gradients[batch]",
    ),
    Mutant(
        "batch norm: variance as E[x^2] - E[x]^2",
        "jax_cifar/ops/channels.py",
        "about = total / count",
        "about = 0 * total",
        "test_layers.py::test_batch_norm_far_from_zero_needs_two_passes",
    ),
    Mutant(
        "batch norm: the mean as the first pass rounds it",
        "jax_cifar/ops/channels.py",
        "mean, var = about + off, jnp.maximum(squares - jnp.square(off), 0)",
        "mean, var = about, squares",
        "test_layers.py::test_batch_norm_of_a_channel_that_does_not_vary_is_zero[64]",
    ),
    Mutant(
        "batch norm: sums of one pixel after another",
        "jax_cifar/ops/channels.py",
        "key=lambda n: abs(math.log(n * channels / ROW_NUMBERS))",
        "key=lambda n: n",
        "test_layers.py::test_batch_norm_is_as_exact_with_few_channels[2]",
    ),
    Mutant(
        "batch norm: the batch's statistics in evaluation",
        LAYERS,
        "use_running_average=not train",
        "use_running_average=False",
        "test_convert.py::test_logits_agree[simple_cnn-batch]",
    ),
    Mutant(
        "group norm: unbiased variance",
        LAYERS,
        "var = jnp.mean(jnp.square(grouped - mean), axis=(1, 2, 4), keepdims=True)",
        "var = jnp.var(grouped, axis=(1, 2, 4), keepdims=True, ddof=1)",
        "test_layers.py::test_norm_gradients[group]",
    ),
    Mutant(
        "max-pool: padding with zeros",
        "jax_cifar/ops/pooling.py",
        "lax.reduce_window(x, -jnp.inf, lax.max",
        "lax.reduce_window(x, 0.0, lax.max",
        "test_layers.py::test_max_pool_of_negative_values",
    ),
    Mutant(
        "max-pool: gradient of a tie to a later maximum",
        "jax_cifar/ops/pooling.py",
        "reversed(list(enumerate(positions[:-1])))",
        "list(enumerate(positions[:-1]))",
        "test_layers.py::test_max_pool_gives_the_gradient_of_a_tie_to_its_first",
    ),
    Mutant(
        "GELU: tanh form",
        "jax_cifar/ops/activations.py",
        "0.5 * (1 + lax.erf(x * math.sqrt(0.5)))",
        "0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
        "test_layers.py::test_activations",
    ),
    Mutant(
        "ReLU: jnp.maximum, gradient 1/2 at zero",
        CNN,
        "return nn.relu(max_pool(x, 2))",
        "return jnp.maximum(max_pool(x, 2), jnp.zeros((), x.dtype))",
        "test_models.py::test_relu_passes_no_gradient_at_zero[cifar_cnn]",
    ),
    # Networks.
    Mutant(
        "ResNet-50: stride in the first 1x1 convolution",
        RESNET,
        'self.conv(self.inner[0], 1, name="conv1")(x)))\n        y = self.conv(self.inner[1], 3, self.stride,',
        'self.conv(self.inner[0], 1, self.stride, name="conv1")(x)))\n        y = self.conv(self.inner[1], 3, 1,',
        "test_submodules.py::test_every_layer_agrees[resnet50-none]",
    ),
    Mutant(
        "ResNet: ReLU before the shortcut is added",
        RESNET,
        "return nn.relu(y + _shortcut(self, x, self.features))",
        "return nn.relu(y) + _shortcut(self, x, self.features)",
        "test_submodules.py::test_every_layer_agrees[resnet18-none]",
    ),
    Mutant(
        "SpeedrunNet: the maximum of 2x2 pixels before the last group, not the mean",
        "jax_cifar/models/speedrun.py",
        "(average_pool(x, 2))",
        "(max_pool(x, 2))",
        "test_submodules.py::test_every_layer_agrees[speedrun_net-residual]",
    ),
    Mutant(
        "SpeedrunNet: scale of the norms is trained",
        SPEEDRUN,
        'r"^whiten/kernel$", r"^group\\d/bn\\d/scale$")',
        'r"^whiten/kernel$",)',
        "test_submodules.py::test_every_layer_agrees[speedrun_net-shallow]",
    ),
    Mutant(
        "whitening: no epsilon under the root",
        SPEEDRUN,
        "jnp.maximum(eigenvalues, 0) + epsilon",
        "jnp.maximum(eigenvalues, 1e-12)",
        "test_torch_models.py::test_whitening_kernel_is_the_same",
    ),
    Mutant(
        "whitening: the second of a pair of filters with the wrong sign",
        SPEEDRUN,
        "(on, on - x)",
        "(on, on + x)",
        "test_submodules.py::test_every_layer_agrees[speedrun_net-shallow]",
    ),
    Mutant(
        "SpeedrunNet: of an odd size the first row and column left out",
        SPEEDRUN,
        "(1, 1 - size % 2)",
        "(1 - size % 2, 1)",
        "test_submodules.py::test_every_layer_agrees[speedrun_net-batch]",
    ),
    Mutant(
        "initialisation: lecun_normal for PyTorch's default",
        LAYERS,
        'nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")',
        "nn.initializers.lecun_normal()",
        "test_torch_models.py::test_initialisation_has_the_same_distribution",
    ),
    Mutant(
        "initialisation: he_normal for torchvision's",
        LAYERS,
        'nn.initializers.variance_scaling(2.0, "fan_out", "normal")',
        "nn.initializers.he_normal()",
        "test_torch_models.py::test_initialisation_has_the_same_distribution",
    ),
    Mutant(
        "initialisation: identity filters off centre",
        LAYERS,
        ".at[height // 2, width // 2].set(identity)",
        ".at[0, 0].set(identity)",
        "test_torch_models.py::test_initialisation_has_the_same_distribution",
    ),
    # Weights that cross over, and ONNX.
    Mutant(
        "conversion: kernel axes HWIO to OIWH",
        CONVERT,
        "_TO_TORCH = {4: (3, 2, 0, 1)",
        "_TO_TORCH = {4: (3, 2, 1, 0)",
        "test_convert.py::test_logits_agree[resnet18-batch]",
    ),
    Mutant(
        "conversion: flattened in JAX's order",
        CONVERT,
        "for dense, conv in _FLATTENED if",
        "for dense, conv in () if",
        "test_convert.py::test_logits_agree[cifar_cnn-batch]",
    ),
    Mutant(
        "ONNX: pixels divided by 256",
        "torch_ref/export.py",
        "images.to(torch.float32) / 255",
        "images.to(torch.float32) / 256",
        "test_export.py::test_every_network_agrees_at_every_batch_size[simple_cnn-batch]",
    ),
    Mutant(
        "ONNX: one frozen batch size",
        "torch_ref/export.py",
        'dynamic_shapes=({0: torch.export.Dim("batch")},),',
        "",
        "test_export.py::test_every_network_agrees_at_every_batch_size[simple_cnn-none]",
    ),
)
