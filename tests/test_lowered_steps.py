"""What the train steps of real experiments are on GPUs and TPUs: lowered for them, never compiled."""

import dataclasses
import re

import jax
import pytest
from lowered import PLATFORMS, Operation, Program, Step, lowered_step

from jax_cifar import load_config

# What is not in the program of a step: the host, other memories, and kernels of a library's own.
AWAY = ("custom_call", "infeed", "outfeed", "send", "recv", "optimization_barrier")
SLOW = pytest.mark.slow
STEPS = [pytest.param(("cifar10_simple_cnn.py", devices), id=f"simple_cnn-{devices}") for devices in (1, 8)] + [
    pytest.param((name, devices), id=f"{network}-{devices}", marks=SLOW)
    for network, name in (("speedrun_net", "cifar10_speedrun.py:94"), ("resnet34", "cifar100_resnet34.py:plain"))
    for devices in (1, 8)
]


@pytest.fixture(scope="module", params=STEPS)
def step(request) -> Step:
    """Traced once for both platforms."""
    name, devices = request.param
    config = load_config(f"configs/{name}")
    if name == "cifar10_simple_cnn.py":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, norm="batch"))
    return lowered_step(config, 100 if "cifar100" in name else 10, devices)


@pytest.fixture(params=PLATFORMS)
def program(step, request) -> Program:
    return step.programs[request.param]


def kernels(step: Step) -> list[tuple[int, ...]]:
    """Shapes of the convolutions' kernels."""
    return [leaf.shape for leaf in jax.tree.leaves(step.state.params) if leaf.ndim == 4]


def convolutions_amiss(program: Program, step: Step) -> list[Operation]:
    """Those that are not bfloat16, or all of them where some are missing: each layer has one, and two gradients."""
    found = program.named("stablehlo.convolution")
    # A frozen layer has no gradient, and the first that is trained none for its input.
    least = 3 * len(kernels(step)) - (2 if step.config.model.name == "speedrun_net" else 1)
    wrong = [each for each in found if {array.dtype for array in each.arrays} != {"bf16"}]
    return wrong if least <= len(found) <= 4 * len(kernels(step)) else found


def wide_products(program: Program) -> list[Operation]:
    """Matrix products of anything but bfloat16."""
    products = program.named("stablehlo.dot_general")
    return [each for each in products if {array.dtype for array in each.arrays} != {"bf16"}]


def of_a_batch(operation: Operation, step: Step) -> bool:
    """Whether it reads or makes something of every image."""
    return any(step.config.train.batch_size in array.shape for array in operation.arrays)


def narrow_sums(program: Program, step: Step) -> list[Operation]:
    """Sums over the images of a batch that are not taken in float32."""
    sums = [each for each in program.named("stablehlo.reduce") if "applies stablehlo.add" in each.text]
    sums = [each for each in sums if re.search(r"dimensions = \[0\b", each.text) and of_a_batch(each, step)]
    assert sums
    return [each for each in sums if each.arrays[0].dtype == "bf16"]


def test_convolutions_are_jaxs_own_in_bfloat16(program, step):
    assert convolutions_amiss(program, step) == []


def test_products_are_bfloat16_but_for_the_heads_and_muons(program, step):
    wide = wide_products(program)
    of_head = [each for each in wide if of_a_batch(each, step)]
    assert len(of_head) == 3
    # Of the kernels of one shape together: three iterations of three products.
    shapes = {(size[0] * size[1] * size[2], size[3]) for size in kernels(step)}
    muon = step.config.optim.name == "muon"
    assert len(wide) - len(of_head) == (9 * (len(shapes) - 1) if muon else 0)


def test_sums_over_a_batch_are_taken_in_float32(program, step):
    assert narrow_sums(program, step) == []


def test_nothing_is_asked_of_the_host_or_of_a_library(program):
    assert [each.text for each in program.operations if each.name.endswith(AWAY)] == []


def test_it_loops_over_updates_and_over_nothing_else(program):
    assert len(program.named("stablehlo.while")) == 1


def test_the_whole_state_is_donated_and_nothing_else(program, step):
    assert program.donated == len(jax.tree.leaves(step.state))


def test_the_batch_is_spread_over_the_devices(program, step):
    assert program.devices == step.devices
    index = [each for each in program.named("sdy.sharding_constraint") if '[{"data"}]' in each.text]
    assert index and of_a_batch(index[0], step)


def test_the_kernels_of_a_cpu_are_noticed():
    """The same step, as it is lowered for a CPU."""
    step = lowered_step(load_config("configs/cifar10_simple_cnn.py"), 10, 1, platforms=("cpu",))
    program = step.programs["cpu"]
    assert convolutions_amiss(program, step) and len(program.named("stablehlo.while")) > 1
