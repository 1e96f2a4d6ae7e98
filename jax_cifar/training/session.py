"""What stands still while runs train: data on the devices, network and compiled programs; and the way to the next stop.

A session trains one run, or a lot of runs that differ in what is data (seed, rates, momentum, decay) by one program.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_cifar.augment import make_mixer
from jax_cifar.backend.compiler import one_program_at_a_time
from jax_cifar.backend.hosts import least, several
from jax_cifar.backend.images import place_images
from jax_cifar.backend.memory import device_memory, naming_the_batch, out_of_memory, program_memory
from jax_cifar.backend.mesh import place, replicated
from jax_cifar.backend.stored import Stored
from jax_cifar.config import Config, ModelConfig
from jax_cifar.config.modules import in_one_line
from jax_cifar.config.source import has_own_code
from jax_cifar.config.spec import InputSpec
from jax_cifar.data import Dataset, Splits
from jax_cifar.errors import ConfigError, DataError, check
from jax_cifar.evaluation.metrics import Report, report
from jax_cifar.evaluation.predict import (
    Batches,
    Logits,
    Predictor,
    TestTimeAugmentation,
    make_batches,
    make_predictor,
    passes,
    predict_logits,
    warm_up,
)
from jax_cifar.models import INIT_IMAGES, check_network, create_model, wants_images
from jax_cifar.models.network import Network, compute_dtype
from jax_cifar.optim.rules import Hyper, constant_momentum, global_norm
from jax_cifar.optim.schedules import Tables, make_schedule
from jax_cifar.run.clock import Clock
from jax_cifar.run.folder import input_spec
from jax_cifar.training.keys import run_key
from jax_cifar.training.plan import Plan, make_plan
from jax_cifar.training.programs import Programs, TracedCalls, compiled_form, program_of, trace_calls
from jax_cifar.training.replicas import Replicas
from jax_cifar.training.state import PyTree, TrainState, initial_state
from jax_cifar.training.steps import DeviceData, epoch_order, make_train_steps, zero_sums

Part = Literal["train", "validation", "test"]

# About as long as one compiled call may take where it can be of any length: what a signal has to wait for.
CALL_SECONDS = 1.0
# Until the memory of a call on a CPU is free after its results are there: 0.3 ms, and more to be sure.
SECONDS_TO_FREE = 0.001


class Interval(NamedTuple):
    """What happened between two stops, for every replica: arrays [replicas]."""

    begin: int
    end: int  # completed updates
    sums: dict[str, np.ndarray]  # over the images and updates in between, as `make_train_step` names them
    parameter_norm: np.ndarray  # at the end
    seconds: float
    skipped_in_a_row: np.ndarray | None = None  # updates, at the end; None with train.skip_nonfinite off
    limit: int = 0  # of those

    def broken(self, replica: int = 0) -> tuple[str, float] | None:
        """What has stopped being finite, or is too much, and its value; None while all is well."""
        if self.skipped_in_a_row is not None and self.skipped_in_a_row[replica] >= self.limit:
            return "number of updates skipped in a row as not finite", int(self.skipped_in_a_row[replica])
        values = {"training loss": self.sums["loss"], "norm of the parameters": self.parameter_norm}
        found = ((what, float(value[replica])) for what, value in values.items())
        return next((pair for pair in found if not np.isfinite(pair[1])), None)


class Session:
    """Everything that is made once for one run, or for all runs of a lot.

    Making one and `trace` check all that can be checked without compiling; `start` makes the initial state, `compile`
    the programs.

    Args:
      config: the experiment; of a lot, any of its members.
      splits: the images.
      replicas: how many runs a compiled call trains.
      clock: is charged with what everything takes.
    """

    def __init__(self, config: Config, splits: Splits, replicas: Replicas, clock: Clock) -> None:
        self.config, self.splits, self.replicas, self.clock = config, splits, replicas, clock
        compiles = not getattr(jax.config, "jax_disable_jit")  # noqa: B009
        check(compiles, "JAX_DISABLE_JIT", True, "training is one compiled program; --debug-nans finds a NaN, too")
        if config.train.patience:
            expected = "stopping early is judged by validation images, and none are held out: --data.val_fraction 0.1"
            check(splits.validation is not None, "train.patience", config.train.patience, expected)
        self.plan = make_plan(config, len(splits.train), jax.default_backend())
        plan_schedule(config, self.plan)
        with clock("data"):
            spec = input_spec(config, splits)
        self.network = make_network(config, spec)
        sides = [side for side, _ in config.train.resolutions]
        kept = config.train.compilation_cache and not several() and not config.train.debug_nans
        # A user's own code may have read what lies in no file that is looked at, and made constants of it.
        kept = kept and not has_own_code(config)
        self._stored = Stored(f"{program_of(config)}\n{spec}\n{len(splits.train)}" if kept else None)
        look = partial(check_network, self.network.model, spec.image_shape, sides, spec.num_classes)
        check_memory(config, self._stored.value("parameters of a network that was checked", look))
        check_loss(config, spec.num_classes)
        order = partial(epoch_order, n=len(splits.train), batch_size=config.train.batch_size)
        self._order_of_keys = replicas.each(order, 0, None)
        self._batches: dict[Part, Batches] = {}
        self._traced: dict[int | None, TracedCalls] = {}  # by the side of the images
        self._programs: dict[int | None, Programs] = {}
        self._affordable = 1  # updates that took about `CALL_SECONDS` of late

    def start(self, configs: Sequence[Config], variables: dict[str, PyTree] | None = None) -> TrainState:
        """The initial state on the devices of the runs that are trained next, one for each replica.

        `variables` are weights to start from in place of fresh ones.
        """
        with self.clock("compile"):
            sample = self.splits.train.images[: INIT_IMAGES if wants_images(self.network.model) else 1]
            begun = [initial_state(config, self.network, sample, variables, self._stored) for config in configs]
            self.optimizer = begun[0][1]
            schedules = [plan_schedule(config, self.plan) for config in configs]
            self.schedule = schedules[0]
            stack = self.replicas.stack
            self._tables = stack([rate_tables(*pair) for pair in zip(configs, schedules, strict=True)])
            seeds = [np.int64(config.train.seed) for config in configs]  # as JAX takes a Python number
            self._keys = stack([self._stored.call("run key", jax.jit(run_key), seed) for seed in seeds])
            self._zeros = stack([zero_sums(config) for config in configs])
            self._order = lru_cache(1)(self._order_of_epoch)
            return stack([state for state, _ in begun])

    def trace(self, state: TrainState) -> None:
        """Put the training images on the devices, and trace every program of the runs, unless that is done."""
        if self._traced:
            return
        config, plan, mesh = self.config, self.plan, self.replicas.mesh
        with self.clock("data"):
            train = self.splits.train
            labels = place(jnp.asarray(train.labels), replicated(mesh))
            self._data = DeviceData(place_images(train.images, mesh), labels)
        with self.clock("compile"):
            arguments = (state, *self.inputs(0))
            for side in {side for side, _ in plan.phases} or {None}:
                own = make_train_steps(self.network.at_side(side), self.optimizer, config, mesh)
                counts = sorted(count for seen, count in plan.calls() if seen == side)
                train_steps = self.replicas.transform(own)
                model = type(self.network.model).__name__ if config.train.debug_nans else None
                at, deterministic = self.replicas.sharding, config.train.deterministic
                self._traced[side] = trace_calls(
                    train_steps, arguments, plan, counts, at, deterministic, model, self._stored.part(f"side {side}")
                )

    def compile(self, state: TrainState, bounded: bool = True) -> None:
        """Compile every program of the runs, unless that is done; traces what has not been traced.

        Raises `ConfigError` where, as the compiler reckons it, an update takes more memory than there is and that
        matters (`bounded`).
        """
        if self._programs:
            return
        self.trace(state)
        with self.clock("compile"):
            self._programs = {side: calls.compile() for side, calls in self._traced.items()}
            self._measure_memory(state)
            if bounded and self.memory > (there := device_memory()):
                raise out_of_memory(self.config.train.batch_size, self.memory, self._stays, there)
            norm = self.replicas.each(global_norm, 0)
            self._norm = self._stored.program("norm", norm, state.params).compile()
            self._predict = self._compile_predict(state)

    def _order_of_epoch(self, epoch: int) -> jax.Array:
        """The indices of every batch of an epoch, for every replica."""
        number = place(np.int32(epoch), replicated(self.replicas.mesh))
        return self._stored.call("order", self._order_of_keys, self._keys, number)

    def _measure_memory(self, state: TrainState) -> None:
        """Note the bytes that an update takes, and those of them that are the same whatever the batch."""
        compiled = (compiled_form(self._programs[side](count)) for side, count in self.plan.calls())
        self.memory, handed_over = max(map(program_memory, filter(None, compiled)), default=(0.0, 0.0))
        # The gradient and the update are as large as the parameters.
        self._stays = handed_over + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))

    def inputs(self, step: int) -> tuple[Any, ...]:
        """What a program is given beside the state, in the epoch that the update after `step` belongs to."""
        order = self._order(step // self.plan.steps_per_epoch)
        return self._zeros, self._data, order, self._tables, self._keys

    def program(self, step: int, count: int) -> Callable[..., Any]:
        """What makes `count` updates from `step` on in one call; `compile` has made it."""
        return self._programs[self.plan.side_at(step)](count)

    def advance(
        self, state: TrainState, step: int, stop: Callable[[int], object] = lambda done: False
    ) -> tuple[TrainState, Interval]:
        """Train to the plan's next stop, or until `stop(updates done)` is true; raises `Diverged` with --debug-nans."""
        plan, begin, end = self.plan, step, self.plan.next_stop(step)
        side, started = plan.side_at(step), time.perf_counter()
        # What JAX itself does at a NaN fits no program that was compiled beforehand.
        naming = naming_the_batch(self.config.train.batch_size, self.memory, self._stays)
        # At most one call runs ahead of the host, so that a signal is answered within a step or two. None does where
        # the processes of a run are about to ask one another, nor where calls take a second, as on a CPU: two at a time
        # take memory from the system that one after the other has already.
        long_calls = plan.steps_per_call is None
        runs_ahead = not (long_calls or several())
        with self.clock("train"), one_program_at_a_time(), jax.debug_nans(False), naming:
            sums, *inputs = self.inputs(step)
            while True:
                count = plan.next_call(step, self._affordable)
                state, new_sums = self.program(step, count)(state, sums, *inputs)
                jax.block_until_ready(sums if runs_ahead else new_sums)
                sums, done, step = new_sums, step if runs_ahead else step + count, step + count
                if step >= end or stop(done):
                    break
                if long_calls:
                    time.sleep(SECONDS_TO_FREE)
            totals = {name: self.replicas.values(value) for name, value in sums.items()}
            norm = self.replicas.values(self._norm(state.params))
            skipped = None if state.skipped is None else self.replicas.values(state.skipped)
        seconds = time.perf_counter() - started
        self._afford(plan.side_at(step), side, (step - begin) / seconds)
        return state, Interval(begin, step, totals, norm, seconds, skipped, self.config.train.skip_nonfinite)

    def evaluate(
        self,
        variables: PyTree,
        part: Part,
        tta: TestTimeAugmentation = "none",
        stop: Callable[[], object] | None = None,
    ) -> Report:
        """Judge a whole part of the data with the weights of one replica; raises `Unwanted` once `stop()` is true."""
        return self.report(part, self.logits(variables, part, tta, stop))

    def logits(
        self,
        variables: PyTree,
        part: Part,
        tta: TestTimeAugmentation = "none",
        stop: Callable[[], object] | None = None,
        plain: Logits | None = None,
    ) -> Logits:
        """What the weights of one replica say of a whole part of the data, as `predict_logits`."""
        with self.clock("eval"):
            return predict_logits(self._predict, variables, self.batches(part), tta, stop, plain)

    def report(self, part: Part, logits: Logits) -> Report:
        """How right these logits are of a part of the data."""
        with self.clock("eval"):
            return report(logits, self.part(part).labels, self.splits.label_names)

    def work(self, step: int, evaluated: bool) -> float:
        """All that is done by the update `step`, and by its evaluation if `evaluated`, in updates of the last side."""
        config = self.config
        judged = self.splits.test if self.splits.validation is None else self.splits.validation
        images = len(judged) * self.plan.evaluations(step if evaluated else step - 1)
        if evaluated and step == self.plan.total_steps:
            images += len(self.splits.test) * (passes(config.eval.tta) - (self.splits.validation is None))
        # An update goes forward once and backward once, which costs about twice as much.
        return self.plan.work(step) + images / (3 * config.train.batch_size)

    def part(self, part: Part) -> Dataset:
        """A part of the data; raises `DataError` for a validation part that there is not."""
        dataset = getattr(self.splits, part)
        if dataset is None:
            raise DataError("No validation images are held out: data.val_fraction = 0.")
        return dataset

    def batches(self, part: Part) -> Batches:
        """The images of a part on the devices, where they stay from their first use on."""
        if part not in self._batches:
            mesh = self.replicas.mesh
            split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._batches[part] = make_batches(self.part(part).images, self.config.eval.batch_size, split)
        return self._batches[part]

    def _afford(self, side: int | None, past_side: int | None, steps_per_second: float) -> None:
        """How many updates the next call may make: fewer where images have just grown."""
        slower = ((side or 1) / (past_side or 1)) ** 2
        self._affordable = least(max(1, int(CALL_SECONDS * steps_per_second / slower)))

    def _compile_predict(self, state: TrainState) -> Predictor:
        """Prediction, compiled beforehand for the batches of the parts that are evaluated."""
        mesh = self.replicas.mesh
        everywhere, predict = replicated(mesh), make_predictor(self.network, self.config.train.deterministic, mesh)

        def of_one(leaf: jax.Array) -> jax.ShapeDtypeStruct:
            shape = leaf.shape[1:] if self.replicas.stacked else leaf.shape
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=everywhere)

        variables = jax.tree.map(of_one, state.eval_variables)
        parts: list[Part] = ["test"] if self.splits.validation is None else ["validation", "test"]
        programs = {}
        for first in (self.batches(part).images[0] for part in parts):
            if len(first) not in programs:
                programs[len(first)] = self._stored.program("predict", predict, variables, first).compile()
        warm_up(self.batches("test"), self.config.eval.tta)
        return lambda variables, images: programs[len(images)](variables, images)


def make_network(config: Config, spec: InputSpec) -> Network:
    """The configured network for images of this kind."""
    return Network(create_model(config.model, spec.num_classes, compute_dtype(config.train.dtype)), spec)


def check_memory(config: Config, parameters: int) -> None:
    """Raise `ConfigError` where a network of so many parameters cannot be trained in the memory that there is."""
    # In float32: the parameters, their gradient, and what the optimizer keeps of each.
    needed, there = 3 * 4 * parameters, device_memory()
    field, value = (
        ("model.width", config.model.width) if isinstance(config.model, ModelConfig) else ("model", config.model)
    )
    expected = f"training {parameters:,} parameters takes {needed / 1e9:,.0f} GB, and there are {there / 1e9:,.0f}"
    check(needed <= there, field, value, expected)


def check_loss(config: Config, num_classes: int) -> None:
    """Raise `ConfigError` unless a loss of one's own gives a number for every image, told by its shapes alone."""
    loss = config.train.loss
    if loss is None:
        return
    logits, soft = (jax.ShapeDtypeStruct((2, num_classes), jnp.float32) for _ in range(2))
    targets = jax.ShapeDtypeStruct((2,), jnp.int32) if make_mixer(config.mix) is None else soft
    name = getattr(loss, "__name__", str(loss))
    given = f"logits float32{list(logits.shape)} and targets {targets.dtype}{list(targets.shape)}"
    try:
        losses = jax.eval_shape(loss, logits, targets)
    except Exception as error:
        raise ConfigError(f"train.loss = {name} failed on {given}: {in_one_line(error)}.") from error
    good = getattr(losses, "shape", None) == (2,) and jnp.issubdtype(losses.dtype, jnp.floating)
    got = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", losses)
    check(good, "train.loss", name, f"for 2 images it must return 2 losses, an array float32[2], not {got}")


def plan_schedule(config: Config, plan: Plan) -> Tables:
    """Learning rate and momentum of every update; for Adam the momentum is its b1, as in PyTorch's OneCycleLR."""
    optim = config.optim
    momentum = constant_momentum(optim)
    return make_schedule(config.schedule, optim.lr, plan.total_steps, plan.steps_per_epoch, momentum)


def rate_tables(config: Config, schedule: Tables) -> Hyper:
    """What every update of a run uses, float32 [total_steps]."""
    decay = np.full(len(schedule.lr), config.optim.weight_decay)
    return jax.tree.map(np.float32, Hyper(schedule.lr, schedule.momentum, decay))
