"""The operation and the layer that a NaN comes from are named."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from small_runs import small_config

from jax_cifar import train
from jax_cifar.errors import Diverged
from jax_cifar.training.first_nan import first_nonfinite


class Root(nn.Module):
    """The root of what it is given, below 0 or at 0."""

    @nn.compact
    def __call__(self, x):
        return jnp.sqrt(nn.Dense(3, name="inner")(x) * self.param("scale", nn.initializers.zeros, ()))


class Net(nn.Module):
    shift: float = 0.0

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(4, name="first")(x)
        x = Root(name="stage2_block1")(x - self.shift) - self.shift
        return nn.Dense(2, name="head")(jnp.sqrt(x) if self.shift else x)


def told(function, *arguments) -> str | None:
    origin = first_nonfinite(function, *arguments)
    return origin and origin.describe("Net")


def loss(shift: float):
    def of(params, x):
        return jnp.sum(jnp.asarray(Net(shift).apply({"params": params}, x)))

    params = Net(shift).init(jax.random.key(0), jnp.ones((2, 5)))["params"]
    return of, params


def test_a_nan_of_the_forward_pass_is_named_with_its_layer():
    of, params = loss(1.0)
    assert told(of, params, jnp.ones((2, 5))) == "a NaN came from sqrt in Net (forward)."


def test_a_nan_of_the_gradient_alone_is_named_with_its_layer_and_the_infinity_that_it_was_made_of():
    of, params = loss(0.0)
    assert told(of, params, jnp.ones((2, 5))) is None
    message = told(jax.grad(of), params, jnp.ones((2, 5))) or ""
    layer = r"\w+ in stage2_block1"
    assert re.fullmatch(
        rf"a NaN came from {layer} \(backward\)\. Its infinity came from div in {layer[7:]} .*", message
    )


def test_loops_branches_and_functions_are_looked_into():
    def scanned(x):
        with jax.named_scope("Net/layer"):
            return jax.lax.scan(lambda total, row: (total - row, jnp.log(total)), jnp.float32(2), x)[1]

    assert told(scanned, jnp.ones(2)) is None
    assert told(scanned, jnp.ones(4)) == (
        # log(0) is an infinity, log(-1) a NaN that was not made of it.
        "a NaN came from log in layer (forward)."
    )

    @jax.jit
    def inner(x):
        with jax.named_scope("Net/deep"):
            return jax.lax.cond(x > 0, lambda x: x, lambda x: jnp.log(x) * 2, x)

    assert told(lambda x: inner(x) + 1, jnp.float32(1)) is None
    assert told(lambda x: inner(x) + 1, jnp.float32(-1)) == "a NaN came from log in deep (forward)."


def test_infinities_that_are_meant_are_no_origin_and_others_are_named_where_there_is_no_nan():
    def masked(x):
        return jnp.where(x > 0, jnp.log(x), 0.0), jnp.max(jnp.where(x > 0, x, -jnp.inf))

    assert told(masked, jnp.arange(3.0)) is None
    with jax.debug_nans(True):  # the user's own setting does not come in between
        assert told(lambda x: jnp.exp(x) + 1, jnp.float32(100)) == "an infinity came from exp in the step."


class Cracked(nn.Module):
    """One layer, and after it the root of a parameter that a strong decay makes negative."""

    @nn.compact
    def __call__(self, x, train):
        return Crack(name="crack")(nn.Dense(10, name="body")(x[:, ::8, ::8].reshape(len(x), -1)))


class Crack(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * (1 + 1e-6 * jnp.sqrt(self.param("gain", nn.initializers.ones, ())))


def test_debug_nans_stops_with_operation_layer_and_the_last_checkpoint(tmp_path):
    config = small_config(
        train={"debug_nans": True}, optim={"weight_decay": 30.0}, checkpoint={"every": 1 / 6}, schedule={"warmup": 0.0}
    )
    with pytest.raises(Diverged) as caught:
        train(dataclasses.replace(config, model=Cracked()), tmp_path)
    assert caught.value.exit_code == 3
    first, second = str(caught.value).splitlines()
    assert first == "The update after step 1 is not finite: a NaN came from sqrt in crack (forward)."
    assert second.endswith(f"Step 1 is kept in {tmp_path / 'checkpoints'}.")
