"""Train steps of real experiments, lowered on a CPU for platforms that are not here, and what their programs hold.

`jax.default_backend` says "gpu" while a step is traced, as what asks for it decides there; where JAX itself asks, it
goes by the platform that a program is lowered for. Devices are those of an abstract mesh: none is needed.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jax_cifar.config import Config
from jax_cifar.config.spec import InputSpec
from jax_cifar.models import INIT_IMAGES
from jax_cifar.optim.rules import Hyper
from jax_cifar.training.plan import make_plan
from jax_cifar.training.programs import trace_calls
from jax_cifar.training.session import make_network
from jax_cifar.training.state import TrainState, initial_state
from jax_cifar.training.steps import DeviceData, make_train_steps, zero_sums

IMAGES, UPDATES = 50_000, 2  # of the data set; in a call
PLATFORMS = ("cuda", "tpu")

_OPERATION = re.compile(r'(?:^|= )"?((?:stablehlo|chlo|sdy)\.\w+)')
_TENSOR = re.compile(r"tensor<(?:([\dx]+)x)?(\w+)>")


class Array(NamedTuple):
    """Shape and type of an operand or a result."""

    shape: tuple[int, ...]
    dtype: str  # as MLIR has it: bf16, f32, ui8


class Operation(NamedTuple):
    """One line of a program."""

    name: str
    text: str
    arrays: list[Array]  # operands, then the result


class Program(NamedTuple):
    """A program as it is handed to the compiler of a platform."""

    operations: list[Operation]
    donated: int  # arguments whose memory the results may take
    devices: int

    def named(self, *names: str) -> list[Operation]:
        """The operations of these names."""
        return [operation for operation in self.operations if operation.name in names]


class Step(NamedTuple):
    """The train step of an experiment over so many devices."""

    config: Config
    devices: int
    state: TrainState  # shapes
    programs: dict[str, Program]  # by platform


def lowered_step(config: Config, classes: int, devices: int, platforms: Sequence[str] = PLATFORMS) -> Step:
    """Trace the step of an experiment on CIFAR once, as for an accelerator, and lower it for each platform."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        state, traced = _trace(config, classes, devices)
        texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in platforms}
    return Step(config, devices, state, {name: parse(text) for name, text in texts.items()})


def _trace(config: Config, classes: int, devices: int) -> tuple[TrainState, Any]:
    mesh = AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    spec = InputSpec((32, 32, 3), (0.5,) * 3, (0.25,) * 3, None, tuple(map(str, range(classes))))
    network, plan = make_network(config, spec), make_plan(config, IMAGES, "gpu")
    start, optimizer = initial_state(config, network, np.zeros((INIT_IMAGES, 32, 32, 3), np.uint8))

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    state, sums, key = jax.eval_shape(lambda: (start, zero_sums(config), jax.random.key(0)))
    data = DeviceData(shape(IMAGES, 32, 32, 3, dtype=jnp.uint8), shape(IMAGES, dtype=jnp.int32))
    order = shape(plan.steps_per_epoch, config.train.batch_size, dtype=jnp.int32)
    arguments = (state, sums, data, order, Hyper(*[shape(plan.total_steps)] * 3), key)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), arguments)
    steps = make_train_steps(network, optimizer, config, mesh)
    calls = trace_calls(steps, arguments, plan, [UPDATES], everywhere)
    return state, calls.traces[UPDATES]


def parse(text: str) -> Program:
    """The operations of a StableHLO program, line by line."""
    operations, donated, devices = [], 0, 1
    for line in text.splitlines():
        if "func.func public @main" in line:
            donated = line.count("tf.aliasing_output") + line.count("jax.buffer_donor")
        elif line.startswith("module"):
            devices = int(re.findall(r"num_partitions = (\d+)", line)[0])
        elif found := _OPERATION.search(line.strip()):
            arrays = [
                Array(tuple(map(int, sizes.split("x"))) if sizes else (), dtype)
                for sizes, dtype in _TENSOR.findall(line)
            ]
            operations.append(Operation(found[1], line.strip(), arrays))
    return Program(operations, donated, devices)
