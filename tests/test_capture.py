"""Activations by module name, and the few numbers that tell how layers and their gradients fare."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import Perceptron, untrained_run

from jax_cifar import capture
from jax_cifar.config.spec import InputSpec
from jax_cifar.deploy.stablehlo import StablehloModel
from jax_cifar.errors import ConfigError, DataError
from jax_cifar.evaluation.layers import activations
from jax_cifar.lab.layers import bars, layers, table
from jax_cifar.models.network import Network
from jax_cifar.telemetry.layers import draw_layers
from jax_cifar.training.gradient_flow import by_layer, gradient_flow
from jax_cifar.training.keys import run_key
from jax_cifar.training.steps import epoch_order


class Twice(nn.Module):
    """A dense layer that is used twice, a module with two results, and one without an axis of images."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train):
        same = nn.Dense(4, name="same")
        x = nn.relu(same(same(x.reshape(len(x), -1))))
        x, _ = Pair(name="pair")(x)
        return nn.Dense(self.num_classes, name="head")(x) + Number(name="number")()


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2, name="inner")(x)
        return x, -x


class Number(nn.Module):
    def __call__(self):
        return jnp.float32(1)


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)
SPEC = InputSpec((2, 2, 1), (0.5,), (0.25,), None, ("a", "b", "c"))
NORMALISED = ((IMAGES / 255 - 0.5) / 0.25).reshape(8, 4)


@pytest.fixture(scope="module")
def twice() -> tuple[Network, Any]:
    model = Twice()
    return Network(model, SPEC), model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), train=False)


def test_every_module_is_captured_in_the_order_of_its_return_and_in_batches(twice):
    params = jax.tree.map(np.asarray, twice[1]["params"])

    def dense(name, x):
        layer = params["pair"]["inner"] if name == "inner" else params[name]
        return x @ layer["kernel"] + layer["bias"]

    once = dense("same", NORMALISED)
    again = dense("same", once)
    pair = dense("inner", np.maximum(again, 0))
    expected = {"same": once, "same#2": again, "pair/inner": pair, "pair[0]": pair, "pair[1]": -pair}
    expected["head"] = dense("head", pair)
    found = capture(twice, IMAGES, batch_size=3)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
        assert found[name].dtype == np.float32


def test_patterns_choose_modules_and_an_unknown_one_is_named_with_its_neighbours(twice):
    assert list(capture(twice, IMAGES, ["head", "pair/*", "pair[[]1]"])) == ["pair/inner", "pair[1]", "head"]
    assert capture(twice, IMAGES[:0], "pair[0]")["pair[0]"].shape == (0, 2)
    with pytest.raises(ConfigError, match=r"No module is called 'hed'; there are head\."):
        capture(twice, IMAGES, ["same", "hed"])
    with pytest.raises(DataError, match=r"shape \[8, 2, 1, 1\]"):
        capture(twice, IMAGES[:, :, :1], "head")


def test_a_channel_is_dead_that_no_image_of_any_batch_wakes(twice):
    network, variables = twice
    drawn = np.random.default_rng(1).normal(size=(4, 4))
    bias = np.array([-100.0, 0.0, 0.0, 50.0])
    # Channel 1 is above zero in the last image only, in the batch that is filled up; channel 2 in the first only.
    for channel, image in ((1, 7), (2, 0)):
        drawn[:, channel] = NORMALISED[image] - NORMALISED.mean(0)
        reach = NORMALISED @ drawn[:, channel]
        assert np.argmax(reach) == image
        bias[channel] = -np.sort(reach)[-2:].mean()
    same = {"kernel": jnp.float32(drawn), "bias": jnp.float32(bias)}
    variables = {"params": {**variables["params"], "same": same}}
    seen = activations(network, variables, IMAGES, ["same"], batch_size=3)["same"]
    values = NORMALISED @ drawn + bias
    assert seen.shape == (4,)
    assert seen.dead == pytest.approx(1 / 4)
    assert seen.silent == pytest.approx(np.mean(values <= 0))
    assert (seen.mean, seen.sd) == pytest.approx((values.mean(), values.std()), rel=1e-5)


def test_the_gradient_is_that_of_the_runs_own_loss_on_its_first_batch(tmp_path):
    sections = {"optim": {"weight_decay": 0.01}, "train": {"label_smoothing": 0.2}, "data": {"subset": 70}}
    run = untrained_run(tmp_path, model=Perceptron(dropout=0.0), **sections)
    config, network, variables, splits = run.config, run.network, run.variables, run.splits()
    index = epoch_order(run_key(config.train.seed), jnp.int32(0), len(splits.train), 32)[0]
    images = network.inputs(jnp.asarray(splits.train.images[index], jnp.float32) / 255)
    targets = 0.8 * jax.nn.one_hot(splits.train.labels[index], 10) + 0.02

    def loss(params, images):
        logits, _ = network.model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy(logits, targets).mean()

    weights, grads = by_layer(variables["params"]), by_layer(jax.jit(jax.grad(loss))(variables["params"], images))
    found = gradient_flow(config, network, variables, splits.train)
    assert found.keys() == {"body", "norm", "head"}
    for name, (size, gradient, update) in found.items():
        decayed = grads[name] + 0.01 * weights[name]
        expected = 0.05 * 1.9 * np.linalg.norm(decayed)  # Nesterov's first update, of a momentum of 0.9
        assert size == pytest.approx(np.linalg.norm(weights[name]), rel=1e-4), name
        assert gradient == pytest.approx(np.abs(grads[name]).mean(), rel=1e-3), name
        assert update == pytest.approx(expected / size, rel=1e-3), name
    few = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=2))
    with pytest.raises(ConfigError, match=r"optim\.accumulate"):
        gradient_flow(few, network, variables, splits.train.take(np.arange(1)))


class OfItsOwn(nn.Module):
    """A parameter in no module, beside a layer, and a module that returns two values of parameters of its own."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train):
        self.param("unused", nn.initializers.ones, (4,))
        left, right = Halves(name="halves")(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes, name="head")(left - right)


class Halves(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (1, x.shape[-1]))
        return x * kernel, x


def test_every_parameter_is_in_a_row_those_of_the_network_itself_too(tmp_path):
    run = untrained_run(tmp_path, model=OfItsOwn())
    rows = layers(run, run.splits().train, 20)
    assert [row.name for row in rows] == ["head", "halves", "OfItsOwn itself"]
    flow = rows[-1].flow
    assert flow is not None and flow.weights > 0 and flow.gradient == 0
    last = table(rows).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")][:6] == ["OfItsOwn itself", *"-----"]
    assert draw_layers(bars(rows), tmp_path / "layers.png", "own").stat().st_size > 1000


class Turn:
    """A lock that knows whether it is held."""

    held = taken = False

    def __enter__(self):
        self.held = self.taken = True

    def __exit__(self, *_):
        self.held = False


def test_whatever_runs_the_network_waits_its_turn(twice, monkeypatch):
    """Programs of several threads at once would have wrong convolutions on a CPU; see `backend.threads`."""
    turn, wait = Turn(), jax.device_get
    monkeypatch.setattr("jax_cifar.backend.compiler._turn", turn)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "device_get", lambda found: wait(found) if turn.held else pytest.fail("out of turn"))
    exported = StablehloModel(SPEC, {}, lambda images: jnp.full((len(images), 3), float(turn.held)))
    assert exported.logits(IMAGES).all()
    for run in (capture, lambda run, images: activations(run[0], run[1], images, ["head"])):
        turn.taken = False
        run(twice, IMAGES)
        assert turn.taken and not turn.held
