"""The checker of shape annotations: beartype, to which an int is also a float, as it is to every type checker.

Functions without a shape are left to pyright. So are constructors: a dataclass checks its own fields, and says what the
user is to read.
"""

import typing
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_beartype: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typecheck(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its annotations checked, if one of them has a shape."""
    if function.__name__ == "__init__" or not any(map(_has_shape, function.__annotations__.values())):
        return function
    return _beartype(function)


def _has_shape(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    inner = getattr(annotation, "leaftype", None)  # of jaxtyping's PyTree
    return any(map(_has_shape, typing.get_args(annotation) + ((inner,) if inner else ())))
