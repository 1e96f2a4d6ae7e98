"""The compiled calls of a run: so many updates each, for every side of the images."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jax_cifar.backend.compiler import compiler_options
from jax_cifar.errors import Diverged
from jax_cifar.training.plan import Plan

Programs = Callable[[int], Callable[..., Any]]  # number of updates -> what makes them in one call


def trace_calls(
    train_steps: Callable[..., Any],
    arguments: tuple[Any, ...],
    plan: Plan,
    counts: Sequence[int],
    sharding: NamedSharding,
    debug_nans: bool = False,
) -> Callable[[], Programs]:
    """Trace the programs for a number of updates, in which all that is wrong with them shows; what comes compiles them.

    On a CPU it is one program for all numbers, elsewhere one for each of `counts`: where the number is known when
    compiling, a GPU need not ask the host after every update whether to go on. `arguments` are those of `train_steps`
    but the number; what comes out is spread by `sharding`.
    """
    jit = partial(jax.jit, out_shardings=sharding, compiler_options=compiler_options())
    if plan.steps_per_call is None:

        def any_number(count: jax.Array, *arguments: Any) -> Any:
            return train_steps(*arguments, count=count)

        def number(count: int) -> jax.Array:
            return jax.device_put(jnp.int32(count), NamedSharding(sharding.mesh, PartitionSpec()))

        traced = jit(any_number, donate_argnums=1).trace(number(1), *arguments)

        def compile_one() -> Programs:
            program = traced.lower().compile()
            return lambda count: partial(program, number(count))

        return compile_one
    # Finding the operation that makes a NaN means running it again, which a donated state forbids.
    donated = () if debug_nans else (0,)
    calls = {count: jit(partial(train_steps, count=count), donate_argnums=donated) for count in counts}
    traces = {count: call.trace(*arguments) for count, call in calls.items()}
    if debug_nans:
        return lambda: calls.__getitem__
    return lambda: {count: trace.lower().compile() for count, trace in traces.items()}.__getitem__


@contextlib.contextmanager
def finding_nans(wanted: bool, step: int) -> Iterator[None]:
    """With --debug-nans JAX raises at the operation; turn that into a stop of the run that names it."""
    try:
        # As a context: the global setting is forgotten once any code inside JAX has used the context form.
        with jax.debug_nans(True) if wanted else contextlib.nullcontext():
            yield
    except FloatingPointError as error:
        raise Diverged(f"A NaN appeared after step {step:,}: {error}") from error
