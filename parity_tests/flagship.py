"""The JAX half of the flagship proof, which needs no PyTorch: networks trained for 20 steps in float64.

python parity_tests/flagship.py cifar_cnn FILE.npz     writes what came of it, to be judged elsewhere
"""

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from networks import shorten

from jax_cifar import models
from jax_cifar.augment import HorizontalFlip, RandomCrop, SampleInfo
from jax_cifar.backend.precision import float64
from jax_cifar.config import Config, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from jax_cifar.models.network import normalize
from jax_cifar.optim.rules import Hyper, make_optimizer
from jax_cifar.optim.schedules import make_schedule
from jax_cifar.training.losses import cross_entropy
from jax_cifar.training.state import create_train_state
from jax_cifar.training.steps import make_train_step

STEPS, BATCH, CLASSES = 20, 8, 10
SMOOTHING, CLIP, LR, MOMENTUM, DECAY = 0.1, 1.0, 0.1, 0.9, 5e-4
PADDING, MEAN, STD = 4, (0.5, 0.48, 0.45), (0.29, 0.28, 0.3)
QUANTITIES = ("loss", "parameters", "statistics", "logits")  # what is compared

NETWORKS = {
    "resnet34": ModelConfig(name="resnet34", width=4),
    "cifar_cnn": ModelConfig(name="cifar_cnn", width=4, dropout=0.0),
}
SCHEDULES = {
    "resnet34": ScheduleConfig(name="cosine", unit="steps", warmup=5, warmup_start=0.1),
    "cifar_cnn": ScheduleConfig(name="onecycle", cycle_momentum=True),
}


def make_config(name: str) -> Config:
    return Config(
        name="flagship",
        model=NETWORKS[name],
        optim=OptimConfig(lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY, clip_norm=CLIP),
        schedule=SCHEDULES[name],
        train=TrainConfig(batch_size=BATCH, steps=STEPS, label_smoothing=SMOOTHING),
    )


class Batch(NamedTuple):
    """Pixels in [0, 1], and what augmentation draws for them."""

    images: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray  # of the crop, [batch, 2]
    index: np.ndarray  # in the data set, from which the alternating flip follows
    epoch: int


def batches() -> list[Batch]:
    draws = np.random.default_rng(0)
    return [
        Batch(
            draws.uniform(size=(BATCH, 32, 32, 3)),
            draws.integers(0, CLASSES, BATCH),
            draws.integers(0, 2 * PADDING + 1, (BATCH, 2), np.int32),
            draws.integers(0, 50000, BATCH, np.int32),
            epoch=step // 7,
        )
        for step in range(STEPS)
    ]


@jax.jit
def augment(images: jax.Array, offsets: jax.Array, info: SampleInfo) -> jax.Array:
    """Images augmented by `jax_cifar.augment` and normalised as a run does it."""
    images = RandomCrop(PADDING).transform(images, offsets)
    images = HorizontalFlip(mode="alternate")(jax.random.key(0), images, info)
    return normalize(images, MEAN, STD)


def jax_images(batch: Batch) -> jax.Array:
    """The batch as the JAX network sees it."""
    info = SampleInfo(jnp.asarray(batch.index), jnp.asarray(batch.epoch, jnp.int32))
    return augment(jnp.asarray(batch.images), jnp.asarray(batch.offsets), info)


def train_jax(config: Config, model, variables):
    optimizer = make_optimizer(config.optim, variables["params"])
    state = create_train_state(variables, optimizer, ema=False)
    train_step = make_train_step(model, optimizer, config)

    @jax.jit
    def step(state, images, labels, hyper):
        # The step's own sums are float32.
        logits, _ = model.apply(state.variables, images, train=True, mutable=["batch_stats"])
        exact_loss = jnp.mean(cross_entropy(logits, labels, SMOOTHING))
        return *train_step(state, images, labels, hyper, jax.random.key(0)), exact_loss

    tables = make_schedule(config.schedule, LR, STEPS, STEPS, MOMENTUM)
    losses = []
    for i, batch in enumerate(batches()):
        hyper = Hyper(jnp.asarray(tables.lr[i]), jnp.asarray(tables.momentum[i]), jnp.asarray(DECAY))
        state, sums, loss = step(state, jax_images(batch), jnp.asarray(batch.labels), hyper)
        losses.append(float(loss))
        np.testing.assert_allclose(float(sums["loss"]) / BATCH, losses[-1], rtol=1e-6)
    return state, losses


class Trained(NamedTuple):
    """What JAX makes of a network."""

    start: Any  # variables in NumPy, as the next
    end: Any
    losses: np.ndarray
    logits: np.ndarray  # of the first batch, in the end


@functools.cache
def trained(name: str, short: bool = False) -> Trained:
    """The network of that name after its steps; a ResNet that is `short` has fewer blocks in each stage."""
    with float64():
        return _train(name, short)


def _train(name: str, short: bool) -> Trained:
    config, images = make_config(name), jax_images(batches()[0])
    model = models.create_model(config.model, CLASSES, jnp.float64, jnp.float64)
    model = shorten(model) if short else model
    variables = models.init_variables(model, jax.random.key(1), images)
    start = jax.device_get(variables)
    state, losses = train_jax(config, model, variables)
    logits = jax.jit(functools.partial(model.apply, train=False))(state.variables, images)
    return Trained(start, jax.device_get(state.variables), np.array(losses), np.asarray(logits))


def write(name: str, path: Path) -> None:
    """Write what `trained` gives as arrays that any version of NumPy reads."""
    arrays: Any = flatten_dict(trained(name)._asdict(), sep="/")
    np.savez(path, **arrays)


def read(path: Path) -> Trained:
    """What another process wrote."""
    with np.load(path) as arrays:
        return Trained(**unflatten_dict(dict(arrays), sep="/"))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
