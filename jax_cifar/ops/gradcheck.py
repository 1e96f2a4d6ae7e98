"""Whether a gradient of one's own is the derivative of its function: compared with differences, in float64.

`jax.test_util.check_grads` says that something is wrong; this says of which argument, at which index, and by how much.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jax_cifar.backend.precision import float64

Mode = Literal["reverse", "forward"]

# Of the central difference: its own error, step^2, and that of rounding, 1e-16 / step, are both near 1e-11.
STEP = 1e-5


class WrongGradient(AssertionError):
    """A gradient is not the derivative of its function."""


class _Case(NamedTuple):
    """A function of a list of float64 arrays, to another, and what its outputs are weighted with."""

    function: Callable[..., list[Any]]
    leaves: list[np.ndarray]
    weights: list[np.ndarray]
    tolerance: float
    size: float  # of the weighted outputs

    def changes(self, i: int, direction: np.ndarray) -> np.ndarray:
        """What each weighted output changes by along a direction of leaf i."""
        ends = []
        step = self.step(i)
        for sign in (1, -1):
            moved = [leaf + sign * step * direction if j == i else leaf for j, leaf in enumerate(self.leaves)]
            ends.append(self.weighted(self.function(moved)))
        return (ends[0] - ends[1]) / (2 * step)

    def step(self, i: int) -> float:
        """How far leaf i is moved."""
        return STEP * max(1.0, float(np.abs(self.leaves[i]).max(initial=0)))

    def weighted(self, outputs: Sequence[Any]) -> np.ndarray:
        """All outputs times their weights, in a row."""
        return np.concatenate([np.ravel(w * np.asarray(out)) for w, out in zip(self.weights, outputs, strict=True)])


# Of leaf i and a direction: what is summed for the derivative along it.
Told = Callable[[int, np.ndarray], np.ndarray]


def gradcheck(
    function: Callable[..., Any],
    *arguments: Any,
    modes: Sequence[Mode] = ("reverse",),
    directions: int = 3,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> None:
    """Return if the derivatives that JAX takes of `function` agree with central differences; computed in float64.

    Each argument is moved along random directions, and what a weighted sum of the outputs changes by is compared with
    what the gradient says. Where they differ the direction is halved again and again, down to one wrong entry.

    Args:
      function: of arrays or pytrees of them, to the same; it must compute in the type that it is given.
      arguments: where to look; floating ones are made float64, others are passed on as they are. Values at which the
        function has a kink (a ReLU at 0, a tie in a maximum) have no derivative to compare with.
      modes: "reverse" for `jax.vjp` (and `jax.grad`), "forward" for `jax.jvp`, which a `jax.custom_vjp` has not.
      directions: how many for each argument.
      tolerance: largest difference, as a share of the size of what is summed.
      seed: of directions and weights.

    Raises:
      WrongGradient: names the argument and the index, with both values.
      ValueError: nothing to compare: no floating argument, none with an entry, no output with one, no mode or none that
        there is, no direction; or the function gives something else than float64.
    """
    _require_something_to_do(modes, directions)
    with float64():
        leaves, tree = jax.tree_util.tree_flatten_with_path(arguments)
        moving = [i for i, (_, leaf) in enumerate(leaves) if jnp.issubdtype(np.asarray(leaf).dtype, jnp.floating)]
        if not moving:
            raise ValueError(f"{_name(function)} has no floating argument: there is no gradient to compare.")

        def of_moving(moved: Sequence[Any]) -> list[Any]:
            everything = [leaf for _, leaf in leaves]
            for i, value in zip(moving, moved, strict=True):
                everything[i] = value
            return jax.tree.leaves(function(*jax.tree.unflatten(tree, everything)))

        points = [np.asarray(leaves[i][1], np.float64) for i in moving]
        call = jax.jit(of_moving)
        outputs = [np.asarray(out) for out in call(points)]
        _require_float64(function, outputs)
        for what, arrays in (("argument", points), ("output", outputs)):
            if not any(array.size for array in arrays):
                shapes = ", ".join(str(list(array.shape)) for array in arrays) or "none at all"
                raise ValueError(f"{_name(function)} has no {what} with an entry to compare, only {shapes}.")
        draws = np.random.default_rng(seed)
        weights = [np.asarray(_signed(draws, out.shape)) for out in outputs]
        case = _Case(call, points, weights, tolerance, 0.0)
        case = case._replace(size=float(np.linalg.norm(case.weighted(outputs))))
        names = [_argument(leaves[i][0]) for i in moving]
        for mode in modes:
            told = (_reverse if mode == "reverse" else _forward)(case)
            for i, name in enumerate(names):
                for _ in range(directions):
                    found = _wrong_entry(case, i, _signed(draws, points[i].shape), told)
                    if found is not None:
                        index, ours, theirs = found
                        raise WrongGradient(
                            f"{_name(function)}: the {mode}-mode derivative by {name} is wrong at {index}:"
                            f" {ours:.9g}, and differences give {theirs:.9g}, a sum of outputs with random weights."
                        )


def _wrong_entry(case: _Case, i: int, direction: np.ndarray, told: Told) -> tuple[tuple[int, ...], float, float] | None:
    """Index of an entry of leaf i whose derivative is wrong, with what was told and what differences give."""
    if _compare(case, i, direction, told).agree:
        return None
    places = np.flatnonzero(direction)
    while len(places) > 1:
        halves = np.array_split(places, 2)
        apart = [_compare(case, i, _only(direction, half), told).apart for half in halves]
        places = halves[int(apart[1] > apart[0])]
    found = _compare(case, i, _only(np.ones_like(direction), places), told)
    return tuple(map(int, np.unravel_index(int(places[0]), direction.shape))), found.ours, found.theirs


def _only(direction: np.ndarray, places: np.ndarray) -> np.ndarray:
    part = np.zeros_like(direction)
    part.flat[places] = direction.flat[places]
    return part


class _Comparison(NamedTuple):
    """The derivative along a direction, as told and by differences."""

    ours: float
    theirs: float
    apart: float
    agree: bool


def _compare(case: _Case, i: int, direction: np.ndarray, told: Told) -> _Comparison:
    products, changes = told(i, direction), case.changes(i, direction)
    ours, theirs = float(products.sum()), float(changes.sum())
    # Sums in which much cancels are compared at the size of what is summed, and never finer than they are rounded.
    size = max(float(np.linalg.norm(products)), float(np.linalg.norm(changes)))
    rounding = 10 * np.finfo(np.float64).eps * max(case.size, 1.0) / case.step(i)
    apart = abs(ours - theirs) if np.isfinite([ours, theirs]).all() else np.inf
    return _Comparison(ours, theirs, apart, bool(apart <= case.tolerance * size + rounding))


def _reverse(case: _Case) -> Told:
    """By `jax.vjp`, once."""
    pull = jax.jit(lambda leaves, weights: jax.vjp(case.function, leaves)[1](weights)[0])
    gradients = [np.asarray(gradient) for gradient in pull(case.leaves, case.weights)]
    # Where the direction is zero nothing is told of the gradient, not even that it is no number.
    return lambda i, direction: np.where(direction == 0, 0.0, gradients[i] * direction)


def _forward(case: _Case) -> Told:
    """By `jax.jvp`, anew for each direction."""
    push = jax.jit(lambda leaves, tangents: jax.jvp(case.function, (leaves,), (tangents,))[1])

    def told(i: int, direction: np.ndarray) -> np.ndarray:
        tangents = [direction if j == i else np.zeros_like(leaf) for j, leaf in enumerate(case.leaves)]
        return case.weighted(push(case.leaves, tangents))

    return told


def _require_something_to_do(modes: Sequence[str], directions: int) -> None:
    known = get_args(Mode)
    if isinstance(modes, str) or not modes or not set(modes) <= set(known):  # a string is a sequence of letters
        raise ValueError(f"modes = {modes!r} is not allowed: give some of {known}, such as ('reverse',).")
    if directions < 1:
        raise ValueError(f"directions = {directions} is not allowed: it must be at least 1.")


def _require_float64(function: Callable[..., Any], outputs: list[np.ndarray]) -> None:
    for i, out in enumerate(outputs):
        if out.dtype != np.float64:
            raise ValueError(
                f"{_name(function)} was given float64, and output {i} is {out.dtype}{list(out.shape)}: differences need"
                " float64 throughout. Compute in the type of the arguments."
            )


def _signed(draws: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that are neither small nor alike, so that no wrong entry hides behind a weight of zero or another."""
    return draws.uniform(0.5, 1.5, shape) * draws.choice([-1.0, 1.0], shape)


def _argument(path: tuple[Any, ...]) -> str:
    (position, *inside) = path
    return f"argument {position.idx}{jax.tree_util.keystr(tuple(inside))}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", None) or getattr(getattr(function, "func", None), "__name__", str(function))
