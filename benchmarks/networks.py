"""One network in JAX and in PyTorch, with the same configuration and images, each ready to be timed.

A train step is that of the configuration, with the averaging of its weights where it has that, at a constant rate: any
number of updates is made, and a schedule would come to the end of its run. Of `train.skip_nonfinite`, which PyTorch's
has not, ours alone bears the time.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import Mesh

from benchmarks.timing import Work
from jax_cifar.backend.compiler import compiler_options
from jax_cifar.backend.mesh import make_mesh, replicated, split_batch
from jax_cifar.backend.portions import by_shares
from jax_cifar.backend.threads import cpu_count
from jax_cifar.config import Config, DistributedConfig, ModelConfig, ModelName, OptimConfig, ScheduleConfig, TrainConfig
from jax_cifar.evaluation.predict import by_portions
from jax_cifar.models import create_model, frozen_parameters, init_variables
from jax_cifar.optim.rules import Hyper, constant_momentum, make_optimizer
from jax_cifar.training.keys import Purpose, purpose_key, run_key
from jax_cifar.training.session import compute_dtype
from jax_cifar.training.state import TrainState, create_train_state
from jax_cifar.training.steps import make_train_step
from torch_ref.models import create_model as create_torch_model
from torch_ref.speedrun import StartsFromImages
from torch_ref.steps import Trainer
from torch_ref.steps import compute_dtype as torch_compute_dtype

What = Literal["train", "inference"]
# Ways to run PyTorch: memory format, and whether torch.compile is used.
TORCH_WAYS = {
    "torch": (torch.contiguous_format, False),
    "torch channels_last": (torch.channels_last, False),
    "torch.compile": (torch.channels_last, True),
}


def network_config(name: ModelName, batch: int) -> Config:
    """SGD with momentum on a network at its own size; SpeedrunNet on a CPU with fewer channels."""
    small = name == "speedrun_net" and jax.default_backend() == "cpu"
    return Config(
        name=name,
        model=ModelConfig(name=name, norm="none" if name == "simple_cnn" else "batch", width=16 if small else None),
        optim=OptimConfig(name="sgd", lr=0.01, momentum=0.9),
        schedule=ScheduleConfig(name="constant"),
        train=TrainConfig(batch_size=batch),
    )


def torch_has(config: Config, what: What) -> bool:
    """Whether PyTorch has the network of a configuration, and for training its loss and update rule too."""
    if not isinstance(config.model, ModelConfig):
        return False
    return what == "inference" or (config.train.loss is None and isinstance(config.optim.name, str))


class Batch(NamedTuple):
    """Random images, as they are after normalisation, and labels; what they show does not change the time."""

    images: np.ndarray  # [batch, 32, 32, 3]
    labels: np.ndarray
    classes: int = 10


def random_batch(size: int) -> Batch:
    """A batch of CIFAR-10's shape."""
    rng = np.random.default_rng(0)
    return Batch(rng.standard_normal((size, 32, 32, 3), np.float32), rng.integers(0, 10, size))


def jax_train_step(config: Config, batch: Batch) -> Work:
    """Forward, backward and update, on one batch that stays on the device; several in a call, as training does it.

    On a CPU that is one program for any number. Elsewhere it is one of `log.every`, where the number is known when
    compiling, as in `training.programs`, and one of a single update for those that are left over.
    """
    mesh = _mesh(config)
    images, labels = jax.device_put((batch.images, batch.labels), split_batch(mesh))
    model = create_model(config.model, batch.classes, compute_dtype(config.train.dtype))
    variables = init_variables(model, purpose_key(run_key(0), Purpose.INIT), jnp.asarray(batch.images))
    optimizer = make_optimizer(config.optim, variables["params"], frozen_parameters(model))
    step = make_train_step(model, optimizer, config)
    optim, key = config.optim, run_key(1)
    hyper = Hyper(*map(jnp.float32, (optim.lr, constant_momentum(optim), optim.weight_decay)))

    def steps(state: TrainState, images: jax.Array, labels: jax.Array, count: int | jax.Array) -> TrainState:
        return jax.lax.fori_loop(0, count, lambda _, state: step(state, images, labels, hyper, key)[0], state)

    steps, everywhere = by_shares(steps, mesh), replicated(mesh)
    jit = functools.partial(jax.jit, donate_argnums=0, out_shardings=everywhere, compiler_options=compiler_options())
    ema, skips = optim.ema_decay > 0, config.train.skip_nonfinite > 0
    state: Any = jax.device_put(create_train_state(variables, optimizer, ema, skips), everywhere)
    if jax.default_backend() == "cpu":
        any_number = jit(steps)

        def calls(count: int) -> list[Callable[..., Any]]:
            return [functools.partial(any_number, count=jnp.int32(count))]
    else:
        whole = config.log.every
        programs = {
            number: jit(functools.partial(steps, count=number)).lower(state, images, labels).compile()
            for number in (whole, 1)
        }

        def calls(count: int) -> list[Callable[..., Any]]:
            return [programs[whole]] * (count // whole) + [programs[1]] * (count % whole)

    def work(count: int) -> None:
        nonlocal state
        for call in calls(count):
            state = call(state, images, labels)
        jax.block_until_ready(state)

    return work


def jax_inference(config: Config, batch: Batch) -> Work:
    """Logits of one batch that stays on the device."""
    mesh = _mesh(config)
    images = jax.device_put(batch.images, split_batch(mesh))
    model = create_model(config.model, batch.classes, compute_dtype(config.train.dtype))
    variables = init_variables(model, purpose_key(run_key(0), Purpose.INIT), jnp.asarray(batch.images))
    variables = jax.device_put(variables, replicated(mesh))

    def logits_of(variables: Any, images: jax.Array) -> jax.Array:
        return by_portions(lambda images: jnp.asarray(model.apply(variables, images, train=False)), images)

    predict = jax.jit(by_shares(logits_of, mesh), compiler_options=compiler_options())

    def work(count: int) -> None:
        for _ in range(count):
            logits = predict(variables, images)
        jax.block_until_ready(logits)

    return work


def torch_train_step(config: Config, batch: Batch, way: str) -> Work:
    """The same in PyTorch; under bfloat16 autocast where JAX computes in bfloat16."""
    model, images, labels = _torch_network(config, batch, way)
    dtype = torch_compute_dtype(config, images.device)
    steady = replace(config, schedule=ScheduleConfig(name="constant"))
    trainer = Trainer(steady, model, 1, 1, dtype=dtype, compiled=TORCH_WAYS[way][1])

    def work(count: int) -> None:
        for _ in range(count):
            loss, _ = trainer.update(images, labels)
        loss.item()  # waits for the device

    return work


def torch_inference(config: Config, batch: Batch, way: str) -> Work:
    """The same in PyTorch, in inference mode."""
    model, images, _ = _torch_network(config, batch, way)
    forward: Callable[..., torch.Tensor] = torch.compile(model.eval()) if TORCH_WAYS[way][1] else model.eval()
    half = torch_compute_dtype(config, images.device) == torch.bfloat16

    @torch.inference_mode()
    def work(count: int) -> None:
        for _ in range(count):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
                logits = forward(images)
        logits[0, 0].item()

    return work


def _mesh(config: Config) -> Mesh:
    """One device; all those into which JAX_NUM_CPU_DEVICES divides a CPU, as PyTorch has all of its cores, too."""
    devices = None if jax.default_backend() == "cpu" else 1
    return make_mesh(replace(config, distributed=DistributedConfig(devices=devices)))


def use_all_cores() -> None:
    """Have PyTorch compute as JAX does: on as many cores as XLA has, and on a GPU with TF32."""
    torch.set_num_threads(cpu_count())
    torch.set_float32_matmul_precision("high")


def _torch_network(config: Config, batch: Batch, way: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    use_all_cores()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory_format = TORCH_WAYS[way][0]
    images = torch.tensor(batch.images, device=device).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    model = create_torch_model(config.model, batch.classes, batch.images.shape[1]).to(device)
    if isinstance(model, StartsFromImages):
        model.init_from(images)
    model = model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    return model, images, torch.tensor(batch.labels, device=device)
