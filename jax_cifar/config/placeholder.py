"""What stands for an object of a user's own where a configuration is read back and no foreign code has been run."""

from dataclasses import dataclass
from typing import Any, NoReturn

from jax_cifar.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Recorded:
    """An object as `to_dict` recorded it: equal to itself, written back as it was, and of no use until it is revived.

    It stands for a transform, a network, a function, a class or a dataclass, so it has what tells those apart.
    """

    kind: str  # "network", "transform", "function", "class", "dataclass" or "dtype"
    name: str  # its class's name, or its own: "MyNet"
    origin: str | None  # "my_experiment.py", "optax._src.alias", "__main__"; None: a transform of the library
    fields: tuple[tuple[str, Any], ...] = ()  # of an instance; of a function or class, the arguments given beforehand

    def __repr__(self) -> str:
        return self.name

    def _own(self) -> "Recorded":
        """Itself, or of a group of the library the first member that is not the library's."""
        parts = [each for _, value in self.fields for each in (value if isinstance(value, tuple) else (value,))]
        inner = [part._own() for part in parts if isinstance(part, Recorded)] if self.origin is None else []
        return next((part for part in inner if part.origin), self)

    def _refuse(self, *arguments: Any, **named: Any) -> NoReturn:
        own = self._own()
        where = f" (from {own.origin})" if own.origin else ""
        raise ConfigError(
            f"{own.name}{where} is code of this run's own, and has not been run: "
            f"say --trust-code (trust_code=True in Python) to run it."
        )

    __call__ = init = apply = draw = transform = _refuse
