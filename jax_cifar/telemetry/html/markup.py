"""HTML made of Python calls: what is not markup already is text, and becomes harmless on its way in."""

import html
from collections.abc import Iterable

from jax_cifar.errors import printable

VOID = {"meta", "link", "img", "br"}

Child = object  # Markup as it is, an iterable of children, None for nothing; all else is shown as text


class Markup(str):
    """Text that is HTML already: only `tag` and `join` make it, and who reads a file of this package."""


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element. `_` in the name of an attribute is `-`, and at its end nothing: `class_`, `data_x`.

    An attribute that is None or False is left out, True stands there without a value.
    """
    given = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    inside = join(children)
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{inside}</{name}>")


def join(children: Child) -> Markup:
    """Children one after the other."""
    if isinstance(children, Markup):
        return children
    if children is None:
        return Markup("")
    if isinstance(children, Iterable) and not isinstance(children, str):
        return Markup("".join(map(join, children)))
    return Markup(escape(str(children)))


def escape(text: str) -> str:
    """Text as HTML shows it, in an element or an attribute, with control characters written out."""
    return html.escape(printable(text))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_number(value))}"'


def _number(value: object) -> str:
    """Two digits after the point are finer than a screen shows."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
