"""The proof of the whole step: networks trained for 20 steps in both frameworks, in float64, from the same weights.

Crops, flips and batches are the same too: each framework augments with its own code from the same draws.
In float64 the two stay together to many digits, and every mistake in a layer, loss, schedule, optimizer, decay, clip
or running statistic drives them apart by orders of magnitude; in float32 chaos would hide it. Losses alone cannot see a
wrong running variance, so the statistics and the evaluation logits are compared too.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import shorten, shorten_judge
from tolerances import TOLERANCES

from jax_cifar import models
from jax_cifar.augment import HorizontalFlip, RandomCrop, SampleInfo
from jax_cifar.config import Config, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from jax_cifar.models.network import normalize
from jax_cifar.optim.rules import Hyper, make_optimizer
from jax_cifar.optim.schedules import make_schedule
from jax_cifar.training.losses import cross_entropy
from jax_cifar.training.state import create_train_state
from jax_cifar.training.steps import make_train_step
from torch_ref import augment as torch_augment
from torch_ref import convert
from torch_ref import models as torch_models

STEPS, BATCH, CLASSES = 20, 8, 10
SMOOTHING, CLIP, LR, MOMENTUM, DECAY = 0.1, 1.0, 0.1, 0.9, 5e-4
PADDING, MEAN, STD = 4, (0.5, 0.48, 0.45), (0.29, 0.28, 0.3)
QUANTITIES = ("loss", "parameters", "statistics", "logits")

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


def torch_images(batch: Batch) -> torch.Tensor:
    """The batch augmented by `torch_ref.augment` and normalised."""
    images = torch.from_numpy(batch.images.transpose(0, 3, 1, 2).copy())
    images = torch_augment.crop(images, torch.from_numpy(batch.offsets), PADDING)
    images = torch_augment.flip(images, torch_augment.alternating(torch.from_numpy(batch.index), batch.epoch))
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def torch_schedule(name: str, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """PyTorch's own classes for the schedules of `SCHEDULES`."""
    schedulers = torch.optim.lr_scheduler
    if name == "cifar_cnn":
        return schedulers.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
    warmup = schedulers.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    cosine = schedulers.CosineAnnealingLR(optimizer, STEPS - 5)
    return schedulers.SequentialLR(optimizer, [warmup, cosine], [5])


def train_torch(name: str, network: torch.nn.Module) -> list[float]:
    network.double().train()
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True)
    scheduler, losses = torch_schedule(name, optimizer), []
    for batch in batches():
        logits = network(torch_images(batch))
        loss = F.cross_entropy(logits, torch.from_numpy(batch.labels), label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


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
        assert float(sums["loss"]) / BATCH == pytest.approx(losses[-1], rel=1e-6)
    return state, losses


class Trained(NamedTuple):
    """What JAX makes of a network."""

    start: Any  # variables in NumPy, as the next
    end: Any
    losses: np.ndarray
    logits: np.ndarray  # of the first batch, in the end


@functools.cache
def trained(name: str, short: bool) -> Trained:
    config, images = make_config(name), jax_images(batches()[0])
    model = models.create_model(config.model, CLASSES, jnp.float64, jnp.float64)
    model = shorten(model) if short else model
    variables = models.init_variables(model, jax.random.key(1), images)
    start = jax.device_get(variables)
    state, losses = train_jax(config, model, variables)
    logits = jax.jit(functools.partial(model.apply, train=False))(state.variables, images)
    return Trained(start, jax.device_get(state.variables), np.array(losses), np.asarray(logits))


def compare(name: str, change=lambda network: None, short: bool = False) -> dict[str, float]:
    """The largest differences after training both; `change` plants a fault in PyTorch's network.

    A ResNet that is `short` has fewer blocks in each stage.
    """
    with jax.enable_x64(True):
        ours = trained(name, short)
        network = torch_models.create_model(make_config(name).model, CLASSES)
        network = (shorten_judge(network) if short else network).double()
        network.load_state_dict(convert.to_torch(ours.start, network), strict=True)
        change(network)
        torch_losses = train_torch(name, network)
        network.eval()
        with torch.no_grad():
            torch_logits = network(torch_images(batches()[0])).numpy()
        theirs = convert.from_torch(network.state_dict(), ours.end)
    return {
        "loss": float(np.abs(ours.losses - torch_losses).max()),
        "parameters": largest(ours.end["params"], theirs["params"]),
        "statistics": largest(ours.end["batch_stats"], theirs["batch_stats"]),
        "logits": float(np.abs(ours.logits - torch_logits).max()),
        "moved": largest(ours.end["params"], ours.start["params"]),
    }


def largest(ours, theirs) -> float:
    differences = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), ours, theirs)
    return max(jax.tree.leaves(differences))


def bound(quantity: str) -> float:
    """The largest difference allowed: values are of order one, so the tolerance's floor is their scale."""
    tolerance = TOLERANCES[f"float64 training, {quantity}"]
    return tolerance.limit * tolerance.floor


# More blocks are more of the same; CifarCNN has dense layers and OneCycle for blocks and a cosine.
CASES = [("resnet34", True), *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("cifar_cnn", "resnet34"))]


@pytest.mark.parametrize(("name", "short"), CASES)
def test_twenty_steps_agree(name, short):
    differences = compare(name, short=short)
    assert all(differences[name] <= bound(name) for name in QUANTITIES), differences
    assert differences["moved"] > 0.05


def set_norms(network: torch.nn.Module, field: str, value: float) -> None:
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            setattr(layer, field, value)


def test_another_momentum_of_the_running_statistics_shows_in_them_and_in_the_logits_alone():
    differences = compare("resnet34", lambda network: set_norms(network, "momentum", 0.11), short=True)
    assert differences["loss"] <= bound("loss")
    assert differences["statistics"] > 1e3 * bound("statistics")
    assert differences["logits"] > 1e3 * bound("logits")


@pytest.mark.slow
def test_another_epsilon_shows_everywhere():
    differences = compare("cifar_cnn", lambda network: set_norms(network, "eps", 1.1e-5))
    assert differences["loss"] > 10 * bound("loss")
    assert differences["parameters"] > 10 * bound("parameters")
