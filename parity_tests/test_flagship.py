"""The proof of the whole step: networks trained for 20 steps in both frameworks, in float64, from the same weights.

Crops, flips and batches are the same too: each framework augments with its own code from the same draws.
In float64 the two stay together to many digits, and every mistake in a layer, loss, schedule, optimizer, decay, clip
or running statistic drives them apart by orders of magnitude; in float32 chaos would hide it. Losses alone cannot see a
wrong running variance, so the statistics and the evaluation logits are compared too.
"""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flagship import (
    CLASSES,
    CLIP,
    DECAY,
    LR,
    MEAN,
    MOMENTUM,
    PADDING,
    QUANTITIES,
    SMOOTHING,
    STD,
    STEPS,
    Batch,
    Trained,
    batches,
    make_config,
    trained,
)
from networks import shorten_judge
from tolerances import TOLERANCES

from jax_cifar.backend.precision import float64
from torch_ref import augment as torch_augment
from torch_ref import convert
from torch_ref import models as torch_models


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


def compare(
    name: str, change=lambda network: None, short: bool = False, ours: Trained | None = None
) -> dict[str, float]:
    """The largest differences after training both; `change` plants a fault in PyTorch's network.

    A ResNet that is `short` has fewer blocks in each stage. `ours` is the JAX half, where another process has it.
    """
    ours = ours or trained(name, short)
    with float64():
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
