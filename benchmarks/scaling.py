"""What many GPUs can be expected to do: a model, computed from the measured steps of one. No such machine was measured.

A step on n devices is a step of one with the same number of images on each device, and then the sums over all devices,
none of which overlaps with anything: two on the way forward of every batch norm (the variance needs the mean), one on
its way back, and one of all gradients, in float32, with loss and counts. So many are in the programs that XLA compiles
of SimpleCNN and SpeedrunNet for 8 devices. A sum of S bytes takes

    latency(n) + 2 (n - 1) / n * S / bandwidth

which is a ring's time (nccl-tests, doc/PERFORMANCE.md), with the latency that NCCL's own model gives its trees
(NVIDIA/nccl, src/graph/tuning.cc): for so short a sum NCCL takes those. Measured steps are read from RESULTS.md.
"""

import argparse
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.processes import ROOT
from jax_cifar.config.files import load_config
from jax_cifar.errors import check
from jax_cifar.lab import tables
from jax_cifar.models import create_model

NODE = 8  # devices that NVLink connects
NVLINK = 370e9  # bytes/s that a ring over a node's H100 gets: NVIDIA/nccl-tests, issue 212
BASE, NVLINK_HOP, NETWORK_HOP = 6.8e-6, 0.6e-6, 5.0e-6  # seconds: NCCL's Tree/LL
FORWARD, BACKWARD, OTHERS = 2, 1, 1  # sums of a batch norm each way, and those of a step beside
# A run shorter than this tells more of its start than of its steps.
SHORTEST = 1.0
SPEEDRUN = "configs/cifar10_speedrun.py:94"


class Network(NamedTuple):
    """What connects nodes."""

    name: str
    bandwidth: float  # bytes/s of a ring between nodes


NETWORKS = (
    Network("400 Gb/s for each GPU", 8 * 46e9),  # 46 to 48 GB/s each: NVIDIA/nccl-tests, issue 290
    Network("200 Gb/s for each node", 24e9),  # NVIDIA/nccl-tests, issue 119
)


@dataclass(frozen=True)
class Step:
    """An update that one device was measured to make."""

    name: str
    images: int
    seconds: float
    parameters: int
    norms: int  # batch norms


Shares = Mapping[
    str, Mapping[int, float | None]
]  # of the time that computes, by the name of the network and the devices


@dataclass(frozen=True)
class Expected:
    """What is expected of a step on many devices."""

    step: Step
    weak: Shares  # as many images on each device
    strong: Shares  # as many images in all; None where they do not divide

    def __str__(self) -> str:
        return self.step.name


QUICK: dict[str, Any] = {}  # it takes no time


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--devices", metavar="N", type=int, nargs="+", default=[8, 64, 512], help="default: 8 64 512")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return len(measured())


def measure(options: argparse.Namespace) -> Iterator[Expected]:
    """Compute what is expected of every step that was measured."""
    for devices in options.devices:
        expected = f"it must be 1 to {NODE}, or a multiple of {NODE}"
        check(devices >= 1 and (devices < NODE or devices % NODE == 0), "--devices", devices, expected)
    for step in measured():
        weak: Shares = {net.name: {n: efficiency(step, n, net) for n in options.devices} for net in NETWORKS}
        strong = {net.name: {n: unchanged(step, n, net) for n in options.devices} for net in NETWORKS}
        yield Expected(step, weak, strong)


@cache
def measured() -> list[Step]:
    """The steps of one H100 that RESULTS.md has."""
    section = (ROOT / "RESULTS.md").read_text().partition("## On a GPU")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(--config .*?)` \| [\d.]+% \| ([\d,]+) \| ([\d.]+) s", section, re.MULTILINE)
    steps = []
    for words, rate, seconds in rows:
        _, file, *overrides = shlex.split(words)
        if float(seconds) >= SHORTEST:
            steps.append(describe(file, overrides, float(rate.replace(",", ""))))
    (seconds,) = re.findall(r"training \(([\d.]+) s", section)
    return [*steps, describe(SPEEDRUN, [], rate_of_speedrun(float(seconds)))]


def rate_of_speedrun(seconds: float) -> float:
    """Images/s of a run of 50,000 images an epoch."""
    train = load_config(ROOT / SPEEDRUN).train
    return train.epochs * (50_000 // train.batch_size) * train.batch_size / seconds


def describe(file: str, overrides: Sequence[str], images_per_second: float) -> Step:
    """The step of an experiment on CIFAR-10, of which the images/s are known."""
    config = load_config(ROOT / file, overrides)
    network, batch = create_model(config.model, 10, jnp.float32), config.train.batch_size
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes: Any = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    norms = len(jax.tree.leaves(shapes.get("batch_stats", {}))) // 2
    width = f" of width {config.model.width}" if config.model.width else ""
    name = f"{config.model.name}{width}, batch {batch}"
    return Step(name, batch, batch / images_per_second, parameters, norms)


def efficiency(step: Step, devices: int, network: Network, seconds: float | None = None) -> float:
    """Share of the time that computes, which takes `seconds`, those of the step unless they are given."""
    compute = seconds or step.seconds
    return compute / (compute + sums(step, devices, network))


def unchanged(step: Step, devices: int, network: Network) -> float | None:
    """The same with the batch as it was, so that each device computes for its share of the time, at best."""
    return None if step.images % devices else efficiency(step, devices, network, step.seconds / devices)


def sums(step: Step, devices: int, network: Network) -> float:
    """Seconds that the sums of a step take."""
    bandwidth = NVLINK if devices <= NODE else min(NVLINK, network.bandwidth)
    return count_sums(step) * latency(devices) + 2 * (devices - 1) / devices * 4 * step.parameters / bandwidth


def count_sums(step: Step) -> int:
    """How many there are in a step."""
    return (FORWARD + BACKWARD) * step.norms + OTHERS


def latency(devices: int) -> float:
    """Seconds of a sum of next to nothing: to and fro in a chain within each node, and in a tree over the nodes."""
    if devices == 1:
        return 0.0
    nodes = max(1, devices // NODE)
    return BASE + 2 * ((devices // nodes - 1) * NVLINK_HOP + math.log2(nodes) * NETWORK_HOP)


def table(cases: Sequence[Expected]) -> str:
    """The steps, and a table for each network."""
    head = ["step", "images/s of one", "ms", "parameters", "batch norms", "sums"]
    rows = []
    for case in cases:
        step = case.step
        figures = [f"{step.images / step.seconds:,.0f}", f"{1e3 * step.seconds:.3g}", f"{step.parameters:,}"]
        rows.append([step.name, *figures, str(step.norms), str(count_sums(step))])
    parts = [tables.markdown(head, rows)]
    for network in NETWORKS:
        devices = list(cases[0].weak[network.name])
        head = [network.name, *(f"{n} devices" for n in devices), *(f"{n}, batch unchanged" for n in devices)]
        rows = []
        for case in cases:
            shares = [*case.weak[network.name].values(), *case.strong[network.name].values()]
            rows.append([case.step.name, *("-" if share is None else f"{share:.0%}" for share in shares)])
        parts.append(tables.markdown(head, rows))
    return "\n\n".join(parts)


def as_json(suite: str, cases: Sequence[Expected]) -> dict[str, Any]:
    """What the tables show, and the figures of the machine that they rest on."""
    return {
        "suite": suite,
        "nvlink_bytes_per_second": NVLINK,
        "latency_seconds": {n: latency(n) for n in cases[0].weak[NETWORKS[0].name]},
        "networks": {network.name: network.bandwidth for network in NETWORKS},
        "cases": [asdict(case) for case in cases],
    }
