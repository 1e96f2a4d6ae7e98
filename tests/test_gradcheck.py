"""`gradcheck`: the gradients of our own kernels, and faults that are planted in others."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_cifar import gradcheck
from jax_cifar.ops import channels, conv, winograd
from jax_cifar.ops.activations import gelu
from jax_cifar.ops.conv import conv2d
from jax_cifar.ops.gradcheck import WrongGradient
from jax_cifar.ops.pooling import average_pool, max_pool

DRAWS = np.random.default_rng(0)
X, KERNEL, WIDE = DRAWS.normal(size=(3, 6, 5, 3)), DRAWS.normal(size=(3, 2, 3, 4)), DRAWS.normal(size=(3, 3, 3, 4))
VECTOR = DRAWS.normal(size=3)
SAME = ((1, 1), (1, 1))
KERNELS = {
    "conv2d": (partial(conv2d, strides=(2, 1), padding=((1, 0), (0, 2))), X, KERNEL),
    "winograd": (partial(conv2d, padding=SAME), X, WIDE),
    "batch_norm": (lambda x, scale, bias: channels.batch_norm(x, scale, bias, 1e-5)[0], X, VECTOR, 1 + VECTOR),
    "add_bias": (channels.add_bias, X, VECTOR),
    "max_pool": (partial(max_pool, window=3, stride=2, padding=1), X),
    "average_pool": (partial(average_pool, window=2), X),
    "gelu": (gelu, 3 * X),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_gradients_of_our_kernels_are_their_derivatives(name, monkeypatch):
    for each in (name for name in vars(conv) if name.startswith("WINOGRAD_")):
        monkeypatch.setattr(conv, each, 0 if name == "winograd" else 1000)
    for module, limit in ((conv, "CHUNK_BYTES"), (channels, "CHUNK_BYTES"), (winograd, "CHUNK_BYTES")):
        monkeypatch.setattr(module, limit, 2000)
    gradcheck(*KERNELS[name])


def product(spoil):
    """sin(a) * d["k"], whose second gradient goes through `spoil`."""

    @jax.custom_vjp
    def planted(a, d):
        return jnp.sin(a) * d["k"]

    def backward(saved, grad):
        a, k = saved
        return grad * jnp.cos(a) * k, {"k": spoil(grad * jnp.sin(a))}

    planted.defvjp(lambda a, d: (planted(a, d), (a, d["k"])), backward)
    return planted


A, K = DRAWS.normal(size=(4, 3)), DRAWS.normal(size=(4, 3))


def test_a_wrong_gradient_is_found_at_its_argument_and_index_with_both_values():
    gradcheck(product(lambda grad: grad), A, {"k": K})
    with pytest.raises(
        WrongGradient, match=r"planted: the reverse-mode derivative by argument 1\['k'\].*\(2, 1\)"
    ) as told:
        gradcheck(product(lambda grad: grad.at[2, 1].multiply(1.001)), A, {"k": K})
    ours, theirs = map(float, re.findall(r"-?\d+\.\d+(?:e-\d+)?", str(told.value)))
    assert ours / theirs == pytest.approx(1.001, rel=1e-6)
    with pytest.raises(WrongGradient, match=r"\(3, 0\): nan"):
        gradcheck(product(lambda grad: grad.at[3, 0].set(jnp.nan)), A, {"k": K})


@jax.custom_jvp
def wrong_forward(a):
    return a**2


wrong_forward.defjvp(lambda primals, tangents: (primals[0] ** 2, 2.1 * primals[0] * tangents[0]))


def test_forward_mode_is_looked_at_where_it_is_asked_for():
    gradcheck(lambda a, power: a**power, VECTOR, 3, modes=("reverse", "forward"))
    with pytest.raises(WrongGradient, match=r"forward-mode derivative by argument 0 is wrong at \(\d,\)"):
        gradcheck(wrong_forward, VECTOR, modes=("forward",))


@pytest.mark.parametrize("modes", ["reverse", "forward", (), ("reverse", "forwards")], ids=repr)
def test_modes_that_would_compare_nothing_are_refused(modes):
    allowed = re.escape(f"modes = {modes!r} is not allowed: give some of ('reverse', 'forward'), such as ('reverse',)")
    with pytest.raises(ValueError, match=allowed):
        gradcheck(jnp.sin, VECTOR, modes=modes)


@pytest.mark.parametrize("directions", [0, -1])
def test_no_direction_is_refused(directions):
    with pytest.raises(ValueError, match=rf"directions = {directions} is not allowed: it must be at least 1"):
        gradcheck(jnp.sin, VECTOR, directions=directions)


def test_sums_that_cancel_and_large_values_are_no_false_alarm():
    gradcheck(lambda x: x - x.mean() + 1e6, X)
    gradcheck(lambda x: jnp.log(x), 1e7 * (2 + np.sin(X)))


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match=r"output 0 is float32\[3\]"):
        gradcheck(lambda a: a.astype(jnp.float32), VECTOR)
    with pytest.raises(ValueError, match="no floating argument"):
        gradcheck(lambda a: a, np.arange(3))
    with pytest.raises(ValueError, match=r"has no argument with an entry to compare, only \[0\], \[2, 0\]\."):
        gradcheck(lambda a, b: a.sum() + b.sum(), np.zeros(0), np.zeros((2, 0)))
    with pytest.raises(ValueError, match=r"has no output with an entry to compare, only \[0\]\."):
        gradcheck(lambda a: a[:0], VECTOR)
    gradcheck(lambda a, b: jnp.sin(a).sum() + b.sum(), VECTOR, np.zeros(0))
    assert not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
