"""Where the time of an update goes: measured parts, a trace for Perfetto, the compiler's counts, the machine's speed.

All is done on copies of the state, whose results are thrown away: the run that follows knows nothing of it.
"""

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jax_cifar.backend.compiler import compiler_options
from jax_cifar.backend.hosts import several
from jax_cifar.backend.memory import program_memory
from jax_cifar.config import Config
from jax_cifar.errors import check
from jax_cifar.evaluation.latency import measure_latencies
from jax_cifar.files import write_record
from jax_cifar.models.network import compute_dtype
from jax_cifar.training.programs import compiled_form, trace_calls
from jax_cifar.training.session import Session
from jax_cifar.training.state import TrainState
from jax_cifar.training.step_parts import PARTS, make_part, repeat
from jax_cifar.training.steps import make_train_steps

PROFILE = "profile"  # in the run folder
TRACE, FIGURES = "trace.json.gz", "profile.json"
CALL_SECONDS = 0.3  # of a call that is timed, about, where it can be of any length
WAY_SECONDS = 2.0  # for which every program is called, again and again
MATMUL_SIZES = {"cpu": 1024}  # rows and columns of the machine's matmul; elsewhere:
MATMUL_SIZE = 8192


@dataclasses.dataclass(frozen=True)
class Profile:
    """What was measured of an update."""

    step: int  # updates done before
    images: int  # of an update
    traced: int  # updates in the trace
    seconds: Mapping[str, float]  # of every part: what a program takes longer that does this one, too
    rest: float  # seconds of the whole that no part takes: norms of gradient and update, averages, what is skipped
    whole: float  # seconds of an update of the run's own program
    flops: float  # operations that the update asks for; nan where the compiler does not tell
    bytes_accessed: float  # read and written by the compiled update
    memory: float  # bytes that the compiled program needs at the same time, with state and images
    matmul: Mapping[str, float]  # this machine's own, in operations a second, by type
    dtype: str  # of the network's activations

    def facts(self) -> dict[str, str]:
        """Lines for the console."""
        shares = {**self.seconds, "rest": self.rest, "whole update": self.whole}
        lines = {f"  {name}": f"{1e3 * s:9.3f} ms  {s / self.whole:6.1%}" for name, s in shares.items()}
        speed, best = self.flops / self.whole, self.matmul[self.dtype]
        measured = ", ".join(f"{value / 1e9:,.0f} in {name}" for name, value in self.matmul.items())
        return {
            "profile": f"an update of {self.images:,} images after step {self.step:,}, medians of calls in turn",
            **lines,
            "operations": f"{self.flops / 1e9:,.3g} GFLOP an update: {speed / 1e9:,.1f} GFLOP/s, {speed / best:.0%} of"
            f" this machine's matmul ({measured})",
            "memory": f"{self.memory / 1e6:,.1f} MB at most; {self.bytes_accessed / 1e6:,.1f} MB read and written",
            "trace": f"{self.traced} updates in {PROFILE}/{TRACE}: open it at https://ui.perfetto.dev",
        }


def check_profile(config: Config, updates: int | None) -> None:
    """Raise `ConfigError` where so many updates cannot be profiled."""
    if updates is not None:
        check(updates >= 1, "--profile", updates, "it must be at least 1")
        check(not config.train.debug_nans, "--profile", updates, "--debug-nans does every update in another way")
        check(not several(), "--profile", updates, "it looks into one process: leave it out where several train a run")


def profile_step(session: Session, state: TrainState, updates: int, folder: Path) -> Profile:
    """Measure the update that comes next, and write `trace.json.gz` and `profile.json` into a folder.

    The parts are separate programs, each of which does one part more than the last; all of them and the run's own are
    timed in turn, and a part's time is the difference of two medians. What the run's own takes longer than the longest
    of them is `rest`. `updates` go into the trace, at least.
    """
    step, plan = int(state.step), session.plan
    inputs = session.inputs(step)
    whole = partial(session.program, step)
    if plan.steps_per_call is None:
        alone = measure_latencies({"": _call(whole(1), state, inputs)}, seconds=0, least=1)[""].p50
        count = max(1, min(updates, int(CALL_SECONDS / alone)))
    else:
        count = plan.next_call(step)
    calls = {name: _call(program, state, inputs) for name, program in _programs(session, state, step, count).items()}
    calls["whole"] = own = _call(whole(count), state, inputs)
    took = {name: each.p50 / count for name, each in measure_latencies(calls, WAY_SECONDS, least=3).items()}
    rounds = -(-updates // count)
    write_trace(lambda: [own() for _ in range(rounds)], folder)
    ends = [0.0, *(took[part] for part in PARTS)]
    dtype = str(compute_dtype(session.config.train.dtype))
    compiled = compiled_form(whole(count))
    found = Profile(
        step=step,
        images=session.config.train.batch_size,
        traced=rounds * count,
        seconds={part: end - begin for part, begin, end in zip(PARTS, ends, ends[1:], strict=False)},
        rest=took["whole"] - ends[-1],
        whole=took["whole"],
        flops=operations(session, state, step),
        bytes_accessed=_analysis(compiled).get("bytes accessed", math.nan),
        memory=program_memory(compiled)[0],
        matmul={name: matmul_speed(name) for name in dict.fromkeys(("float32", dtype))},
        dtype=dtype,
    )
    write_record(folder / FIGURES, dataclasses.asdict(found))
    return found


def operations(session: Session, state: TrainState, step: int) -> float:
    """Floating-point operations of one update, as the compiler counts them before it changes anything.

    Counted in the form that the kernels have on a GPU: those for a CPU work in loops, of which the compiler counts one
    round, and Winograd's convolutions do less than was asked for. Batches are whole, for the same reason. A loop inside
    a network of one's own counts once.
    """
    config = dataclasses.replace(session.config, optim=dataclasses.replace(session.config.optim, accumulate=1))
    network = session.network.at_side(session.plan.side_at(step))
    one = partial(make_train_steps(network, session.optimizer, config, session.replicas.mesh), count=1)
    platforms = ("cuda",) if jax.default_backend() == "cpu" else None
    lowered = jax.jit(one).trace(state, *session.inputs(step)).lower(lowering_platforms=platforms)
    return _analysis(lowered).get("flops", math.nan)


def matmul_speed(dtype: str) -> float:
    """Operations a second of a product of two square matrices, two for each multiplication with its addition."""
    size = MATMUL_SIZES.get(jax.default_backend(), MATMUL_SIZE)
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(lambda matrix: matrix @ matrix, compiler_options=compiler_options())
    timed = measure_latencies({"": lambda: jax.block_until_ready(product(matrix))}, WAY_SECONDS / 4, least=3)
    return 2 * size**3 / timed[""].p50


def write_trace(work: Callable[[], object], folder: Path) -> Path:
    """Do the work, and write what the devices and the host did meanwhile as `trace.json.gz`, which Perfetto opens."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with jax.profiler.trace(scratch, create_perfetto_trace=True):
            work()
        (written,) = Path(scratch).rglob("perfetto_trace.json.gz")
        return Path(shutil.move(written, folder / TRACE))


def _programs(session: Session, state: TrainState, step: int, count: int) -> dict[str, Callable[..., Any]]:
    """For every part what does the steps up to and with it, so many times, compiled as the run's own program is."""
    config, plan, replicas = session.config, session.plan, session.replicas
    network = session.network.at_side(plan.side_at(step))
    programs = {}
    for last in PARTS:
        steps = repeat(make_part(network, session.optimizer, config, replicas.mesh, last))
        arguments = (state, *session.inputs(step))
        calls = trace_calls(steps, arguments, plan, [count], replicas.sharding, config.train.deterministic)
        programs[last] = calls.compile()(count)
    return programs


def _call(program: Callable[..., Any], state: TrainState, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """The program on a copy of the state, from where its last call ended; returns when it is done."""
    now = [jax.tree.map(jnp.copy, state)]

    def call() -> None:
        results = jax.block_until_ready(program(now[0], *inputs))
        now[0] = results[0]

    return call


def _analysis(stage: Any) -> Mapping[str, float]:
    """What the compiler counts of a program, in whatever form this version of jax gives it."""
    found = stage.cost_analysis()
    return (found[0] if isinstance(found, list) else found) or {}
