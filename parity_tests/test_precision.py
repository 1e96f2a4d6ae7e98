"""bfloat16: the networks against PyTorch's autocast, and an audit of every type in the compiled training step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxprs import equations
from networks import QUICK_COMPILE
from tolerances import agree, assert_close

from jax_cifar import models
from jax_cifar.config import Config, ModelConfig, OptimConfig, TrainConfig
from jax_cifar.models import cnn
from jax_cifar.ops import conv
from jax_cifar.optim.rules import Hyper, make_optimizer
from jax_cifar.training import steps
from jax_cifar.training.losses import cross_entropy
from jax_cifar.training.state import create_train_state
from torch_ref.convert import to_torch
from torch_ref.models import create_model

CLASSES, BATCH, SIZE = 10, 32, 20
BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
# Few layers: each adds its roundings, and either framework's own float32 is soon farther away than the tolerance.
CONFIGS = {
    "tiny_cnn": ModelConfig("tiny_cnn", width=8, dropout=0.0),
    "cifar_cnn": ModelConfig("cifar_cnn", width=8, dropout=0.0, norm="none"),
    "resnet18": ModelConfig("resnet18", width=8),  # one block a stage
    "speedrun_net": ModelConfig("speedrun_net", width=8, convs_per_group=1),
}
each_network = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case in ("cifar_cnn", "resnet18") else case for case in CONFIGS],
)


class Pass(NamedTuple):
    """One forward pass in training."""

    logits: np.ndarray  # in float32
    loss: np.ndarray
    statistics: dict[str, np.ndarray]  # running ones, by PyTorch's name


def network(case, dtype) -> Any:
    model: Any = models.create_model(CONFIGS[case], CLASSES, dtype)
    return model.clone(stage_sizes=(1, 1, 1, 1)) if case == "resnet18" else model


def judge_of(case) -> Any:
    judge: Any = create_model(CONFIGS[case], CLASSES, SIZE)
    if case == "resnet18":
        judge.layer1, judge.layer2, judge.layer3, judge.layer4 = (
            stage[:1] for stage in (judge.layer1, judge.layer2, judge.layer3, judge.layer4)
        )
    return judge


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images of coloured patches with some noise: in pure noise the deep layers would see next to no signal."""
    draws = np.random.default_rng(0)
    patches = np.kron(draws.normal(size=(BATCH, 4, 4, 3)), np.ones((1, SIZE // 4, SIZE // 4, 1)))
    images = patches + 0.3 * draws.normal(size=(BATCH, SIZE, SIZE, 3))
    return images.astype(np.float32), draws.integers(0, CLASSES, BATCH)


@functools.cache
def variables_of(case) -> Any:
    init = functools.partial(models.init_variables, network(case, jnp.float32))
    return jax.device_get(jax.jit(init, compiler_options=QUICK_COMPILE)(jax.random.key(0), jnp.asarray(batch()[0])))


@functools.cache
def jax_pass(case, dtype) -> Pass:
    model = network(case, dtype)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def run(variables, images, labels):
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, jnp.mean(cross_entropy(logits, labels)), updated.get("batch_stats", {})

    logits, loss, stats = jax.device_get(run(variables_of(case), *batch()))
    tree = {"params": variables_of(case)["params"], "batch_stats": stats}
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {FLOAT32}
    statistics = {k: v.numpy() for k, v in to_torch(tree, judge_of(case)).items() if "running" in k}
    return Pass(logits, loss, statistics)


def torch_pass(case, autocast, plant=lambda judge: None) -> Pass:
    """`plant` may make a fault in the network."""
    images, labels = batch()
    judge = judge_of(case)
    judge.load_state_dict(to_torch(variables_of(case), judge), strict=True)
    plant(judge)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = judge.train()(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
        loss = F.cross_entropy(logits, torch.from_numpy(labels))
    assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
    statistics = {name: x.numpy() for name, x in judge.named_buffers() if "running" in name}
    return Pass(logits.float().numpy(), loss.numpy(), statistics)


@each_network
def test_bfloat16_agrees_with_autocast(case):
    ours, theirs = jax_pass(case, jnp.bfloat16), torch_pass(case, autocast=True)
    assert_close(ours.logits, theirs.logits, "bfloat16 logits", "the logits")
    assert_close(ours.loss, theirs.loss, "bfloat16 loss", "the loss")  # which is float32 in both, as it checks
    assert theirs.loss.dtype == FLOAT32
    assert ours.statistics.keys() == theirs.statistics.keys()
    for name, expected in theirs.statistics.items():
        assert ours.statistics[name].dtype == expected.dtype == FLOAT32, name


@each_network
def test_float32_agrees_and_bfloat16_is_measurably_away_from_it(case):
    """Without this, both could have run in float32 all along."""
    ours, theirs = jax_pass(case, jnp.float32), torch_pass(case, autocast=False)
    assert_close(ours.logits, theirs.logits, "float32 network", "the logits")
    assert not agree(jax_pass(case, jnp.bfloat16).logits, ours.logits, "float32 network")
    assert not agree(torch_pass(case, autocast=True).logits, theirs.logits, "float32 network")


@pytest.mark.parametrize(
    ("case", "layer", "field", "value"),
    [
        pytest.param("resnet18", "layer2.0.conv1", "padding_mode", "circular", marks=pytest.mark.slow),
        ("tiny_cnn", "bn2", "eps", 0.1),
        pytest.param("cifar_cnn", "block4.conv2", "bias", None, marks=pytest.mark.slow),
        ("speedrun_net", "group2.conv1", "padding_mode", "circular"),
    ],
)
def test_a_fault_is_larger_than_the_roundings(case, layer, field, value):
    theirs = torch_pass(case, True, lambda judge: setattr(judge.get_submodule(layer), field, value))
    assert not agree(jax_pass(case, jnp.bfloat16).logits, theirs.logits, "bfloat16 logits")


class Audit(NamedTuple):
    """What a training step's jaxpr computes in which types."""

    heavy: int  # convolutions and matrix products
    wide: list[list[int]]  # what those return that read anything but bfloat16: the lengths of its axes, sorted
    sums: set[Any]  # types that products inside loops return: the chunks of the CPU's kernel gradient
    types: dict[str, set[Any]]  # of the floating-point numbers that the step returns or hands on


def float_types(tree) -> set[Any]:
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def audit(model_config, monkeypatch, accumulate=1) -> Audit:
    optim = OptimConfig(nesterov=True, clip_norm=1.0, ema_decay=0.9, accumulate=accumulate)
    config = Config("audit", model=model_config, optim=optim, train=TrainConfig(batch_size=8, label_smoothing=0.1))
    model, images = models.create_model(model_config, CLASSES, jnp.bfloat16), jnp.zeros((8, SIZE, SIZE, 3))
    variables: Any = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    optimizer = make_optimizer(optim, variables["params"])
    types: dict[str, set[Any]] = {}

    def update(grads, *rest, **options):
        types["gradients"] = float_types(grads)
        return optimizer.update(grads, *rest, **options)

    loss = steps.cross_entropy

    def spied_loss(*inputs, **options):
        losses = loss(*inputs, **options)
        types["loss"] = float_types(losses)
        return losses

    monkeypatch.setattr(steps, "cross_entropy", spied_loss)
    monkeypatch.setattr(conv, "CHUNK_BYTES", 1)  # so that there are several chunks
    state = jax.eval_shape(functools.partial(create_train_state, optimizer=optimizer, ema=True), variables)
    step = steps.make_train_step(model, optimizer._replace(update=update), config)
    hyper = Hyper(jnp.float32(0.1), jnp.float32(0.9), jnp.float32(5e-4))
    inputs = (state, images, jnp.zeros(8, jnp.int32), hyper, jax.random.key(0))
    jaxpr, (state, sums) = jax.make_jaxpr(step, return_shape=True)(*inputs)
    for name in ("params", "batch_stats", "opt_state", "ema"):
        types[name] = float_types(getattr(state, name))
    types["metrics"] = float_types(sums)
    # A product with one row of ones is a sum per channel, which is taken in float32 as all sums are.
    heavy = [
        (e, loops)
        for e, loops in equations(jaxpr.jaxpr)
        if e.primitive.name == "conv_general_dilated"
        or (e.primitive.name == "dot_general" and e.invars[0].aval.shape[0] > 1)
    ]
    wide = [sorted(e.outvars[0].aval.shape) for e, _ in heavy if {x.aval.dtype for x in e.invars} != {BFLOAT16}]
    inner = {e.outvars[0].aval.dtype for e, loops in heavy if loops > (accumulate > 1)}
    return Audit(len(heavy), wide, inner, types)


def head_products(features, rows=8) -> list[list[int]]:
    """The last dense layer stays in float32 (`make_head`): its output and its two gradients, one product each."""
    return [sorted(shape) for shape in ((rows, CLASSES), (rows, features), (features, CLASSES))]


@pytest.mark.parametrize(
    ("name", "norm", "accumulate", "features", "convolutions"),
    [("tiny_cnn", "batch", 1, 4 * 2 * 2, 3), ("tiny_cnn", "group", 1, 4 * 2 * 2, 3), ("simple_cnn", "none", 2, 4, 2)]
    + [("cifar_cnn", "batch", 1, 8, 8), ("speedrun_net", "batch", 1, 4, 7)]
    # The same again, with what these have.
    + [pytest.param("tiny_cnn", "none", 1, 4 * 2 * 2, 3, marks=pytest.mark.slow)]
    + [pytest.param("tiny_cnn", "batch", 2, 4 * 2 * 2, 3, marks=pytest.mark.slow)]
    + [pytest.param("speedrun_net", "none", 2, 4, 7, marks=pytest.mark.slow)]
    + [pytest.param("resnet18", norm, 1, 8, 20, marks=pytest.mark.slow) for norm in ("batch", "group")]
    + [pytest.param("resnet50", "batch", 1, 32, 53, marks=pytest.mark.slow)],
)
def test_a_bfloat16_step_computes_in_bfloat16_and_keeps_float32(
    name, norm, accumulate, features, convolutions, monkeypatch
):
    found = audit(ModelConfig(name, norm=norm, width=1), monkeypatch, accumulate)
    assert found.heavy > 3 * convolutions
    assert sorted(found.wide) == sorted(head_products(features, 8 // accumulate))
    assert found.sums == {FLOAT32}
    statistics = found.types.pop("batch_stats")
    assert statistics == ({FLOAT32} if norm == "batch" else set())
    assert set(found.types) == {"params", "opt_state", "ema", "metrics", "gradients", "loss"}
    assert all(types == {FLOAT32} for types in found.types.values()), found.types


def test_the_audit_finds_a_float32_layer(monkeypatch):
    make_layers = cnn.make_layers

    def planted(norm, train, dtype, param_dtype):
        conv, make_norm = make_layers(norm, train, dtype, param_dtype)

        def one_wide(features, size, padding, name):
            wide = {"dtype": jnp.float32} if name == "conv2" else {}
            return conv(features, size, padding=padding, name=name, **wide)

        return one_wide, make_norm

    monkeypatch.setattr(cnn, "make_layers", planted)
    found = audit(ModelConfig("tiny_cnn", width=1), monkeypatch)
    assert len(found.wide) > len(head_products(4 * 2 * 2))
    assert sorted((8, SIZE // 2, SIZE // 2, 2)) in found.wide  # what conv2 returns


def test_the_audit_finds_a_loss_in_bfloat16(monkeypatch):
    def narrow(logits, targets, label_smoothing):
        return cross_entropy(logits, targets, label_smoothing).astype(jnp.bfloat16)

    monkeypatch.setattr(steps, "cross_entropy", narrow)
    found = audit(ModelConfig("tiny_cnn", width=1), monkeypatch)
    assert found.types["loss"] == {BFLOAT16}


def test_a_loss_in_bfloat16_is_too_coarse():
    """What a library gives that leaves the logits' type alone, as optax's does."""
    logits, labels = jax_pass("tiny_cnn", jnp.bfloat16).logits, batch()[1]
    narrow = jax.nn.log_softmax(jnp.asarray(logits, jnp.bfloat16))
    loss = -jnp.mean(narrow[np.arange(BATCH), labels])
    assert loss.dtype == jnp.bfloat16
    assert not agree(np.asarray(loss, np.float32), torch_pass("tiny_cnn", autocast=True).loss, "bfloat16 loss")
