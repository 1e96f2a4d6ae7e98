"""A trained network layer by layer: what it returns, and how the gradient reaches it."""

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

from jax_cifar.data import Dataset
from jax_cifar.evaluation.capture import outputs
from jax_cifar.evaluation.layers import Activations, activations
from jax_cifar.lab.tables import markdown
from jax_cifar.run.load import Run
from jax_cifar.telemetry.layers import Bar
from jax_cifar.training.gradient_flow import Flow, by_layer, gradient_flow


class Layer(NamedTuple):
    """One module with parameters: of its own, or of modules inside it."""

    name: str
    activations: Activations | None  # None: it is the network itself, or returns nothing for each image
    flow: Flow | None  # None: only modules inside it have parameters


def layers(run: Run, dataset: Dataset, count: int) -> list[Layer]:
    """Every module with parameters, in the order in which they return; at the end those that return nothing themselves.

    Args:
      run: what is looked into.
      dataset: the images; the gradient is that of the first batch which the run would draw of them.
      count: of the first so many images activations are taken.

    Raises:
      ConfigError: the run has transforms, a rule or a loss of its own that were not trusted.
    """
    own = by_layer(run.variables["params"])
    within = {path[:i] for path in own for i in range(len(path) + 1) if path[i : i + 1] in ("", "/")}
    names = [name for name in outputs(run.network, run.variables) if name in within]
    seen = activations(run.network, run.variables, dataset.images[:count], names)
    flows = gradient_flow(run.config, run.network, run.variables, dataset)
    rows = [Layer(name, seen[name], flows.get(name)) for name in names]
    whole = f"{type(run.network.model).__name__} itself"  # of parameters that lie in no module inside it
    unseen = sorted(set(own) - set(names), key=lambda path: (path == "", path))
    return rows + [Layer(path or whole, None, flows[path]) for path in unseen]


def bars(rows: Sequence[Layer]) -> list[Bar]:
    """The layers as they are drawn."""
    nothing, none = Activations((), nan, nan, nan, nan), Flow(nan, nan, nan)
    return [Bar(name, *(seen or nothing)[1:], *(flow or none)[1:]) for name, seen, flow in rows]


def table(rows: Sequence[Layer]) -> str:
    """The layers as a Markdown table."""
    head = ["layer", "output", "mean", "sd", "not above 0", "dead", "weights", "mean gradient", "update / weights"]
    lines = []
    for name, seen, flow in rows:
        own = ("-", "-", "-") if flow is None else (f"{flow.weights:.3g}", f"{flow.gradient:.2e}", f"{flow.update:.2e}")
        returned = ["-"] * 5
        if seen is not None:
            shape = " x ".join(map(str, seen.shape))
            returned = [shape, f"{seen.mean:.3f}", f"{seen.sd:.3f}", f"{seen.silent:.1%}", f"{seen.dead:.1%}"]
        lines.append([name, *returned, *own])
    return markdown(head, lines)
