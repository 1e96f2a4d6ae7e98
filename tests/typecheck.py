"""The checker of shape annotations: beartype, to which an int is also a float, as it is to every type checker.

Constructors are left out: a dataclass checks its own fields, and says what the user is to read.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typecheck(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its annotations checked."""
    return function if function.__name__ == "__init__" else _beartype(function)
