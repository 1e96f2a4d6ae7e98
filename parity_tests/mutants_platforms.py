"""Faults in the programs for GPUs and TPUs, and in the run that several devices or processes share."""

from planting import Mutant

CONV = "jax_cifar/ops/conv.py"
LOWERED = "tests/test_lowered_steps.py"

PLATFORMS = (
    Mutant(
        "cuda: a convolution as on a CPU",
        CONV,
        "default=default)",
        "default=cpu)",
        f"{LOWERED}::test_convolutions_are_jaxs_own_in_bfloat16[simple_cnn-1-cuda]",
    ),
    Mutant(
        "cuda: the gradients of a convolution as on a CPU",
        CONV,
        "default=partial(_stock_gradients, **options)",
        "default=partial(_cpu_gradients, **options)",
        f"{LOWERED}::test_convolutions_are_jaxs_own_in_bfloat16[simple_cnn-1-cuda]",
    ),
    Mutant(
        "cuda: sums over channels as on a CPU",
        "jax_cifar/ops/channels.py",
        "cpu=in_parts, default=stock",
        "cpu=stock, default=in_parts",
        f"{LOWERED}::test_products_are_bfloat16_but_for_the_heads_and_muons[simple_cnn-1-cuda]",
    ),
    Mutant(
        "bfloat16: convolutions in float32",
        "jax_cifar/models/layers.py",
        "conv2d(x.astype(self.dtype), kernel.astype(self.dtype),",
        "conv2d(x.astype(jnp.float32), kernel.astype(jnp.float32),",
        f"{LOWERED}::test_convolutions_are_jaxs_own_in_bfloat16[simple_cnn-1-tpu]",
    ),
    Mutant(
        "bfloat16: BatchNorm's statistics in bfloat16",
        "jax_cifar/ops/channels.py",
        "(total,) = _channel_sums(lambda x: (x.astype(wide),), x)",
        "total = jnp.sum(x, (0, 1, 2), dtype=x.dtype).astype(wide)",
        f"{LOWERED}::test_sums_over_a_batch_are_taken_in_float32[simple_cnn-1-tpu]",
    ),
    Mutant(
        "the state is not donated",
        "jax_cifar/training/programs.py",
        "donated = () if model else (0,)",
        "donated = ()",
        f"{LOWERED}::test_the_whole_state_is_donated_and_nothing_else[simple_cnn-8-cuda]",
    ),
    Mutant(
        "a batch is not spread over the devices",
        "jax_cifar/training/steps.py",
        "index, jax.lax.with_sharding_constraint(index, split_batch(mesh))",
        "index, index",
        f"{LOWERED}::test_the_batch_is_spread_over_the_devices[simple_cnn-8-tpu]",
    ),
    Mutant(
        "several CPU devices: a batch is cut without regard to where it lies",
        "jax_cifar/backend/portions.py",
        "return axes if devices > 1 and len(x) % devices == 0 else ()",
        "return ()",
        "tests/test_devices.py::test_a_batch_is_cut_within_each_devices_own_share",
    ),
    Mutant(
        "images in parts: a device takes the next one's images for its own",
        "jax_cifar/backend/images.py",
        'own = index - lax.axis_index("data") * size',
        'own = index - (lax.axis_index("data") + 1) * size',
        "tests/test_devices.py::test_images_in_parts_are_each_fed_once_an_epoch_in_the_same_order",
    ),
    Mutant(
        "an index is fed twice in an epoch",
        "jax_cifar/training/steps.py",
        "return permutation[: steps * batch_size].reshape(steps, batch_size)",
        "return permutation[jnp.arange(steps * batch_size) // 2 * 2].reshape(steps, batch_size)",
        "tests/test_steps.py::test_an_epoch_shows_every_image_once_and_each_epoch_in_another_order",
    ),
    Mutant(
        "several CPU devices: as many threads as devices",
        "jax_cifar/backend/threads.py",
        "max(2 * devices, int(threads))",
        "max(devices, int(threads))",
        "tests/test_threads.py::test_devices_of_a_cpu_compute_what_one_does[False]",
    ),
    Mutant(
        "several Python threads: nobody waits for his turn",
        "jax_cifar/backend/compiler.py",
        'return _turn if jax.default_backend() == "cpu"',
        'return _turn if jax.default_backend() == "none"',
        "tests/test_threads.py::test_so_they_do_for_several_who_ask_at_once",
    ),
    Mutant(
        "several processes: each writes the run folder",
        "jax_cifar/training/loop.py",
        "if not is_main():  # what only",
        "if False:  # what only",
        "tests/test_hosts.py::test_processes_train_as_one_and_one_of_them_writes[2x2]",
    ),
)
