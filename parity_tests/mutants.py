"""Faults that a port makes, planted one at a time: each must fail the test named beside it.

A mutant is one replacement in a private copy of the sources, and the test runs there in a process of its own.
`make mutants` plants them all and prints the table; `make test` plants the first.
"""

import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("jax_cifar", "torch_ref", "configs", "scripts", "tests", "parity_tests", "benchmarks", "pyproject.toml")
OUTPUT = "output.txt"


class Mutant(NamedTuple):
    """`old`, which occurs once in `file`, becomes `new`; then `test` (below parity_tests/) must fail."""

    fault: str
    file: str
    old: str
    new: str
    test: str


LAYERS, CNN, RESNET = "jax_cifar/models/layers.py", "jax_cifar/models/cnn.py", "jax_cifar/models/resnet.py"
SPEEDRUN = "jax_cifar/models/speedrun.py"
RULES, TRANSFORMS = "jax_cifar/optim/rules.py", "jax_cifar/optim/transforms.py"
MUON, SCHEDULES = "jax_cifar/optim/muon.py", "jax_cifar/optim/schedules.py"
GEOMETRIC, MIXING, CONVERT = "jax_cifar/augment/crop_flip.py", "jax_cifar/augment/mixing.py", "torch_ref/convert.py"

MUTANTS = (
    # Layers.
    Mutant(
        "convolution: padding 'SAME'",
        LAYERS,
        "sides = (self.padding, self.padding)",
        "n, s = x.shape[1], self.stride; p = max(0, (-(-n // s) - 1) * s + self.kernel_size - n); "
        "sides = (p // 2, p - p // 2)",
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
        "wide convolution: output transform of the unturned kernel",
        "jax_cifar/ops/winograd.py",
        "padding, TURNED_IMAGE, TURNED_OUTPUT, contract=2",
        "padding, TURNED_IMAGE, OUTPUT, contract=2",
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
        "var = _channel_sum(lambda x, mean: jnp.square(_centred(x, mean)), x, mean=mean) / count",
        "var = _channel_sum(lambda x: jnp.square(x), x) / count - jnp.square(mean)",
        "test_layers.py::test_batch_norm_far_from_zero_needs_two_passes",
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
        'self.conv(self.features, 1, name="conv1")(x)))\n        y = self.conv(self.features, 3, self.stride,',
        'self.conv(self.features, 1, self.stride, name="conv1")(x)))\n        y = self.conv(self.features, 3, 1,',
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
    # Losses.
    Mutant(
        "smoothing: eps / (K - 1)",
        "jax_cifar/training/losses.py",
        "label_smoothing / classes",
        "label_smoothing / (classes - 1)",
        "test_losses.py::test_value_in_float32",
    ),
    Mutant(
        "loss of bfloat16 logits in bfloat16",
        "jax_cifar/training/losses.py",
        "logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)",
        "logits",
        "test_losses.py::test_bfloat16_logits_are_raised_to_float32_first",
    ),
    # Optimizers.
    Mutant(
        "SGD: weight decay after the momentum",
        RULES,
        "optax.chain(add_decay, momentum(config.nesterov), by_rate)",
        "optax.chain(momentum(config.nesterov), add_decay, by_rate)",
        "test_optimizers.py::test_rule_is_torchs[sgd-None]",
    ),
    Mutant(
        "SGD: Nesterov's form left out",
        TRANSFORMS,
        "hyper.momentum if fixed is None else fixed, nesterov)",
        "hyper.momentum if fixed is None else fixed)",
        "test_optimizers.py::test_rule_is_torchs[nesterov-None]",
    ),
    Mutant(
        "clipping: no 1e-6 under the norm",
        TRANSFORMS,
        "(global_norm(updates) + 1e-6)",
        "global_norm(updates)",
        "test_optimizers.py::test_clipping_is_torchs",
    ),
    Mutant(
        "clipping: after the decay is added",
        RULES,
        "rule = optax.chain(clip_by_global_norm(config.clip_norm), rule)",
        "rule = optax.chain(add_weight_decay(decay), clip_by_global_norm(config.clip_norm), rule)",
        "test_optimizers.py::test_rule_is_torchs[sgd-2.0]",
    ),
    Mutant(
        "Adam: epsilon inside the root",
        TRANSFORMS,
        "(jnp.sqrt(v) / jnp.sqrt(correction2) + eps)",
        "jnp.sqrt(v / correction2 + eps)",
        "test_optimizers.py::test_rule_is_torchs[adam-None]",
    ),
    Mutant(
        "Adam: no bias correction",
        TRANSFORMS,
        "return m / correction1 /",
        "return m /",
        "test_optimizers.py::test_rule_is_torchs[adam-None]",
    ),
    Mutant(
        "AdamW: decay coupled, as Adam's",
        RULES,
        "optax.chain(adam(config.b2, config.eps), add_decay, by_rate)",
        "optax.chain(add_decay, adam(config.b2, config.eps), by_rate)",
        "test_optimizers.py::test_rule_is_torchs[adamw-None]",
    ),
    Mutant(
        "Adagrad: sum of squares starts at 0.1 (optax's default)",
        TRANSFORMS,
        "return AdagradState(jax.tree.map(jnp.zeros_like, params))",
        "return AdagradState(jax.tree.map(lambda p: jnp.full_like(p, 0.1), params))",
        "test_optimizers.py::test_rule_is_torchs[adagrad-None]",
    ),
    Mutant(
        "Muon: kernels not renormalised",
        MUON,
        "(renormalising_factor(p) * shrink - 1) * p",
        "(shrink - 1) * p",
        "test_optimizers.py::test_muon_is_airbenchs",
    ),
    Mutant(
        "Muon: five iterations (torch.optim.Muon's)",
        MUON,
        "ITERATIONS = 3",
        "ITERATIONS = 5",
        "test_optimizers.py::test_muon_is_airbenchs",
    ),
    Mutant(
        "averaged weights: old and new swapped",
        RULES,
        "e + jnp.asarray(1 - decay, e.dtype) * (x - e)",
        "e + jnp.asarray(decay, e.dtype) * (x - e)",
        "test_optimizers.py::test_ema_is_torchs_averaged_model_started_at_the_initial_weights",
    ),
    # Schedules.
    Mutant(
        "OneCycle: peak at int(pct * T), end at T (optax's)",
        SCHEDULES,
        "rise = pct_start * total_steps - 1",
        "rise = int(pct_start * total_steps); total_steps = total_steps + 1",
        "test_schedules.py::test_onecycle_and_its_momentum_are_torchs_to_the_last_bit",
    ),
    Mutant(
        "OneCycle: momentum moves with the rate",
        SCHEDULES,
        "values = (max_momentum, base_momentum, max_momentum)",
        "values = (base_momentum, max_momentum, base_momentum)",
        "test_schedules.py::test_onecycle_and_its_momentum_are_torchs_to_the_last_bit",
    ),
    Mutant(
        "cosine: over T - 1 steps",
        SCHEDULES,
        "fraction = (step - warmup_steps) / (total_steps - warmup_steps)",
        "fraction = (step - warmup_steps) / max(1, total_steps - warmup_steps - 1)",
        "test_schedules.py::test_warmup_and_cosine",
    ),
    Mutant(
        "warm restarts: a step late",
        SCHEDULES,
        "while step >= length:",
        "while step > length:",
        "test_schedules.py::test_warm_restarts_are_torchs_to_the_last_bit",
    ),
    Mutant(
        "steps: the rate falls after the milestone",
        SCHEDULES,
        "gamma ** bisect_right(milestones, step)",
        "gamma ** bisect_right(milestones, step - 1)",
        "test_schedules.py::test_step_decay_with_warmup",
    ),
    # Augmentation.
    Mutant(
        "crop: edge for reflection",
        GEOMETRIC,
        'padded = jnp.pad(images, widths, mode="reflect")',
        'padded = jnp.pad(images, widths, mode="edge")',
        "test_mixing.py::test_crop",
    ),
    Mutant(
        "flip: upside down",
        GEOMETRIC,
        "images[:, :, ::-1]",
        "images[:, ::-1]",
        "test_mixing.py::test_flip",
    ),
    Mutant(
        "Cutout: squares pushed inside the image",
        "jax_cifar/augment/boxes.py",
        "first = draws - self.length // 2",
        "first = jnp.clip(draws - self.length // 2, 0, images.shape[1] - self.length)",
        "test_mixing.py::test_cutout[8]",
    ),
    Mutant(
        "MixUp: partner from the other end (timm's)",
        MIXING,
        "jnp.roll(images, 1, axis=0)",
        "images[::-1]",
        "test_mixing.py::test_mixup",
    ),
    Mutant(
        "CutMix: label not corrected for clipping",
        MIXING,
        "1 - pasted / (height * width))",
        "lam)",
        "test_mixing.py::test_cutmix",
    ),
    Mutant(
        "Rotate: the centre half a pixel off",
        "jax_cifar/augment/operations.py",
        "x0 = jnp.where(rotated, 0.5 - width / 2, 0.5)",
        "x0 = jnp.where(rotated, 1 - width / 2, 0.5)",
        "test_augment_policies.py::test_every_operation_at_every_magnitude[square-Rotate]",
    ),
    Mutant(
        "TranslateX: rounded, not truncated",
        "jax_cifar/augment/operations.py",
        'right = where_chosen(chosen, "TranslateX", amount)',
        'right = jnp.round(where_chosen(chosen, "TranslateX", amount))',
        "test_augment_policies.py::test_every_operation_at_every_magnitude[square-TranslateX]",
    ),
    Mutant(
        "AutoContrast: exact where Pillow falls short",
        "jax_cifar/augment/operations.py",
        "stretched - falls_short.astype(jnp.int32)",
        "stretched",
        "test_augment_policies.py::test_autocontrast_of_every_third_range",
    ),
    Mutant(
        "Equalize: the brightest level counted",
        "jax_cifar/augment/operations.py",
        "level < highest, counts",
        "level <= highest, counts",
        "test_augment_policies.py::test_every_operation_at_every_magnitude[square-Equalize]",
    ),
    Mutant(
        "AutoAugment: a wrong probability",
        "jax_cifar/augment/policies.py",
        '(Step("Color", 0.9, 9)',
        '(Step("Color", 0.8, 9)',
        "test_augment_policies.py::test_autoaugment_policy_is_the_published_one",
    ),
    Mutant(
        "sampler: the border repeated in reflection",
        "jax_cifar/augment/sampling.py",
        "period = jnp.maximum(2 * last, 1)",
        "period = 2 * last + 2",
        "test_augment_geometry.py::test_sampler[reflect]",
    ),
    Mutant(
        "resampling: neighbours chained in the wrong order",
        "jax_cifar/augment/sampling.py",
        "for move in reversed(moves):",
        "for move in moves:",
        "test_augment_geometry.py::test_affine_then_elastic_in_one_resampling",
    ),
    Mutant(
        "affine: rotation the other way round",
        "jax_cifar/augment/affine.py",
        "cos, sin = cos_sin(draws.degrees)",
        "cos, sin = cos_sin(-draws.degrees)",
        "test_augment_geometry.py::test_affine",
    ),
    Mutant(
        "resized crop: corners for centres of pixels",
        "jax_cifar/augment/affine.py",
        "(grid.astype(zoom.dtype) + 0.5) * zoom - 0.5",
        "grid.astype(zoom.dtype) * zoom",
        "test_augment_geometry.py::test_resized_crop",
    ),
    Mutant(
        "elastic: filter cut off at 3 sigma",
        "jax_cifar/augment/warp.py",
        "radius = int(4 * sigma + 0.5)",
        "radius = int(3 * sigma + 0.5)",
        "test_augment_geometry.py::test_elastic[30.0-2.0-constant]",
    ),
    Mutant(
        "grid distortion: the border moves",
        "jax_cifar/augment/warp.py",
        "factors / jnp.mean(factors, axis=1, keepdims=True) - 1",
        "factors - 1",
        "test_augment_geometry.py::test_grid_distortion[5]",
    ),
    Mutant(
        "colour jitter: grey by BT.601's weights",
        "jax_cifar/augment/colour.py",
        "JITTER_WEIGHTS = (0.2989, 0.587, 0.114)",
        "JITTER_WEIGHTS = (0.299, 0.587, 0.114)",
        "test_augment_colour.py::test_jitter_in_every_order",
    ),
    Mutant(
        "colour jitter: hue always last",
        "jax_cifar/augment/colour.py",
        "((place[:, kind] > place[:, HUE]) == after)",
        "(not after)",
        "test_augment_colour.py::test_jitter_in_every_order",
    ),
    Mutant(
        "hue: no way round the circle",
        "jax_cifar/augment/colour.py",
        "k = k - 6.0 * jnp.floor(k / 6.0)",
        "k = k",
        "test_augment_colour.py::test_hue_alone",
    ),
    Mutant(
        "CLAHE: what is clipped is lost",
        "jax_cifar/augment/clahe.py",
        "total = below.astype(jnp.float32) + handed_out",
        "total = below.astype(jnp.float32) + 0 * handed_out",
        "test_augment_colour.py::test_clahe_of_levels_is_opencvs",
    ),
    Mutant(
        "CLAHE: on Y for L",
        "jax_cifar/augment/clahe.py",
        "lightness = 1.16 * roots[1] - 0.16",
        "lightness = roots[1]",
        "test_augment_colour.py::test_clahe_changes_lightness_alone",
    ),
    Mutant(
        "erasing: the last rectangle that fits",
        "jax_cifar/augment/boxes.py",
        "first = fits & (jnp.cumsum(fits, axis=1, dtype=jnp.int32) == 1)",
        "first = fits & (jnp.cumsum(fits[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1] == 1)",
        "test_augment_colour.py::test_erasing_takes_the_first_rectangle_that_fits",
    ),
    Mutant(
        "dropout of boxes: a row and a column short",
        "jax_cifar/augment/boxes.py",
        "(distance < jnp.broadcast_to(length, first.shape)[..., None])",
        "(distance < jnp.broadcast_to(length, first.shape)[..., None] - 1)",
        "test_augment_colour.py::test_boxes_are_filled",
    ),
    # The step as a whole.
    Mutant(
        "accumulation: parts of neighbouring images",
        "jax_cifar/training/steps.py",
        "jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)",
        "x.reshape(parts, -1, *x.shape[1:])",
        "test_accumulation.py::test_accumulated_updates_agree[2-None]",
    ),
    Mutant(
        "accumulation: the sum for the mean",
        "jax_cifar/training/steps.py",
        "lambda g: g / parts, total",
        "lambda g: g, total",
        "test_accumulation.py::test_accumulated_updates_agree[2-0.5]",
    ),
    Mutant(
        "accumulation: every part from the first statistics",
        "jax_cifar/training/steps.py",
        "grad_fn(state.params, batch_stats, images, targets, part_key)",
        "grad_fn(state.params, state.batch_stats, images, targets, part_key)",
        "test_accumulation.py::test_accumulated_updates_agree[2-None]",
    ),
    Mutant(
        "averaged weights: batch statistics left out",
        "jax_cifar/training/steps.py",
        'update_ema(ema, {"params": params, "batch_stats": batch_stats}',
        'update_ema(ema, {"params": params, "batch_stats": ema["batch_stats"]}',
        "test_torch_steps.py::test_updates_are_those_of_the_jax_stack[ema]",
    ),
    Mutant(
        "lookahead: the fast weights go on",
        TRANSFORMS,
        "jnp.where(now, s - p, u)",
        "u",
        "test_optimizers.py::test_lookahead[5-0.5]",
    ),
    Mutant(
        "dropout: before the ReLU",
        CNN,
        "nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))",
        "nn.relu(nn.Dropout(self.dropout, deterministic=not train)(x))",
        "test_dropout.py::test_the_networks_drop_in_the_same_places[simple_cnn]",
    ),
    Mutant(
        "bfloat16: kernel gradients summed in bfloat16",
        "jax_cifar/ops/conv.py",
        "accumulate = x.dtype if x.dtype.itemsize >= 4 else jnp.float32",
        "accumulate = x.dtype",
        "test_precision.py::test_a_bfloat16_step_computes_in_bfloat16_and_keeps_float32[tiny_cnn-batch-1-16-3]",
    ),
    Mutant(
        "bfloat16: a dense layer in float32",
        CNN,
        "nn.relu(Dense(features, dtype=self.dtype,",
        "nn.relu(Dense(features, dtype=jnp.float32,",
        "test_precision.py::test_a_bfloat16_step_computes_in_bfloat16_and_keeps_float32[cifar_cnn-batch-1-8-8]",
    ),
    Mutant(
        "bfloat16: loss rounded",
        "jax_cifar/training/losses.py",
        "jax.nn.log_softmax(logits), axis=-1)",
        "jax.nn.log_softmax(logits), axis=-1).astype(jnp.bfloat16)",
        "test_precision.py::test_bfloat16_agrees_with_autocast[tiny_cnn]",
    ),
    Mutant(
        "folding: running mean with the wrong sign",
        "jax_cifar/models/fold.py",
        "bias - mean * factor",
        "bias + mean * factor",
        "test_fold.py::test_every_convolution_is_pytorchs_folded_one[tiny_cnn]",
    ),
    Mutant(
        "folding: another network's epsilon",
        "jax_cifar/models/fold.py",
        'getattr(model, "norm_epsilon", BatchNorm.epsilon)',
        "BatchNorm.epsilon",
        "test_fold.py::test_the_folded_network_gives_the_same_logits[speedrun_net]",
    ),
    # The judge: it may be wrong too.
    Mutant(
        "torch_ref: statistics left out of the averaged weights",
        "torch_ref/steps.py",
        "use_buffers=True",
        "use_buffers=False",
        "test_torch_steps.py::test_updates_are_those_of_the_jax_stack[ema]",
    ),
    Mutant(
        "torch_ref: Muon's decay without the rate",
        "torch_ref/optimizers.py",
        '(1 - lr * group["weight_decay"])',
        '(1 - group["weight_decay"])',
        "test_torch_steps.py::test_updates_are_those_of_the_jax_stack[muon]",
    ),
    Mutant(
        "torch_ref: OneCycle moves the momentum of Muon's neighbour",
        "torch_ref/steps.py",
        "make_scheduler(fixed if i else config.schedule,",
        "make_scheduler(config.schedule,",
        "test_torch_steps.py::test_updates_are_those_of_the_jax_stack[muon with onecycle]",
    ),
    Mutant(
        "torch_ref: cosine over the warm-up too",
        "torch_ref/schedules.py",
        "total - warmup, config.eta_min",
        "total, config.eta_min",
        "test_schedules.py::test_warmup_and_cosine",
    ),
    Mutant(
        "torch_ref: another hash in the alternating flip",
        "torch_ref/augment.py",
        "0xC2B2AE35",
        "0xC2B2AE3D",
        "test_torch_augment.py::test_flips",
    ),
    Mutant(
        "torch_ref: dropout before the global average",
        "torch_ref/models.py",
        "self.fc(self.dropout(x.mean((2, 3))))",
        "self.fc(self.dropout(x).mean((2, 3)))",
        "test_dropout.py::test_the_networks_drop_in_the_same_places[resnet18]",
    ),
)


# Importing takes longer than most of the tests: it is done once, in a process that is copied for every mutant.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["jax", "flax.linen", "optax", "torch", "pytest"])


def run_mutant(mutant: Mutant, folder: Path) -> str | None:
    """The assertion that killed the mutant, in a line; None where it survived. `folder` is empty, and filled.

    Raises:
        RuntimeError: the text to replace is not there exactly once, or the test could not be run at all.
    """
    for name in COPIED:
        source, target = ROOT / name, folder / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
    path = folder / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.file} holds {source.count(mutant.old)} times, not once: {mutant.old}")
    path.write_text(source.replace(mutant.old, mutant.new))
    process = _PROCESSES.Process(target=_run_test, args=(folder, f"parity_tests/{mutant.test}"))
    process.start()
    process.join()
    if process.exitcode == 0:
        return None
    output = (folder / OUTPUT).read_text()
    failed = re.search(r"^FAILED .+? - (.*)$", output, re.MULTILINE)
    if process.exitcode != 1 or failed is None:
        raise RuntimeError(f"{mutant.test} could not be run:\n{output[-3000:]}")
    return failed[1]


def _run_test(folder: Path, test: str) -> None:
    """In the new process: run one test on the sources in `folder`, and leave with pytest's exit code."""
    if "jax_cifar" in sys.modules:
        raise RuntimeError("jax_cifar is imported already, without the fault.")
    os.chdir(folder)
    with (folder / OUTPUT).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ["COLUMNS"] = "400"  # or the line with the assertion is cut
    options = ["-n0", "-x", "-q", "-rf", "-p", "no:randomly", "-p", "no:cacheprovider", "-m", ""]
    sys.exit(pytest.main([*options, test]))
