"""Networks of one's own: what the library fills in, what it uses, and what it refuses in one message."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_cifar.config import Config, ModelConfig, OptimConfig
from jax_cifar.errors import ConfigError
from jax_cifar.models import (
    INIT_IMAGES,
    check_network,
    create_model,
    dtype_warning,
    frozen_parameters,
    init_variables,
    wants_images,
)
from jax_cifar.optim.rules import Hyper, make_optimizer
from jax_cifar.training.state import create_train_state
from jax_cifar.training.steps import make_train_step

KEY = jax.random.key(0)
SHAPE = (8, 8, 3)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(6, *SHAPE)), jnp.float32)
LABELS = jnp.arange(6) % 4


class Plain(nn.Module):
    """No BatchNorm, no options."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(4)(nn.relu(nn.Conv(3, (3, 3))(images)).mean(axis=(1, 2)))


class WithFlaxLayers(nn.Module):
    """flax's own BatchNorm and Dropout, and the three fields that are filled in."""

    num_classes: int = 10
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(3, (3, 3), dtype=self.dtype, param_dtype=self.param_dtype)(images.astype(self.dtype))
        x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x).mean(axis=(1, 2)))
        return nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype)(x)


class HalfByDefault(Plain):
    """With a type of its class, which nobody has asked for."""

    dtype: Any = jnp.bfloat16


class Held(Plain):
    """With a type that is no field, and so is left as it is."""

    dtype = jnp.bfloat16


class Centred(nn.Module):
    """A frozen shift that starts as the images' mean."""

    filters: tuple[int, ...] = (3,)
    smallest_image = 4
    frozen = ("^shift$",)

    def init_from(self, params, images):
        return {**params, "shift": jnp.asarray(np.mean(np.asarray(images), axis=(0, 1, 2)))}

    @nn.compact
    def __call__(self, images, train):
        shift = self.param("shift", nn.initializers.zeros, (images.shape[-1],))
        return nn.Dense(4)(nn.Conv(self.filters[0], (3, 3))(images - shift.reshape(1, 1, 1, -1)).mean(axis=(1, 2)))


class WithCounter(nn.Module):
    """Statistics that have no mean: updates so far, and whether there was one."""

    @nn.compact
    def __call__(self, images, train):
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        begun = self.variable("batch_stats", "begun", jnp.zeros, (), jnp.bool_)
        if train:
            count.value, begun.value = count.value + 1, jnp.bool_(True)
        return nn.Dense(4)(images.mean(axis=(1, 2)))


def trained(model: Any, steps: int = 3, **optim: Any) -> tuple[Any, Any]:
    """Variables before and after some updates by the library's own step, compiled; the averaged ones, if asked for."""
    check_network(model, SHAPE, (), 4)
    variables = init_variables(model, KEY, IMAGES)
    config = Config(name="own", optim=OptimConfig(**optim))
    optimizer = make_optimizer(config.optim, variables["params"], frozen_parameters(model))
    step = jax.jit(make_train_step(model, optimizer, config))
    state = create_train_state(variables, optimizer, ema=config.optim.ema_decay > 0)
    for number in range(steps):
        hyper = Hyper(*map(jnp.float32, (0.1, 0.9, 0.0)))
        state, sums = step(state, IMAGES, LABELS, hyper, jax.random.fold_in(KEY, number))
        assert float(sums["loss"]) > 0
    return variables, state.eval_variables


def test_a_network_without_batch_norm_is_trained():
    model = create_model(Plain(), 4)
    before, after = trained(model)
    assert before["batch_stats"] == after["batch_stats"] == {}
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before["params"], after["params"])
    assert all(jax.tree.leaves(moved))
    assert not wants_images(model) and frozen_parameters(model) == ()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_flax_batch_norm_and_dropout_are_trained_in_the_type_asked_for(dtype):
    model: Any = create_model(WithFlaxLayers(), 4, dtype)
    assert (model.num_classes, model.dtype, model.param_dtype) == (4, dtype, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # flax's BatchNorm needs it in bfloat16
        before, after = trained(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}
    for path in ("mean", "var"):
        assert jnp.any(before["batch_stats"]["BatchNorm_0"][path] != after["batch_stats"]["BatchNorm_0"][path])


def test_counters_and_flags_among_averaged_weights_are_the_newest():
    last, averaged = (trained(WithCounter(), ema_decay=decay)[1] for decay in (0.0, 0.9))
    assert averaged["batch_stats"] == last["batch_stats"] == {"count": 3, "begun": True}
    assert averaged["batch_stats"]["count"].dtype == jnp.int32
    assert jnp.any(averaged["params"]["Dense_0"]["kernel"] != last["params"]["Dense_0"]["kernel"])


def test_frozen_parts_stay_as_the_images_started_them():
    model = create_model(Centred(filters=cast(Any, [3])), 4)  # a list, which cannot be hashed
    assert wants_images(model)
    before, after = trained(model, clip_norm=1.0, name=optax.lion)
    np.testing.assert_allclose(before["params"]["shift"], IMAGES.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(before["params"]["shift"], after["params"]["shift"])
    assert jnp.any(before["params"]["Dense_0"]["kernel"] != after["params"]["Dense_0"]["kernel"])


def test_a_start_looks_at_no_more_images_than_it_may():
    images = jnp.zeros((INIT_IMAGES + 1, 4, 4, 1)).at[INIT_IMAGES:].set(1e3)
    assert not jnp.any(init_variables(Centred(), KEY, images)["params"]["shift"])
    images = images.at[INIT_IMAGES - 1 :].set(1e3)
    assert jnp.all(init_variables(Centred(), KEY, images)["params"]["shift"] > 0)


def test_the_number_of_classes_is_the_datas():
    assert cast(Any, create_model(WithFlaxLayers(), 100)).num_classes == 100
    assert cast(Any, create_model(WithFlaxLayers(num_classes=100), 100)).num_classes == 100
    with pytest.raises(ConfigError, match=r"WithFlaxLayers\.num_classes = 7 is not allowed: the data have 100 classes"):
        create_model(WithFlaxLayers(num_classes=7), 100)


def test_a_type_that_is_not_kept_to_is_warned_of_and_no_default():
    given = WithFlaxLayers(dtype=jnp.bfloat16)
    told = "WithFlaxLayers.dtype = bfloat16 is not used: train.dtype fills in float32."
    assert dtype_warning(given, jnp.float32) == f"{told} For bfloat16: --train.dtype bfloat16."
    assert "field of another name" in (dtype_warning(WithFlaxLayers(dtype="float16"), jnp.float32) or "")
    assert dtype_warning(given, jnp.bfloat16) is None
    for network in (WithFlaxLayers(), WithFlaxLayers(dtype="no type"), Plain(), HalfByDefault(), Held(), ModelConfig()):
        assert dtype_warning(network, jnp.float32) is None


def test_parameters_that_fit_every_side_are_accepted_and_others_named():
    check_network(Plain(), SHAPE, (4, 6, 8), 4)
    check_network(Flattening(), SHAPE, (8, 8), 4)
    with pytest.raises(ConfigError, match=r"train\.resolutions .*Dense_0/kernel of Flattening.* at 4 pixels.* at 8"):
        check_network(Flattening(), SHAPE, (4, 8), 4)


class Flattening(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(4)(images.reshape(images.shape[0], -1))


class OtherArguments(nn.Module):
    @nn.compact
    def __call__(self, images, training):
        return nn.Dense(4)(images.mean(axis=(1, 2)))


class Failing(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(4)(images.reshape(7, -1))


class TooManyLogits(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(5)(images.mean(axis=(1, 2)))


class TwoOutputs(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        logits = nn.Dense(4)(images.mean(axis=(1, 2)))
        return (logits, logits) if train else logits


class Counting(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        self.variable("counts", "calls", jnp.zeros, ())
        return nn.Dense(4)(images.mean(axis=(1, 2)))


class Empty(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return images.mean(axis=(1, 2)) @ jnp.ones((3, 4))


class Half(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(4, param_dtype=jnp.bfloat16, dtype=jnp.float32)(images.mean(axis=(1, 2)))


class AlwaysDropping(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=False)(images.mean(axis=(1, 2))))


class Growing(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, (1,))
        if train:
            mean.value = images.mean(axis=(0, 1, 2))
        return nn.Dense(4)(images.mean(axis=(1, 2)))


class NamingTwice(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        # Flax finds it in an __init__ that `dataclasses` has written.
        return nn.Dense(4, name="a")(nn.Dense(4, name="a")(images.mean(axis=(1, 2))))


class FreezingNothing(Plain):
    frozen = ("^conv9/",)


class FreezingAWord(Plain):
    frozen = "Dense_0/kernel"


class FreezingNonsense(Plain):
    frozen = ("(",)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OtherArguments(), r"OtherArguments failed, called as module\(images, train=\.\.\.\).*TypeError.*'train'"),
        (Failing(), r"Failing failed.*TypeError.*\(test_models_own\.py, line \d+: return nn\.Dense\(4\)\(images\.resh"),
        (NamingTwice(), r"NameInUseError.*\(test_models_own\.py, line \d+: return nn\.Dense\(4, name=\"a\"\)"),
        (TooManyLogits(), r"the output with train=False = 'float32\[2, 5\]' .* 4 classes .*float32\[2, 4\]"),
        (TwoOutputs(), r"the output with train=True = \('float32\[2, 4\]', 'float32\[2, 4\]'\) "),
        (Counting(), r"Counting keeps counts: a network may have params and batch_stats only"),
        (Empty(), r"Empty has no parameters"),
        (Half(), r"Half: the type of Dense_0/(kernel|bias) = 'bfloat16' .*float32"),
        (AlwaysDropping(), r"AlwaysDropping failed.*InvalidRngError"),
        (Growing(), r"Growing changes .* batch_stats mean"),
        (FreezingNothing(), r"FreezingNothing\.frozen = '\^conv9/' .*matches no parameter.*Conv_0/"),
        (FreezingAWord(), r"FreezingAWord\.frozen = 'Dense_0/kernel' .*tuple of regular expressions"),
        (FreezingNonsense(), r"FreezingNonsense\.frozen = \('\(',\) .*tuple of regular expressions"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_network_that_cannot_be_trained_is_refused_in_one_message(model, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_network(model, SHAPE, (), 4)
    assert "\n" not in str(caught.value)


def test_images_smaller_than_a_network_says_are_refused():
    check_network(Centred(), (4, 4, 3), (), 4)
    with pytest.raises(
        ConfigError, match=r"images of 8x3 pixels are too small: Centred needs 4x4 or more.*another model.name"
    ):
        check_network(Centred(), (8, 3, 3), (), 4)


def test_a_start_that_changes_shapes_is_refused():
    class Reshaping(Centred):
        def init_from(self, params, images):
            return {**params, "shift": images}

    with pytest.raises(ConfigError, match=r"Reshaping\.init_from changed the shape, type or place of shift"):
        init_variables(Reshaping(), KEY, IMAGES)
