"""Update rules against `torch.optim` in float64, over 25 steps on a noisy quadratic."""

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from torch.optim import swa_utils

import torch_ref.optimizers
from jax_cifar.config import OptimConfig
from jax_cifar.config.files import load_config
from jax_cifar.optim import transforms
from jax_cifar.optim.rules import Hyper, make_optimizer, update_ema
from torch_ref.models import create_model
from torch_ref.optimizers import make_optimizers

STEPS = 25
SHAPES = {
    "conv1/kernel": (3, 3, 2, 4),  # wide and tall matrices, and two kernels of one shape
    "conv1/bias": (4,),
    "conv2/kernel": (1, 1, 4, 8),
    "conv3/kernel": (1, 1, 4, 8),
    "norm/scale": (4,),
    "head/kernel": (5, 3),
}
Flat = dict[str, np.ndarray]
pytestmark = pytest.mark.usefixtures("x64")


def draw(seed: int) -> Flat:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


START = draw(0)
NOISE = [draw(1 + step) for step in range(STEPS)]
RATES = [0.05 * (1 + np.cos(0.2 * step)) for step in range(STEPS)]
CYCLED = [0.9 - 0.2 * np.sin(0.3 * step) for step in range(STEPS)]


def gradient(value, noise):
    return 0.3 * value + noise


def hypers(weight_decay: float, cycle: bool) -> list[Hyper]:
    momenta = CYCLED if cycle else [0.9] * STEPS
    return [Hyper(lr, m, weight_decay) for lr, m in zip(RATES, momenta, strict=True)]


@functools.cache
def compiled(tx: optax.GradientTransformationExtraArgs) -> Callable:
    @jax.jit
    def step(params, state, noise, hyper):
        grads = jax.tree.map(gradient, params, noise)
        updates, state = tx.update(grads, state, params, hyper=hyper)
        return optax.apply_updates(params, updates), state

    return step


def run(tx: optax.GradientTransformationExtraArgs, settings: list[Hyper]) -> Flat:
    params: Any = unflatten_dict({name: jnp.asarray(value) for name, value in START.items()}, sep="/")
    state = tx.init(params)
    for noise, hyper in zip(NOISE, settings, strict=True):
        params, state = compiled(tx)(params, state, unflatten_dict(noise, sep="/"), Hyper(*map(jnp.float64, hyper)))
    return {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}


def run_torch(
    build: Callable, settings: list[Hyper], clip: float | None = None, after: Callable | None = None, **factors
) -> Flat:
    """`build(groups)` makes the optimizer; `factors` maps a path to its (lr, weight decay) multipliers."""
    params = {name: torch.tensor(value) for name, value in START.items()}
    optimizer = build([{"params": [value], "name": name} for name, value in params.items()])
    for number, (noise, hyper) in enumerate(zip(NOISE, settings, strict=True)):
        for group in optimizer.param_groups:
            rate, decay = factors.get(group["name"].replace("/", "_"), (1.0, 1.0))
            group |= {"lr": hyper.lr * rate, "weight_decay": hyper.weight_decay * decay}
            if "betas" in group:
                group["betas"] = (hyper.momentum, group["betas"][1])
            elif "momentum" in group:
                group["momentum"] = hyper.momentum
        for name, value in params.items():
            value.grad = gradient(value, torch.tensor(noise[name]))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
        optimizer.step()
        if after is not None:
            after(number, params)
    return {name: value.numpy() for name, value in params.items()}


def gap(ours: Flat, theirs: Flat) -> float:
    """Largest absolute difference; the parameters are of order 1."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].shape == theirs[name].shape
        assert ours[name].dtype == np.float64
        assert np.isfinite(ours[name]).all()
    return max(float(np.max(np.abs(ours[name] - theirs[name]))) for name in ours)


def sgd(nesterov: bool) -> Callable:
    return lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=nesterov)


RULES: dict[str, tuple[dict, Callable]] = {
    "sgd": ({"name": "sgd"}, sgd(False)),
    "nesterov": ({"name": "sgd", "nesterov": True}, sgd(True)),
    "adam": ({"name": "adam"}, torch.optim.Adam),
    "adamw": ({"name": "adamw", "b2": 0.99, "eps": 1e-3}, lambda g: torch.optim.AdamW(g, betas=(0.9, 0.99), eps=1e-3)),
    "adagrad": ({"name": "adagrad"}, lambda groups: torch.optim.Adagrad(groups, eps=1e-8)),
}


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("rule", RULES)
def test_rule_is_torchs(rule, clip):
    fields, build = RULES[rule]
    tx = make_optimizer(OptimConfig(clip_norm=clip, **fields), unflatten_dict(START, sep="/"))
    for weight_decay, cycle in itertools.product([0.0, 0.05], [False, True]):
        settings = hypers(weight_decay, cycle)
        assert gap(run(tx, settings), run_torch(build, settings, clip)) <= 1e-12, (weight_decay, cycle)


def test_sgd_without_momentum():
    settings = [Hyper(lr, 0.0, 0.05) for lr in RATES]
    tx = make_optimizer(OptimConfig(momentum=0.0), unflatten_dict(START, sep="/"))
    assert gap(run(tx, settings), run_torch(torch.optim.SGD, settings)) <= 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_what_each_setting_changes_is_told_apart(rule):
    fields, build = RULES[rule]
    judge = run_torch(build, hypers(0.05, True), clip=2.0)
    like = unflatten_dict(START, sep="/")
    right = make_optimizer(OptimConfig(clip_norm=2.0, **fields), like)
    wrong = [
        run(make_optimizer(OptimConfig(**fields), like), hypers(0.05, True)),
        run(right, hypers(0.0, True)),
        run(right, [hyper._replace(lr=0.05) for hyper in hypers(0.05, True)]),
    ]
    if rule != "adagrad":
        wrong.append(run(right, hypers(0.05, False)))
    assert min(gap(values, judge) for values in wrong) > 1e-5


def test_wrong_orders_and_variants_are_told_apart():
    settings = hypers(0.05, False)
    decay, by_rate = transforms.add_weight_decay({}), transforms.scale_by_lr({})
    clip = transforms.clip_by_global_norm(2.0)
    adam = transforms.adam(0.999, 1e-8)
    plain = transforms.momentum(False)
    cases = [
        (optax.chain(plain, decay, by_rate), sgd(False), None),  # decay after momentum
        (optax.chain(decay, adam, by_rate), torch.optim.AdamW, None),  # coupled for decoupled
        (optax.chain(adam, decay, by_rate), torch.optim.Adam, None),
        (optax.chain(decay, plain, by_rate), sgd(True), None),  # Nesterov off
        (optax.chain(decay, clip, plain, by_rate), sgd(False), 2.0),  # decay clipped
    ]
    for tx, build, norm in cases:
        assert gap(run(tx, settings), run_torch(build, settings, norm)) > 1e-5


def test_multipliers_and_frozen_parameters():
    config = OptimConfig(
        lr_multipliers=(("bias$", 4.0), ("^conv1/", 0.5)),
        decay_multipliers=((r"(scale|bias)$", 0.0),),
        clip_norm=2.0,
    )
    tx = make_optimizer(config, unflatten_dict(START, sep="/"), frozen=("^conv2/kernel$",))
    settings = hypers(0.05, False)
    factors = {"conv1_bias": (4.0, 0.0), "conv1_kernel": (0.5, 1.0), "norm_scale": (1.0, 0.0)}

    def build(groups):
        for group in groups:
            group["params"][0].requires_grad = group["name"] != "conv2/kernel"
        return torch.optim.SGD(groups, 0.1, momentum=0.9)

    judge = run_frozen(build, settings, factors)
    assert gap(run(tx, settings), judge) <= 1e-12
    np.testing.assert_array_equal(judge["conv2/kernel"], START["conv2/kernel"])
    without = make_optimizer(OptimConfig(clip_norm=2.0), unflatten_dict(START, sep="/"), frozen=("^conv2/kernel$",))
    assert gap(run(without, settings), judge) > 1e-3


def run_frozen(build: Callable, settings: list[Hyper], factors: dict) -> Flat:
    """`run_torch` with clipping to 2 and real backward passes, so that PyTorch itself decides what has a gradient."""
    params = {name: torch.tensor(value) for name, value in START.items()}
    optimizer = build([{"params": [value], "name": name} for name, value in params.items()])
    for noise, hyper in zip(NOISE, settings, strict=True):
        for group in optimizer.param_groups:
            rate, decay = factors.get(group["name"].replace("/", "_"), (1.0, 1.0))
            group |= {"lr": hyper.lr * rate, "weight_decay": hyper.weight_decay * decay}
        optimizer.zero_grad()
        loss = sum(torch.sum(0.15 * p**2 + torch.tensor(noise[name]) * p) for name, p in params.items())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(params.values()), 2.0)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in params.items()}


@pytest.mark.parametrize("size", [0.3, 1.0, 5.0, np.inf])
@pytest.mark.parametrize("max_norm", [0.01, 1.0])
def test_clipping_is_torchs(max_norm, size):
    flat = NOISE[0]
    norm = np.sqrt(sum(np.sum(value**2) for value in flat.values()))
    grads = {name: value * (1 if size == np.inf else size * max_norm / norm) for name, value in flat.items()}
    if size == np.inf:
        grads["conv1/bias"] = np.array([np.inf, 1, 2, 3.0])
    clip = transforms.clip_by_global_norm(max_norm)
    ours: Any
    other: Any
    ours, _ = clip.update(jax.tree.map(jnp.asarray, grads), optax.EmptyState(), hyper=Hyper(0.1, 0.9, 0.0))
    leaves = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in grads.items()}
    for name, leaf in leaves.items():
        leaf.grad = torch.tensor(grads[name])
    torch.nn.utils.clip_grad_norm_(list(leaves.values()), max_norm)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        np.testing.assert_allclose(ours[name], leaf.grad.numpy(), rtol=1e-14, atol=0)
    if size >= 1 and size < np.inf:  # optax leaves out the 1e-6, which shows at small norms
        other, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
        relative = np.max(np.abs(np.asarray(other["head/kernel"]) / np.asarray(ours["head/kernel"]) - 1))
        assert relative == pytest.approx(1e-6 / (size * max_norm), rel=1e-3)


def run_muon(settings: list[Hyper], config: OptimConfig) -> Flat:
    """The optimizers that `torch_ref` has for muon, kernels in PyTorch's layout."""
    values = {name: torch.tensor(value) for name, value in START.items()}
    params = {name: torch.nn.Parameter(to_torch(value)) for name, value in values.items()}
    names = {re.sub("kernel|scale", "weight", name).replace("/", "."): value for name, value in params.items()}
    muon, aux = make_optimizers(config, names)
    for noise, hyper in zip(NOISE, settings, strict=True):
        muon.param_groups[0] |= hyper._asdict()
        aux.param_groups[0] |= {"lr": config.aux_lr * hyper.lr / config.lr, "weight_decay": hyper.weight_decay}
        for name, value in params.items():
            value.grad = gradient(value.detach(), to_torch(torch.tensor(noise[name])))
        muon.step()
        aux.step()
    trained = {name: value.detach() for name, value in params.items()}
    return {name: (x.permute(2, 3, 1, 0) if x.ndim == 4 else x).numpy() for name, x in trained.items()}


def to_torch(value: torch.Tensor) -> torch.Tensor:
    return value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value


def test_muon_is_airbenchs(monkeypatch):
    config = OptimConfig(name="muon", lr=0.24, aux_lr=0.05, aux_momentum=0.85)
    tx = make_optimizer(config, unflatten_dict(START, sep="/"))
    for weight_decay, cycle in itertools.product([0.0, 0.05], [False, True]):
        settings = hypers(weight_decay, cycle)
        ours = run(tx, settings)
        assert gap(ours, run_muon(settings, config)) <= 1e-12, (weight_decay, cycle)
    for name, wrong in {"renormalising_factor": lambda kernel: 1.0, "ITERATIONS": 5}.items():
        with monkeypatch.context() as patch:
            patch.setattr(torch_ref.optimizers, name, wrong)
            assert gap(ours, run_muon(settings, config)) > 1e-3


def test_what_decays_in_the_94_recipe_decays_as_airbenchs():
    config = load_config("cifar10_speedrun:94")
    muon, aux = make_optimizers(config.optim, dict(create_model(config.model, 10).named_parameters()))
    assert [group["weight_decay"] for group in muon.param_groups] == [0]
    products = [group["lr"] * group["weight_decay"] for group in aux.param_groups]
    assert products == pytest.approx([0.004, 0.004])  # biases, and the head: 2e-6 an image of 2000


@pytest.mark.parametrize(("every", "alpha"), [(5, 0.5), (1, 0.8), (7, 1.0)])
def test_lookahead(every, alpha):
    settings = hypers(0.05, False)
    slow = {name: torch.tensor(value) for name, value in START.items()}

    def synchronise(number: int, params: dict[str, torch.Tensor]) -> None:
        if (number + 1) % every == 0:
            for name, fast in params.items():
                slow[name] += alpha * (fast - slow[name])
                fast.copy_(slow[name])

    config = OptimConfig(nesterov=True, lookahead_every=every, lookahead_alpha=alpha)
    ours = run(make_optimizer(config, unflatten_dict(START, sep="/")), settings)
    assert gap(ours, run_torch(sgd(True), settings, after=synchronise)) <= 1e-12
    if alpha < 1:
        assert gap(ours, run_torch(sgd(True), settings)) > 1e-3


def test_ema_is_torchs_averaged_model_started_at_the_initial_weights():
    decay = 0.9
    module: Any = torch.nn.Linear(3, 2).double()
    average: Any = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    average.update_parameters(module)  # the first call copies
    late: Any = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    ema = {"kernel": jnp.array(module.weight.detach().numpy())}  # a copy: the module's own is written to
    rng = np.random.default_rng(0)
    for _ in range(20):
        value = rng.standard_normal((2, 3))
        with torch.no_grad():
            module.weight.copy_(torch.tensor(value))
        average.update_parameters(module)
        late.update_parameters(module)
        ema = update_ema(ema, {"kernel": jnp.asarray(value)}, decay)
    assert np.max(np.abs(ema["kernel"] - average.module.weight.detach().numpy())) <= 1e-15
    assert np.max(np.abs(ema["kernel"] - late.module.weight.detach().numpy())) > 1e-3
