"""Looking into what JAX has traced."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any, loops: int = 0) -> Iterator[tuple[Any, int]]:
    """Every equation of a jaxpr and of the jaxprs inside it, with the number of loops around it."""
    for equation in jaxpr.eqns:
        yield equation, loops
        inside = loops + (equation.primitive.name in ("scan", "while"))
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)
