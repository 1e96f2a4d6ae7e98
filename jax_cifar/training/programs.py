"""The compiled calls of a run: so many updates each, for every side of the images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_cifar.backend.compiler import compiler_options
from jax_cifar.backend.mesh import place
from jax_cifar.backend.portions import by_shares
from jax_cifar.backend.stored import Program, Stored
from jax_cifar.config import Config
from jax_cifar.config.files import flat, to_dict
from jax_cifar.errors import Diverged
from jax_cifar.evaluation.metrics import Sums
from jax_cifar.optim.rules import global_norm
from jax_cifar.training.first_nan import first_nonfinite
from jax_cifar.training.plan import Plan
from jax_cifar.training.state import TrainState

# What may differ between the runs of a program: it is data.
VARIED = ("train.seed", "optim.lr", "optim.momentum", "optim.b1", "optim.weight_decay")

Programs = Callable[[int], Callable[..., Any]]  # number of updates -> what makes them in one call


def program_of(config: Config) -> str:
    """What two configurations have in common that one compiled program can train."""
    data = {"optim.lr"} if config.optim.name == "muon" else set()  # see `training.many.check_varied`
    fields = flat(to_dict(config)).items()
    return repr(sorted((name, repr(value)) for name, value in fields if name not in set(VARIED) - data))


class TracedCalls(NamedTuple):
    """The calls of a run before they are compiled."""

    # number of updates -> `jax.stages.Traced`, None where it is stored; the key None: of the one for all numbers
    traces: Mapping[Any, Any]
    compile: Callable[[], Programs]


def trace_calls(
    train_steps: Callable[..., Any],
    arguments: tuple[Any, ...],
    plan: Plan,
    counts: Sequence[int],
    sharding: NamedSharding,
    deterministic: bool = False,
    model: str | None = None,
    stored: Stored | None = None,
) -> TracedCalls:
    """Trace the programs for a number of updates, in which all that is wrong with them shows.

    On a CPU it is one program for all numbers, elsewhere one for each of `counts`: where the number is known when
    compiling, a GPU need not ask the host after every update whether to go on. `arguments` are those of `train_steps`
    but the number; what comes out is spread by `sharding`; `deterministic` as `train.deterministic`. With the class of
    the network as `model` every call looks for values that are not finite and says where they come from. What is
    `stored` is not traced.
    """
    stored = stored or Stored()
    train_steps = by_shares(train_steps, sharding.mesh)
    jit = partial(jax.jit, out_shardings=sharding, compiler_options=compiler_options(deterministic))
    if plan.steps_per_call is None:

        def any_number(count: jax.Array, *arguments: Any) -> Any:
            return train_steps(*arguments, count=count)

        def number(count: int) -> jax.Array:
            return place(np.int32(count), NamedSharding(sharding.mesh, PartitionSpec()))

        whole = stored.program("any number of updates", jit(any_number, donate_argnums=1), number(1), *arguments)

        def compile_one() -> Programs:
            program = whole.compile()
            return lambda count: partial(program, number(count))

        return TracedCalls({None: whole.traced}, compile_one)
    # Finding the operation that makes a NaN means doing all again, for which a donated state would be gone.
    donated = () if model else (0,)

    def program_for(count: int, *given: Any) -> Program:
        steps = jit(partial(train_steps, count=count), donate_argnums=donated)
        return stored.program(f"{count} updates", steps, *given)

    each = {count: program_for(count, *arguments) for count in counts}

    def compile_each() -> Programs:
        programs = {count: program.compile() for count, program in each.items()}

        def once(count: int) -> Callable[..., Any]:
            """A number that the plan has not: a run that was stopped elsewhere goes on to the next stop with it."""

            def call(*given: Any) -> Any:
                programs[count] = program_for(count, *given).compile()
                return programs[count](*given)

            return call

        def of_number(count: int) -> Callable[..., Any]:
            program = programs.get(count) or once(count)
            return _finding_nans(partial(train_steps, count=count), program, model) if model else program

        return of_number

    return TracedCalls({count: program.traced for count, program in each.items()}, compile_each)


def compiled_form(program: Callable[..., Any]) -> Any:
    """What the compiler tells of a program; None of one that --debug-nans watches."""
    compiled = program.func if isinstance(program, partial) else program
    return compiled if hasattr(compiled, "memory_analysis") else None


def _finding_nans(steps: Callable[..., Any], program: Callable[..., Any], model: str) -> Callable[..., Any]:
    """`program`, which is `steps` compiled; raises `Diverged` with operation and layer where it is not finite."""

    def watched(state: TrainState, *arguments: Any) -> tuple[TrainState, Sums]:
        new_state, sums = program(state, *arguments)
        if _is_finite(new_state, sums):
            return new_state, sums
        origin = first_nonfinite(lambda *given: (result := steps(*given), parameter_norm(result[0])), state, *arguments)
        told = origin.describe(model) if origin else "done one operation at a time it is finite: a matter of rounding."
        raise Diverged(
            f"The update after step {int(state.step):,} is not finite: {told}\n"
            "Try a lower --optim.lr or --optim.clip_norm 1."
        )

    return watched


def parameter_norm(state: TrainState) -> jax.Array:
    """Norm of all parameters; not finite where one of them is not, or is huge."""
    with jax.named_scope("parameter_norm"):
        return global_norm(state.params)


@jax.jit
def _is_finite(state: TrainState, sums: Sums) -> jax.Array:
    finite = jnp.isfinite(jnp.stack((sums["loss"], parameter_norm(state)))).all()
    return finite & (sums["skipped"] == 0) if "skipped" in sums else finite
