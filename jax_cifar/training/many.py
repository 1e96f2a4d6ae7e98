"""Many answers at once: N seeds, or N settings of learning rate, momentum and decay, in one process, compiled once.

from jax_cifar.training.many import train_many
results = train_many(config, seeds=range(8))
results = train_many(config, settings=[{"lr": 0.1}, {"lr": 0.05, "momentum": 0.8, "seed": 1}])

Every member of the lot is what `train` would have made of its setting, with one evaluation at its end and no run
folder: no log, no checkpoints. What has not finished when the process is stopped is lost.
"""

import dataclasses
import difflib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.backend.mesh import make_mesh, replicated
from jax_cifar.config import Config
from jax_cifar.data import Dataset, load_data
from jax_cifar.errors import ConfigError, check
from jax_cifar.evaluation.metrics import Report
from jax_cifar.evaluation.predict import TestTimeAugmentation, evaluate, make_predictor
from jax_cifar.optim.rules import Hyper, constant_momentum, global_norm
from jax_cifar.training.keys import run_key
from jax_cifar.training.plan import make_plan
from jax_cifar.training.session import compile_calls, initial_state, make_network, plan_schedule
from jax_cifar.training.state import TrainState
from jax_cifar.training.steps import DeviceData, epoch_order, make_train_steps, zero_sums

How = Literal["auto", "sequential", "vmap", "devices"]
Programs = Callable[[int], Callable[..., Any]]  # number of updates -> what makes them in one call

# About how long a call may take, where it can be of any length: as long as Ctrl-C may wait.
CALL_SECONDS = 1.0
# Of state, sums, data, order, tables and key, all but the data have an axis of members.
AXES = (0, 0, None, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What may differ between the members of a lot. For adam and adamw `momentum` is b1."""

    seed: int
    lr: float
    momentum: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class ManyResult(Setting):
    """One finished member: its setting and what came of it. The figures of one that diverged are None."""

    state: TrainState  # the last, on the host
    report: Report | None  # on the test images
    test_accuracy: float | None
    test_loss: float | None  # mean cross-entropy in nats
    test_accuracy_tta: float | None  # None also without eval.tta
    validation_accuracy: float | None  # what to choose a setting by; None also without a validation part
    diverged_at: int | None  # the step by which loss or parameters had stopped being finite
    seconds: float  # of training, without compilation and evaluation; of a group trained in one call its share

    def to_dict(self) -> dict[str, Any]:
        """Setting and figures as JSON values."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("state", "report")]
        return {name: getattr(self, name) for name in names}


def train_many(
    config: Config,
    *,
    seeds: Iterable[int] | None = None,
    settings: Iterable[Mapping[str, Any] | Setting] | None = None,
    how: How = "auto",
    chunk: int | None = None,
    on_result: Callable[[ManyResult], object] | None = None,
) -> list[ManyResult]:
    """Train `config` once per seed or setting; the results in the order given.

    Ways: "sequential" trains one after another, each spread over the devices as by `train`: on the same device its
    results have the same bits. "vmap" trains a whole group in one call, equal up to the rounding of floats. "devices"
    trains one member per device at a time. "auto" is "devices" where there are several, else "sequential": on a CPU
    vmap turns a convolution with a kernel of every member's own into a grouped one, and training takes about twice as
    long (scripts/benchmark.py many). On a GPU neither has been measured.

    Args:
      config: the experiment. Its intervals of evaluation and saving, and what it says on logging, mean nothing here.
      seeds: `config` once per seed.
      settings: fields of `Setting`; what a mapping leaves out is the configuration's.
      how: the way.
      chunk: members in one call of "vmap"; default all. Fewer need less memory.
      on_result: called with every result as soon as there is one.

    Raises:
      ConfigError, DataError: what the user can put right. A member that diverges is marked and stops no other.
    """
    members = make_settings(config, seeds, settings)
    configs = [with_setting(config, setting) for setting in members]
    how = choose_way(config, len(members)) if how == "auto" else how
    check(chunk is None or (how == "vmap" and chunk >= 1), "chunk", chunk, "give at least 1, and only with vmap")
    check(not config.train.debug_nans, "train.debug_nans", True, "a NaN stops no lot of runs; use `train`")
    results = []
    with compilation_cache(config):
        lot = Lot(config, _make_group(config, how, min(chunk or len(members), len(members))))
        for one in configs:
            plan_schedule(one, lot.plan)  # what the schedule refuses stops the lot before anything is trained
        for start in range(0, len(members), lot.group.size):
            part = slice(start, start + lot.group.size)
            for setting, trained in zip(members[part], lot.train(configs[part]), strict=True):
                results.append(lot.judge(setting, trained))
                if on_result is not None:
                    on_result(results[-1])
    return results


def choose_way(config: Config, count: int) -> How:
    """What "auto" stands for with so many members."""
    devices = config.distributed.devices or len(jax.devices())
    return "devices" if min(devices, count) > 1 else "sequential"


def make_settings(
    config: Config,
    seeds: Iterable[int] | None = None,
    settings: Iterable[Mapping[str, Any] | Setting] | None = None,
) -> list[Setting]:
    """The members of a lot, complete; raises `ConfigError` for none, for an unknown name and for the same one twice."""
    if (seeds is None) == (settings is None):
        raise ConfigError("Give train_many either seeds or settings (a setting may name a seed).")
    optim = config.optim
    default = Setting(config.train.seed, optim.lr, constant_momentum(optim), optim.weight_decay)
    given = [{"seed": seed} for seed in seeds] if seeds is not None else list(settings or ())
    check(len(given) > 0, "seeds" if seeds is not None else "settings", given, "give at least one")
    members, places = [_complete(one, default) for one in given], {}
    for i, member in enumerate(members):
        if member in places:
            raise ConfigError(f"Numbers {places[member]} and {i} of the lot are the same: {member}.")
        places[member] = i
    return members


def _complete(given: Mapping[str, Any] | Setting, default: Setting) -> Setting:
    if isinstance(given, Setting):
        return given
    check(isinstance(given, Mapping), "settings", given, "a setting is a mapping such as {'lr': 0.1}")
    names = [field.name for field in dataclasses.fields(Setting)]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
            raise ConfigError(f"{name!r} cannot differ within a lot: {hint}.")
    # NumPy's numbers are no Python numbers, which the configuration asks for.
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    return dataclasses.replace(default, **plain)


def with_setting(config: Config, setting: Setting) -> Config:
    """The configuration that `train` would need for this member; raises `ConfigError` for one that is not possible."""
    optim, schedule = config.optim, config.schedule
    if setting.lr != optim.lr and optim.name == "muon":
        # The rate of all but the kernels is compiled in as a multiple of Muon's own.
        raise ConfigError(
            f"lr = {setting.lr} cannot differ from optim.lr = {optim.lr} with muon, whose optim.aux_lr would be scaled"
            " with it: make a lot of its own for each rate, with --optim.lr."
        )
    if setting.momentum != constant_momentum(optim):
        has_momentum = optim.name != "adagrad"
        check(has_momentum, "momentum", setting.momentum, "adagrad has none, so nothing would differ")
        cycled = schedule.name == "onecycle" and schedule.cycle_momentum
        check(not cycled, "momentum", setting.momentum, "the schedule sets it; see schedule.cycle_momentum")
    name = "b1" if optim.name in ("adam", "adamw") else "momentum"
    values = {"lr": setting.lr, name: setting.momentum, "weight_decay": setting.weight_decay}
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(optim, **values),
        train=dataclasses.replace(config.train, seed=setting.seed),
    )


class Group(NamedTuple):
    """The members that one compiled call trains; stacked, every array of theirs has a leading axis of members."""

    size: int
    mesh: Mesh
    stacked: bool
    sharding: NamedSharding  # of what each member has of its own
    transform: Callable[[Callable[..., Any]], Callable[..., Any]]  # from one member's train_steps to the group's

    def stack(self, trees: Sequence[Any]) -> Any:
        """One pytree on the devices, of one for each member; the last stands in where there are too few."""
        trees = [*trees, *[trees[-1]] * (self.size - len(trees))]
        tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if self.stacked else trees[0]
        return jax.device_put(tree, self.sharding)

    def unstack(self, tree: Any) -> Iterator[Any]:
        """The pytree of every member, on the host."""
        tree = jax.device_get(tree)
        if not self.stacked:
            yield tree
            return
        for i in range(self.size):
            yield jax.tree.map(lambda leaf, i=i: leaf[i], tree)

    def each(self, function: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        """`function` of one member for all of the group, compiled; `axes` says which arguments have their axis."""
        return jax.jit(jax.vmap(function, axes) if self.stacked else function, out_shardings=self.sharding)


def _make_group(config: Config, how: How, count: int) -> Group:
    """The group of a way for so many members."""
    if how == "devices":
        devices = jax.devices()
        wanted = config.distributed.devices or len(devices)
        check(wanted <= len(devices), "distributed.devices", wanted, f"only {len(devices)} are here")
        devices = devices[: min(wanted, count)]
        # The step asks for its batch to be spread over "data": here one device.
        mesh = jax.make_mesh((len(devices), 1), ("member", "data"), axis_types=(AxisType.Auto,) * 2, devices=devices)
        sharding = NamedSharding(mesh, PartitionSpec("member"))
        return Group(len(devices), mesh, True, sharding, partial(_on_own_device, mesh))
    mesh = make_mesh(config)
    if how == "vmap":
        return Group(count, mesh, True, replicated(mesh), _in_one)
    check(how == "sequential", "how", how, "it must be auto, sequential, vmap or devices")
    return Group(1, mesh, False, replicated(mesh), lambda train_steps: train_steps)


def _in_one(train_steps: Callable[..., Any]) -> Callable[..., Any]:
    """All members of the group in the same operations."""

    def group_steps(*own: Any, count: int | jax.Array) -> Any:
        return jax.vmap(partial(train_steps, count=count), in_axes=AXES)(*own)

    return group_steps


def _on_own_device(mesh: Mesh, train_steps: Callable[..., Any]) -> Callable[..., Any]:
    """One member per device, in the operations that it would have alone."""
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec("member") for axis in AXES)

    def group_steps(*own: Any, count: int | jax.Array) -> Any:
        def alone(*parts: Any) -> Any:
            own = [p if axis is None else jax.tree.map(lambda x: x[0], p) for p, axis in zip(parts, AXES, strict=True)]
            return jax.tree.map(lambda x: x[None], train_steps(*own, count=count))

        # check_vma=False: the convolution's own gradients do not say what differs between the devices.
        options = {"axis_names": {"member"}, "check_vma": False}
        return jax.shard_map(alone, mesh=mesh, in_specs=specs, out_specs=specs[0], **options)(*own)

    return group_steps


class Trained(NamedTuple):
    """A member after its last update."""

    state: TrainState  # on the host
    diverged_at: int | None
    seconds: float


class Lot:
    """The fixed parts of all members: data on the device, network, compiled programs."""

    def __init__(self, config: Config, group: Group) -> None:
        self.config, self.group, everywhere = config, group, replicated(group.mesh)
        self.splits = load_data(config.data)
        images = self.splits.train
        self.plan = make_plan(config, len(images.labels), jax.default_backend())
        self.data = jax.device_put(DeviceData(jnp.asarray(images.images), jnp.asarray(images.labels)), everywhere)
        self.network = make_network(config, self.splits)
        self.predict = make_predictor(self.network.model, self.network.inputs)
        order = partial(epoch_order, n=len(images.labels), batch_size=config.train.batch_size)
        self.order = group.each(order, 0, None)
        self.is_finite = group.each(_is_finite, 0, 0)
        self.affordable = 1  # updates that took about `CALL_SECONDS` of late
        self.calls: dict[int | None, Programs] = {}  # by the side of the images; compiled for the first group

    def train(self, configs: Sequence[Config]) -> Iterator[Trained]:
        """Train a group to the plan's end, in the calls that `train` makes."""
        plan, count = self.plan, len(configs)
        state, tables, keys = self._begin(configs)
        zeros = self.group.stack([zero_sums()] * count)
        self._compile(state, zeros, self.data, self.order(keys, 0), tables, keys)
        order, step, diverged = None, 0, np.zeros(count, int)
        started = time.perf_counter()
        while step < plan.total_steps and not diverged.all():
            if step % plan.steps_per_epoch == 0:
                order = self.order(keys, step // plan.steps_per_epoch)
            sums, begin, end, called = zeros, step, plan.next_stop(step), time.perf_counter()
            while step < end:
                size = plan.next_call(step, self.affordable)
                call = self.calls[plan.side_at(step)](size)
                state, new_sums = call(state, sums, self.data, order, tables, keys)
                jax.block_until_ready(sums)  # at most one call runs ahead, so that Ctrl-C is answered
                sums, step = new_sums, step + size
            finite = np.atleast_1d(jax.device_get(self.is_finite(state.params, sums["loss"])))[:count]
            diverged[(diverged == 0) & ~finite] = step
            self.affordable = max(1, int(CALL_SECONDS * (step - begin) / (time.perf_counter() - called)))
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - started) / count
        for own, at in zip(self.group.unstack(state), diverged, strict=False):
            yield Trained(own, int(at) or None, seconds)

    def judge(self, setting: Setting, trained: Trained) -> ManyResult:
        """The final weights on every test image, and on every validation image if there are any."""
        names = ("report", "test_accuracy", "test_loss", "test_accuracy_tta", "validation_accuracy")
        figures: dict[str, Any] = dict.fromkeys(names)
        if trained.diverged_at is None:
            variables = jax.device_put(trained.state.eval_variables, replicated(self.group.mesh))
            report = self._evaluate(variables, self.splits.test)
            loss = report.loss if math.isfinite(report.loss) else None
            figures |= {"report": report, "test_accuracy": report.accuracy, "test_loss": loss}
            if self.config.eval.tta != "none":
                with_tta = self._evaluate(variables, self.splits.test, self.config.eval.tta)
                figures["test_accuracy_tta"] = with_tta.accuracy
            if self.splits.validation is not None:
                figures["validation_accuracy"] = self._evaluate(variables, self.splits.validation).accuracy
        return ManyResult(**dataclasses.asdict(setting), **trained._asdict(), **figures)

    def _begin(self, configs: Sequence[Config]) -> tuple[TrainState, Hyper, jax.Array]:
        """Initial states, tables of rates by update, and keys of a group."""
        states, tables = [], []
        for config in configs:
            state, self.optimizer = initial_state(config, self.network, self.splits.train.images)
            schedule = plan_schedule(config, self.plan)
            decay = np.full(self.plan.total_steps, config.optim.weight_decay)
            states.append(state)
            tables.append(jax.tree.map(jnp.float32, Hyper(schedule.lr, schedule.momentum, decay)))
        keys = [run_key(config.train.seed) for config in configs]
        return self.group.stack(states), self.group.stack(tables), self.group.stack(keys)

    def _compile(self, *arguments: Any) -> None:
        """Compile what the plan calls for, side by side of the images, unless a group before has needed it."""
        if self.calls:
            return
        config, network, plan = self.config, self.network, self.plan
        for side in {side for side, _ in plan.phases} or {None}:
            inputs, classes = network._replace(side=side).inputs, self.splits.num_classes
            own = make_train_steps(network.model, self.optimizer, config, inputs, classes, self.group.mesh)
            counts = sorted(count for seen, count in plan.calls() if seen == side)
            self.calls[side] = compile_calls(self.group.transform(own), arguments, plan, counts, self.group.sharding)

    def _evaluate(self, variables: Any, part: Dataset, tta: TestTimeAugmentation = "none") -> Report:
        names, mesh = self.splits.label_names, self.group.mesh
        split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        size = self.config.eval.batch_size
        return evaluate(
            self.predict, variables, part.images, part.labels, names, batch_size=size, tta=tta, sharding=split
        )


def _is_finite(params: Any, loss: jax.Array) -> jax.Array:
    return jnp.isfinite(loss) & jnp.isfinite(global_norm(params))
