"""Where a NaN comes from: a computation done again, one operation after another, until one makes it.

Operations know the scope that they were traced in, and Flax names a scope after every layer, also in the gradient: so
the first operation whose result holds a NaN that none of its operands held tells layer and direction, too.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Operations that do nothing but another jaxpr, found under one of these names.
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "checkpoint")
BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# Operations compiled together: compiling takes all the time, of each alone minutes.
PIECE = 32


class Place(NamedTuple):
    """An operation, and the scopes that it was traced in: "div" in "transpose(jvp(ResNet))/layer4_1/bn2"."""

    operation: str
    scope: str

    def describe(self, model: str) -> str:
        """`div in layer4_1/bn2 (backward)`; `model` is the class of the network, whose own scope is left out."""
        names = re.findall(r"[^()/]+(?=[)/]|$)", self.scope)
        inside = model in names
        names = names[names.index(model) + 1 :] if inside else names
        where = "/".join(names) or (model if inside else "the step")
        way = " (backward)" if "transpose(" in self.scope else " (forward)" if inside else ""
        return f"{self.operation} in {where}{way}"


class Origin(NamedTuple):
    """Which operation made the first NaN, or else infinity; and what made the infinity that it made the NaN of."""

    kind: str  # "a NaN" or "an infinity"
    place: Place
    infinity: Place | None

    def describe(self, model: str) -> str:
        """One sentence, or two."""
        first = f"{self.kind} came from {self.place.describe(model)}."
        return first if self.infinity is None else f"{first} Its infinity came from {self.infinity.describe(model)}."


class _Value(NamedTuple):
    array: Any
    infinity: Place | None = None  # what made the infinity that the array holds


class _Found(Exception):
    pass


def first_nonfinite(function: Callable[..., Any], *arguments: Any) -> Origin | None:
    """What made the first NaN of `function(*arguments)`, or the first infinity among its results where there is no NaN.

    None where both stay out, as they may where a compiled program rounds otherwise. Arguments are pytrees of arrays
    without a NaN. Loops and branches are followed; a loop without a fixed number of rounds counts as one operation.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    values = [_Value(leaf) for leaf in jax.tree.leaves(arguments)]
    try:
        # The setting of that name would stop at what is looked for here.
        with jax.debug_nans(False):
            results = _evaluate(closed.jaxpr, closed.consts, values, "")
    except _Found as found:
        return found.args[0]
    places = [value.infinity for value in results if value.infinity is not None]
    return Origin("an infinity", places[0], None) if places else None


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[_Value], scope: str) -> list[_Value]:
    """The results of a jaxpr; its operations are compiled a piece at a time, and looked into only where one is odd."""
    values: dict[Any, _Value] = dict(zip(jaxpr.constvars, map(_Value, consts), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    for start in range(0, len(jaxpr.eqns), PIECE):
        piece, rest = jaxpr.eqns[start : start + PIECE], jaxpr.eqns[start + PIECE :]
        used_later = dict.fromkeys(
            [*(atom for eqn in rest for atom in _variables(eqn.invars)), *_variables(jaxpr.outvars)]
        )
        given = list(dict.fromkeys(atom for eqn in piece for atom in _variables(eqn.invars) if atom in values))
        made = [atom for eqn in piece for atom in eqn.outvars if atom in used_later]

        def compute(*arrays: Any, piece: Any = piece, given: Any = given, made: Any = made) -> list[Any]:
            return _inline(piece, dict(zip(given, arrays, strict=True)), made)

        operands = [values[atom] for atom in given]
        results = _judged(
            jax.jit(compute, compiler_options={"xla_backend_optimization_level": 0})(
                *(value.array for value in operands)
            ),
            operands,
        )
        if results is None:
            values = _step_by_step(piece, values, scope)
        else:
            values |= dict(zip(made, results, strict=True))
        # A large network's intermediate results would not all fit.
        values = {atom: value for atom, value in values.items() if atom in used_later}
    return [_read(values, atom) for atom in jaxpr.outvars]


def _read(values: dict[Any, _Value], atom: Any) -> _Value:
    return _Value(atom.val) if isinstance(atom, core.Literal) else values[atom]


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _inline(eqns: Sequence[Any], arrays: dict[Any, Any], wanted: Sequence[Any]) -> list[Any]:
    """What some operations make of arrays, to be traced."""
    arrays = dict(arrays)
    for eqn in eqns:
        operands = [atom.val if isinstance(atom, core.Literal) else arrays[atom] for atom in eqn.invars]
        arrays |= dict(zip(eqn.outvars, _bind(eqn, operands), strict=True))
    return [atom.val if isinstance(atom, core.Literal) else arrays[atom] for atom in wanted]


def _bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    if eqn.primitive.name in CALLS:
        jaxpr, consts = _body(eqn)
        arrays = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *operands], strict=True))
        return _inline(jaxpr.eqns, arrays, jaxpr.outvars)
    results = eqn.primitive.bind(*operands, **eqn.params)
    return results if eqn.primitive.multiple_results else [results]


def _body(eqn: Any) -> tuple[Any, Sequence[Any]]:
    body = next(eqn.params[name] for name in BODIES if name in eqn.params)
    return getattr(body, "jaxpr", body), getattr(body, "consts", ())


def _step_by_step(eqns: Sequence[Any], values: dict[Any, _Value], scope: str) -> dict[Any, _Value]:
    """`values` and what the operations make of them; raises `_Found` at the first NaN."""
    values = dict(values)
    for eqn in eqns:
        here = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        values |= dict(zip(eqn.outvars, _run(eqn, [_read(values, atom) for atom in eqn.invars], here), strict=True))
    return values


def _run(eqn: Any, operands: list[_Value], scope: str) -> list[_Value]:
    """The results of one operation, which is looked into where it stands for others and its results are odd."""
    arrays = _bind(eqn, [value.array for value in operands])
    results = _judged(arrays, operands)
    if results is not None:
        return results
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        return _evaluate(*_body(eqn), operands, scope)
    if name == "cond":
        branch = params["branches"][int(operands[0].array)]
        return _evaluate(branch.jaxpr, branch.consts, operands[1:], scope)
    if name == "scan":
        return _scan(params, operands, scope)
    place = Place(name, scope)
    if any(_holds(np.isnan, array) for array in arrays):
        raise _Found(Origin("a NaN", place, next((v.infinity for v in operands if v.infinity is not None), None)))
    return [_Value(array, place if _holds(np.isinf, array) else None) for array in arrays]


def _judged(arrays: Sequence[Any], operands: Sequence[_Value]) -> list[_Value] | None:
    """Results that hold no NaN, and no infinity that no operand has; else None."""
    infinite = [_holds(np.isinf, array) for array in arrays]
    # An infinity that was written into the program, as the first value of a maximum is, was made by nobody.
    given = not any(infinite) or any(_holds(np.isinf, value.array) for value in operands)
    if not given or any(_holds(np.isnan, array) for array in arrays):
        return None
    source = next((value.infinity for value in operands if value.infinity is not None), None)
    return [_Value(array, source if inf else None) for array, inf in zip(arrays, infinite, strict=True)]


def _scan(params: dict[str, Any], operands: Sequence[_Value], scope: str) -> list[_Value]:
    if "num_consts" in params:
        constants, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    else:  # from jax 0.12 on
        constants, carried = itertools.accumulate(map(len, tuple(params["ft_in"].unpack())[:2]))
    carry, rounds = list(operands[constants:carried]), range(params["length"])
    rows: dict[int, list[_Value]] = {}
    for i in reversed(rounds) if params["reverse"] else rounds:
        sliced = [_Value(value.array[i], value.infinity) for value in operands[carried:]]
        body, now = params["jaxpr"], [*operands[:constants], *carry, *sliced]
        results = _evaluate(body.jaxpr, body.consts, now, scope)
        carry, rows[i] = results[: len(carry)], results[len(carry) :]
    stacked = []
    for column in zip(*(rows[i] for i in rounds), strict=True):
        places = [value.infinity for value in column if value.infinity is not None]
        stacked.append(_Value(jnp.stack([value.array for value in column]), places[0] if places else None))
    return [*carry, *stacked]


def _holds(what: Callable[[Any], Any], array: Any) -> bool:
    dtype = getattr(array, "dtype", None) or np.asarray(array).dtype
    return bool(jnp.issubdtype(dtype, jnp.floating) and what(np.asarray(array)).any())
