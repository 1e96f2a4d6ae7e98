"""The checker of shape annotations: beartype, to which an int is also a float, as it is to every type checker.

Functions without a shape are left to pyright. So are constructors: a dataclass checks its own fields, and says what the
user is to read. jaxtyping would wrap them all the same, inner functions anew at every call: tracing a step took three
times as long.
"""

import functools
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_beartype: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped: Callable[..., Any] = jaxtyping.jaxtyped


def typecheck(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its annotations checked."""
    return _beartype(function)


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """In place of jaxtyping's own decorator, which `--jaxtyping-packages` puts on everything: only where shapes are."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    constructs = isinstance(function, type) or function.__name__ == "__init__"
    if constructs or not any(map(_has_shape, function.__annotations__.values())):
        return function
    return _jaxtyped(function, typechecker=typechecker)


jaxtyping.jaxtyped = jaxtyped


def _has_shape(annotation: Any) -> bool:
    if isinstance(annotation, str):  # not evaluated yet: it may be one
        return True
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    if typing.get_origin(annotation) is typing.Literal:  # its words are no annotations
        return False
    inner = getattr(annotation, "leaftype", None)  # of jaxtyping's PyTree
    return any(map(_has_shape, typing.get_args(annotation) + ((inner,) if inner else ())))
