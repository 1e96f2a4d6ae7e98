"""What stands still while a run trains: its data on the device, its network, and its compiled programs."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from jax_cifar.augment import Normalize, downsample
from jax_cifar.backend.compiler import compiler_options
from jax_cifar.backend.mesh import replicated, split_batch
from jax_cifar.config import Config
from jax_cifar.data import Dataset, Splits, channel_statistics
from jax_cifar.errors import check
from jax_cifar.evaluation.metrics import Report, Sums
from jax_cifar.evaluation.predict import Predictor, TestTimeAugmentation, evaluate, make_predictor, rows_per_batch
from jax_cifar.models import INIT_IMAGES, create_model, frozen_parameters, init_variables
from jax_cifar.optim.rules import Hyper, constant_momentum, make_optimizer
from jax_cifar.optim.schedules import Tables, make_schedule
from jax_cifar.run.clock import Clock
from jax_cifar.training.keys import Purpose, purpose_key, run_key
from jax_cifar.training.plan import Plan
from jax_cifar.training.state import TrainState, create_train_state
from jax_cifar.training.steps import DeviceData, epoch_order, make_train_steps, zero_sums


def compute_dtype(config: Config) -> Any:
    """The dtype of activations: what `train.dtype` says, or bfloat16 on GPU and TPU and float32 on a CPU."""
    name = config.train.dtype
    if name == "auto":
        # XLA's CPU convolutions know no bfloat16 and would only cast back and forth.
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


class Network(NamedTuple):
    """A network, and what it sees of the images it is trained on."""

    model: nn.Module
    normalize: Normalize
    side: int | None = None  # pixels that images are downsampled to; None: as they are

    def inputs(self, images: Float[Array, "batch height width channel"]) -> Float[Array, "batch side side channel"]:
        """What the network sees of raw pixels between 0 and 1."""
        return downsample(self.normalize(jax.random.key(0), images), self.side)


def make_network(config: Config, splits: Splits) -> Network:
    """The configured network for a data set, with the channel statistics of its training part."""
    mean, std = channel_statistics(splits.train.images)
    model = create_model(config.model, splits.num_classes, compute_dtype(config))
    resolutions, own = config.train.resolutions, splits.train.images.shape[1]
    for side, _ in resolutions:
        check(side <= own, "train.resolutions", side, f"the images have {own} pixels a side")
    side = resolutions[-1][0] if resolutions else None
    return Network(model, Normalize(tuple(map(float, mean)), tuple(map(float, std))), side)


def initial_state(
    config: Config, network: Network, images: UInt8[np.ndarray, "n height width channel"]
) -> tuple[TrainState, optax.GradientTransformationExtraArgs]:
    """The state before the first update, from the run's seed and a few of the training images; and its optimizer."""
    key = purpose_key(run_key(config.train.seed), Purpose.INIT)
    sample = network.inputs(jnp.asarray(images[:INIT_IMAGES], jnp.float32) / 255)
    variables = init_variables(network.model, key, sample)
    optimizer = make_optimizer(config.optim, variables["params"], frozen_parameters(network.model))
    return create_train_state(variables, optimizer, ema=config.optim.ema_decay > 0), optimizer


@dataclass(frozen=True)
class Session:
    """A run's fixed parts, ready to train; `advance` and `predict` are compiled."""

    config: Config
    plan: Plan
    mesh: Mesh
    splits: Splits
    clock: Clock
    schedule: Tables  # learning rate and momentum by update number
    fingerprint: int  # checksum of the training images and labels
    zero_sums: Sums  # on the devices
    order: Callable[[int], jax.Array]  # epoch -> dataset indices [steps, batch]
    advance: Callable[..., tuple[TrainState, Sums]]  # (state, sums, order, count, side): so many updates in one call
    predict: Predictor

    def evaluate(self, state: TrainState, part: Dataset, tta: TestTimeAugmentation = "none") -> Report:
        """Judge a whole part of the data with the weights that are evaluated."""
        with self.clock("eval"):
            return evaluate(
                self.predict,
                state.eval_variables,
                part.images,
                part.labels,
                self.splits.label_names,
                batch_size=self.config.eval.batch_size,
                tta=tta,
                sharding=split_batch(self.mesh),
            )


def build(config: Config, plan: Plan, mesh: Mesh, splits: Splits, clock: Clock) -> tuple[Session, TrainState]:
    """Put the data on the device, initialise the state, and compile every program of the run."""
    everywhere, images = replicated(mesh), splits.train
    with clock("data"):
        data = jax.device_put(DeviceData(jnp.asarray(images.images), jnp.asarray(images.labels)), everywhere)
        fingerprint = zlib.crc32(images.labels.tobytes(), zlib.crc32(images.images.tobytes()))
        network = make_network(config, splits)

    with clock("compile"):
        state, optimizer = initial_state(config, network, images.images)
        state = jax.device_put(state, everywhere)
        schedule = plan_schedule(config, plan)
        decay = np.full(plan.total_steps, config.optim.weight_decay)
        tables = jax.device_put(jax.tree.map(jnp.float32, Hyper(schedule.lr, schedule.momentum, decay)), everywhere)
        key = jax.device_put(run_key(config.train.seed), everywhere)

        jit_order = jax.jit(epoch_order, static_argnames=("n", "batch_size"), out_shardings=everywhere)
        order = lru_cache(1)(partial(jit_order, key, n=len(images.labels), batch_size=config.train.batch_size))
        zeros = jax.device_put(zero_sums(), everywhere)
        calls = {}
        for side in {side for side, _ in plan.phases} or {None}:
            inputs = network._replace(side=side).inputs
            train_steps = make_train_steps(network.model, optimizer, config, inputs, splits.num_classes, mesh)
            counts = sorted(count for seen, count in plan.calls() if seen == side)
            arguments = (state, zeros, data, order(0), tables, key)
            calls[side] = compile_calls(train_steps, arguments, plan, counts, everywhere, config.train.debug_nans)
        predict = make_predictor(network.model, network.inputs)
        if not config.train.debug_nans:
            predict = _compile_predict(predict, state, splits, config.eval.batch_size, mesh)

    def advance(
        state: TrainState, sums: Sums, order: jax.Array, count: int, side: int | None = None
    ) -> tuple[TrainState, Sums]:
        return calls[side](count)(state, sums, data, order, tables, key)

    return Session(config, plan, mesh, splits, clock, schedule, fingerprint, zeros, order, advance, predict), state


def plan_schedule(config: Config, plan: Plan) -> Tables:
    """Learning rate and momentum of every update; for Adam the momentum is its b1, as in PyTorch's OneCycleLR."""
    optim = config.optim
    momentum = constant_momentum(optim)
    return make_schedule(config.schedule, optim.lr, plan.total_steps, plan.steps_per_epoch, momentum)


def compile_calls(
    train_steps: Callable[..., Any],
    arguments: tuple[Any, ...],
    plan: Plan,
    counts: Sequence[int],
    sharding: NamedSharding,
    debug_nans: bool = False,
) -> Callable[[int], Callable[..., Any]]:
    """The program for a number of updates: on a CPU one for all numbers, elsewhere one for each of `counts`.

    Where the number is known when compiling, a GPU need not ask the host after every update whether to go on.
    `arguments` are those of `train_steps` but the number; what comes out is spread by `sharding`.
    """
    jit = partial(jax.jit, out_shardings=sharding, compiler_options=compiler_options())
    if plan.steps_per_call is None:

        def any_number(count: jax.Array, *arguments: Any) -> Any:
            return train_steps(*arguments, count=count)

        def number(count: int) -> jax.Array:
            return jax.device_put(jnp.int32(count), NamedSharding(sharding.mesh, PartitionSpec()))

        program = jit(any_number, donate_argnums=1).lower(number(1), *arguments).compile()
        return lambda count: partial(program, number(count))
    programs: dict[int, Callable[..., Any]] = {}
    for count in counts:
        if debug_nans:
            # Finding the operation means running it again, which a donated state forbids.
            programs[count] = jit(partial(train_steps, count=count))
        else:
            program = jit(partial(train_steps, count=count), donate_argnums=0)
            programs[count] = program.lower(*arguments).compile()
    return programs.__getitem__


def _compile_predict(predict: Predictor, state: TrainState, splits: Splits, batch_size: int, mesh: Mesh) -> Predictor:
    """`predict` compiled beforehand for the batches of the parts that are evaluated."""
    parts = [part for part in (splits.validation, splits.test) if part is not None]
    programs = {}
    for rows in {rows_per_batch(len(part.images), batch_size, split_batch(mesh)) for part in parts}:
        images = jax.ShapeDtypeStruct((rows, *parts[0].images.shape[1:]), jnp.uint8, sharding=split_batch(mesh))
        programs[rows] = predict.lower(state.eval_variables, images).compile()
    return lambda variables, images: programs[len(images)](variables, images)
