"""Faults in losses, update rules and schedules, in the step as a whole, and in the judge, which may be wrong too."""

from planting import Mutant

CNN = "jax_cifar/models/cnn.py"
RULES = "jax_cifar/optim/rules.py"
TRANSFORMS = "jax_cifar/optim/transforms.py"
MUON = "jax_cifar/optim/muon.py"
SCHEDULES = "jax_cifar/optim/schedules.py"

LEARNING = (
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
        "Muon: the Gram matrix multiplied by its factor once",
        MUON,
        "factor @ (factor @ gram)",
        "factor @ gram",
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
        "share = 1 - decay if done is None",
        "share = decay if done is None",
        "test_optimizers.py::test_ema_is_torchs_averaged_model_started_at_the_initial_weights",
    ),
    Mutant(
        "averaged weights: warmed up an update late",
        RULES,
        "9 / (10 + done.astype(e.dtype))",
        "9 / (9 + done.astype(e.dtype))",
        "test_torch_steps.py::test_updates_are_those_of_the_jax_stack[ema warmed up]",
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
)

STEPS = (
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
        "grad_fn(params, batch_stats, images, targets, part_key)",
        "grad_fn(params, first_stats, images, targets, part_key)",
        "test_accumulation.py::test_accumulated_updates_agree[2-None]",
    ),
    Mutant(
        "averaged weights: batch statistics left out",
        "jax_cifar/training/steps.py",
        'new = {"params": params, "batch_stats": batch_stats}',
        'new = {"params": params, "batch_stats": ema["batch_stats"]}',
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
        "smoothed * counted, axis=-1)",
        "smoothed * counted, axis=-1).astype(jnp.bfloat16)",
        "test_precision.py::test_bfloat16_agrees_with_autocast[tiny_cnn]",
    ),
    Mutant(
        "folding: running mean with the wrong sign",
        "jax_cifar/models/fold.py",
        "bias - mean * factor",
        "bias + mean * factor",
        "test_fold.py::test_every_convolution_is_pytorchs_folded_one[tiny_cnn]",
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
        "torch_ref: averaged weights warmed up for good",
        "torch_ref/steps.py",
        "share = max(1 - decay, 9 / (10 + done))",
        "share = 9 / (10 + done)",
        "test_torch_steps.py::test_updates_are_those_of_the_jax_stack[ema warmed up]",
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
