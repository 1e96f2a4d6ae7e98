"""The reference trainer's updates are those of the JAX stack: same weights, same batches, in float64."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from tolerances import agree, assert_close

from jax_cifar import models
from jax_cifar.augment.mixing import mix_with_partner, mixup_share
from jax_cifar.backend.precision import float64
from jax_cifar.config import Config, MixConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from jax_cifar.errors import ConfigError
from jax_cifar.optim.rules import Hyper, constant_momentum, make_optimizer
from jax_cifar.optim.schedules import make_schedule
from jax_cifar.training.losses import cross_entropy
from jax_cifar.training.state import create_train_state
from jax_cifar.training.steps import make_train_step
from torch_ref import augment, convert, steps
from torch_ref import models as torch_models
from torch_ref.optimizers import make_optimizers

QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # compiling takes most of these tests' time
STEPS, PER_EPOCH, BATCH, SIZE, CLASSES = 6, 3, 8, 12, 5
LAMBDAS = (0.25, 0.9, 0.5, 0.75, 0.1, 0.6)


def experiment(optim: OptimConfig, schedule: ScheduleConfig, **sections: Any) -> Config:
    defaults: dict[str, Any] = {
        "model": ModelConfig(name="tiny_cnn", width=4, dropout=0.0),
        "train": TrainConfig(steps=STEPS, batch_size=BATCH, label_smoothing=0.1),
    }
    return Config(name="parity", optim=optim, schedule=schedule, **(defaults | sections))


SGD = OptimConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05, clip_norm=0.5)
PLAIN = dataclasses.replace(SGD, clip_norm=None)
COSINE = ScheduleConfig(name="cosine", warmup=1, warmup_start=0.1)
MUON = OptimConfig(
    name="muon",
    lr=0.1,
    momentum=0.6,
    weight_decay=0.1,
    aux_lr=0.5,
    lr_multipliers=(("^head/", 0.2), ("^group1/", 0.5), ("conv1/", 1.5)),  # the first match wins
    decay_multipliers=(("bias$", 0.0), ("^group2/", 0.3)),
)
# Each with changes that must show.
CASES: dict[str, tuple[Config, list[dict[str, dict[str, Any]]]]] = {
    "sgd": (
        experiment(SGD, ScheduleConfig(name="onecycle")),
        [
            {"optim": {"nesterov": False}},
            {"optim": {"weight_decay": 0.0}},
            {"optim": {"clip_norm": None}},
            {"schedule": {"cycle_momentum": False}},
            {"schedule": {"name": "constant"}},
            {"train": {"label_smoothing": 0.0}},
        ],
    ),
    "adamw": (
        experiment(OptimConfig(name="adamw", lr=0.01, weight_decay=0.5), COSINE),
        [{"optim": {"name": "adam"}}, {"optim": {"b2": 0.99}}, {"schedule": {"warmup": 0.0}}],
    ),
    "muon": (
        experiment(MUON, ScheduleConfig(name="triangular"), model=ModelConfig(name="speedrun_net", width=4)),
        [
            {"optim": {"lr_multipliers": ()}},
            {"optim": {"decay_multipliers": ()}},
            {"optim": {"aux_momentum": 0.6}},
            {"optim": {"momentum": 0.7}},
        ],
    ),
    "muon with onecycle": (
        experiment(MUON, ScheduleConfig(name="onecycle"), model=ModelConfig(name="speedrun_net", width=4)),
        [{"schedule": {"cycle_momentum": False}}],
    ),
    "accumulation": (experiment(dataclasses.replace(SGD, accumulate=2), COSINE), [{"optim": {"accumulate": 1}}]),
    "ema": (
        experiment(dataclasses.replace(PLAIN, ema_decay=0.8, ema_warmup=False), COSINE),
        [{"optim": {"ema_decay": 0.79}}, {"optim": {"ema_warmup": True}}],
    ),
    # Its decay is reached on the way.
    "ema warmed up": (
        experiment(dataclasses.replace(PLAIN, ema_decay=0.3), COSINE),
        [{"optim": {"ema_decay": 0.29}}, {"optim": {"ema_warmup": False}}],
    ),
    "lookahead": (
        experiment(dataclasses.replace(PLAIN, lookahead_every=2, lookahead_alpha=0.5), COSINE),
        [{"optim": {"lookahead_every": 3}}, {"optim": {"lookahead_alpha": 0.6}}],
    ),
    "mixup": (
        experiment(PLAIN, COSINE, mix=MixConfig(mixup_alpha=1.0)),
        [{"train": {"label_smoothing": 0.0}}, {"mix": {"mixup_alpha": 0.0}}],
    ),
    "sgd with all of these": (
        experiment(
            dataclasses.replace(SGD, ema_decay=0.3),
            ScheduleConfig(name="onecycle"),
            mix=MixConfig(mixup_alpha=1.0),
        ),
        [
            {"optim": {"nesterov": False}},
            {"optim": {"weight_decay": 0.0}},
            {"optim": {"clip_norm": None}},
            {"optim": {"ema_decay": 0.29}},
            {"optim": {"ema_warmup": False}},
            {"schedule": {"cycle_momentum": False}},
            {"schedule": {"name": "constant"}},
            {"train": {"label_smoothing": 0.0}},
            {"mix": {"mixup_alpha": 0.0}},
        ],
    ),
}


class Run(NamedTuple):
    losses: np.ndarray
    params: np.ndarray  # all in one vector
    statistics: np.ndarray


def batches() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    return draws.normal(size=(STEPS, BATCH, SIZE, SIZE, 3)), draws.integers(0, CLASSES, (STEPS, BATCH))


def changed(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    sections = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in changes.items()}
    return dataclasses.replace(config, **sections)


def vector(tree: Any) -> np.ndarray:
    leaves = flatten_dict(tree, sep="/")
    return np.concatenate([np.ravel(np.asarray(leaves[name])) for name in sorted(leaves)])


def run_jax(config: Config) -> tuple[Run, Any]:
    """The run, and the variables that it started from."""
    images, labels = batches()
    model = models.create_model(config.model, CLASSES, jnp.float64, jnp.float64)
    variables = models.init_variables(model, jax.random.key(1), jnp.asarray(images[0]))
    optimizer = make_optimizer(config.optim, variables["params"], models.frozen_parameters(model))
    train_step = make_train_step(model, optimizer, config)

    def step(state, x, y, hyper):
        losses = []  # those of train_step are float32
        for part in range(config.optim.accumulate):
            part_x, part_y = x[part :: config.optim.accumulate], y[part :: config.optim.accumulate]
            logits, _ = model.apply(state.variables, part_x, train=True, mutable=["batch_stats"])
            losses.append(jnp.mean(cross_entropy(logits, part_y, config.train.label_smoothing)))
        return train_step(state, x, y, hyper, jax.random.key(0))[0], jnp.mean(jnp.stack(losses))

    step = jax.jit(step, compiler_options=QUICK_COMPILE)
    momentum = constant_momentum(config.optim)
    tables = make_schedule(config.schedule, config.optim.lr, STEPS, PER_EPOCH, momentum)
    state, losses = create_train_state(variables, optimizer, ema=config.optim.ema_decay > 0), []
    for i in range(STEPS):
        hyper = Hyper(*map(jnp.float64, (tables.lr[i], tables.momentum[i], config.optim.weight_decay)))
        x, y = jnp.asarray(images[i]), jnp.asarray(labels[i])
        if config.mix.mixup_alpha:
            share = mixup_share(jnp.float64(LAMBDAS[i]), *x.shape[1:3])
            x, y = mix_with_partner(x, jax.nn.one_hot(y, CLASSES, dtype=jnp.float64), share)
        state, loss = step(state, x, y, hyper)
        losses.append(float(loss))
    evaluated = state.eval_variables
    return Run(np.array(losses), vector(evaluated["params"]), vector(evaluated["batch_stats"])), variables


def run_torch(config: Config, variables: Any) -> Run:
    model = torch_models.create_model(config.model, CLASSES, SIZE).double()
    model.load_state_dict(convert.to_torch(jax.device_get(variables), model), strict=True)
    trainer = steps.Trainer(config, model, STEPS, PER_EPOCH)
    losses = []
    for x, y, lam in zip(*batches(), LAMBDAS, strict=True):
        images, targets = torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.from_numpy(y)
        if config.mix.mixup_alpha:
            images, targets = augment.mixup(images, torch.nn.functional.one_hot(targets, CLASSES).double(), lam)
        losses.append(trainer.update(images, targets)[0].item())
    evaluated = convert.from_torch(trainer.eval_model.state_dict(), jax.device_get(variables))
    return Run(np.array(losses), vector(evaluated["params"]), vector(evaluated["batch_stats"]))


ROWS = {"losses": "loss", "params": "parameters", "statistics": "statistics"}


QUICK = ("muon with onecycle",)  # the rest is left to the slow tests


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_updates_are_those_of_the_jax_stack(case):
    config, wrong = CASES[case]
    with float64():
        ours, variables = run_jax(config)
    theirs = run_torch(config, variables)
    for field, row in ROWS.items():
        assert_close(getattr(theirs, field), getattr(ours, field), f"float64 training, {row}", field)
    for changes in wrong:
        other = run_torch(changed(config, changes), variables)
        assert not agree(other.params, ours.params, "float64 training, parameters"), changes
    assert not agree(ours.params, vector(variables["params"]), "float64 training, parameters")


@pytest.mark.parametrize("name", ["tiny_cnn", "resnet18", "resnet50", "speedrun_net"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_parameters_have_the_paths_of_jax(name, norm):
    config = ModelConfig(name=name, norm=norm, width=2)
    init = jax.eval_shape(
        lambda: models.create_model(config, CLASSES).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    with torch.device("meta"):
        parameters = dict(torch_models.create_model(config, CLASSES).named_parameters())
    paths = {convert.jax_path(name, parameter.ndim) for name, parameter in parameters.items()}
    assert paths == set(flatten_dict(init["params"], sep="/"))


def test_patterns_and_rates_that_do_not_fit_are_refused():
    model = torch_models.create_model(ModelConfig(name="tiny_cnn", width=2), CLASSES)
    with pytest.raises(ConfigError, match=r"optim.lr_multipliers: '\^fc9/' matches no parameter.*conv1/kernel"):
        make_optimizers(OptimConfig(lr_multipliers=(("^fc9/", 2.0),)), dict(model.named_parameters()))
    lowest = ScheduleConfig(eta_min=0.01)
    steps.Trainer(experiment(SGD, lowest), model, STEPS, PER_EPOCH)
    for optim in (dataclasses.replace(SGD, lr=0.001), dataclasses.replace(SGD, lr_multipliers=(("^fc/", 2.0),))):
        with pytest.raises(ConfigError, match=r"schedule\.eta_min = 0\.01 is not allowed"):
            steps.Trainer(experiment(optim, lowest), model, STEPS, PER_EPOCH)


def test_warming_up_changes_nothing():
    model = torch_models.create_model(ModelConfig(name="tiny_cnn", width=2), CLASSES, SIZE)
    trainer = steps.Trainer(experiment(SGD, COSINE), model, STEPS, PER_EPOCH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.ones(BATCH, 3, SIZE, SIZE), torch.zeros(BATCH, dtype=torch.int64)
    trainer.warm_up(*batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    trainer.update(*batch)
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "fc" not in name)
