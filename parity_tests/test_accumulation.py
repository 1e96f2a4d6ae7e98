"""Gradient accumulation against the loop a PyTorch user would write, in float64, over several updates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import QUICK_COMPILE
from tolerances import agree, assert_close

from jax_cifar import models
from jax_cifar.config import Config, ModelConfig, OptimConfig, TrainConfig
from jax_cifar.optim.rules import Hyper, make_optimizer
from jax_cifar.training.state import create_train_state
from jax_cifar.training.steps import make_train_step
from torch_ref.convert import to_torch
from torch_ref.models import create_model

STEPS, BATCH, SIZE, CLASSES = 4, 16, 16, 5
LR, MOMENTUM, DECAY, SMOOTHING = 0.1, 0.9, 5e-4, 0.1
CLIP = 0.5  # under every gradient's norm here
MODEL = ModelConfig("tiny_cnn", width=3, dropout=0.0)


class Trained(NamedTuple):
    """A network after `STEPS` updates."""

    norms: np.ndarray  # of every update's gradient before clipping
    state: dict[str, np.ndarray]  # parameters and running statistics, by PyTorch's name
    logits: np.ndarray  # in evaluation, for the first batch


pytestmark = pytest.mark.usefixtures("x64")


def batches() -> tuple[np.ndarray, np.ndarray]:
    """The images of a batch grow brighter from first to last, so that it matters which of them make a part."""
    draws = np.random.default_rng(0)
    images = draws.normal(size=(STEPS, BATCH, SIZE, SIZE, 3))
    return images + np.linspace(-1, 1, BATCH).reshape(BATCH, 1, 1, 1), draws.integers(0, CLASSES, (STEPS, BATCH))


def network() -> Any:
    return models.create_model(MODEL, CLASSES, jnp.float64, jnp.float64)


@functools.cache
def initial() -> Any:
    return jax.device_get(models.init_variables(network(), jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))))


@functools.cache
def train_jax(parts: int, clip: float | None) -> Trained:
    model, (images, labels) = network(), batches()
    optim = OptimConfig(lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY, clip_norm=clip, accumulate=parts)
    train = TrainConfig(batch_size=BATCH, steps=STEPS, label_smoothing=SMOOTHING)
    config = Config("accumulation", model=MODEL, optim=optim, train=train)
    optimizer = make_optimizer(optim, initial()["params"])
    step = jax.jit(make_train_step(model, optimizer, config), compiler_options=QUICK_COMPILE)
    state, norms = create_train_state(jax.tree.map(jnp.asarray, initial()), optimizer, ema=False), []
    hyper = Hyper(*map(jnp.asarray, (LR, MOMENTUM, DECAY)))
    for i in range(STEPS):
        state, sums = step(state, jnp.asarray(images[i]), jnp.asarray(labels[i]), hyper, jax.random.key(0))
        norms.append(np.asarray(sums["grad_norm"]))
    evaluate = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK_COMPILE)
    logits = evaluate(state.variables, jnp.asarray(images[0]))
    by_name = to_torch(jax.device_get(state.variables), judge_of())
    tensors = {name: value.numpy() for name, value in by_name.items() if not name.endswith("num_batches_tracked")}
    return Trained(np.array(norms), tensors, np.asarray(logits))


def judge_of() -> torch.nn.Module:
    judge = create_model(MODEL, CLASSES, SIZE).double()
    judge.load_state_dict(to_torch(initial(), judge), strict=True)
    return judge


def every_nth(parts: int) -> list[slice]:
    return [slice(part, None, parts) for part in range(parts)]


def train_torch(
    slices: list[slice], clip: float | None, clip_inside: bool = False, share: float | None = None
) -> Trained:
    """`slices` are the parts of a batch; `clip_inside` clips after each one too; `share` is the weight of each one."""
    judge, (images, labels) = judge_of(), batches()
    inputs, targets = torch.from_numpy(np.moveaxis(images, -1, 2).copy()), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(judge.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True)
    largest = np.inf if clip is None else clip
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in slices:
            loss = F.cross_entropy(judge(inputs[step][part]), targets[step][part], label_smoothing=SMOOTHING)
            (loss * (share or 1 / len(slices))).backward()
            if clip_inside:
                torch.nn.utils.clip_grad_norm_(judge.parameters(), largest)
        norms.append(torch.nn.utils.clip_grad_norm_(judge.parameters(), largest).item())
        optimizer.step()
    tensors = {name: x.numpy() for name, x in judge.state_dict().items() if not name.endswith("num_batches_tracked")}
    with torch.no_grad():
        return Trained(np.array(norms), tensors, judge.eval()(inputs[0]).numpy())


def tolerance(name: str) -> str:
    return "float64 training, statistics" if "running" in name else "float64 training, parameters"


@pytest.mark.parametrize(
    ("parts", "clip"), [(1, CLIP), (2, None), (2, CLIP), pytest.param(4, CLIP, marks=pytest.mark.slow)]
)
def test_accumulated_updates_agree(parts, clip):
    ours, theirs = train_jax(parts, clip), train_torch(every_nth(parts), clip)
    assert_close(ours.norms, theirs.norms, "float64 training, parameters", "the gradients' norms")
    assert clip is None or ours.norms.min() > clip
    assert ours.state.keys() == theirs.state.keys()
    for name, expected in theirs.state.items():
        assert_close(ours.state[name], expected, tolerance(name), name)
    assert_close(ours.logits, theirs.logits, "float64 training, logits", "the logits")


def contiguous(parts: int) -> list[slice]:
    return [slice(part * BATCH // parts, (part + 1) * BATCH // parts) for part in range(parts)]


WRONG: dict[str, tuple[float | None, Callable[[int], Trained]]] = {
    "contiguous parts": (CLIP, lambda parts: train_torch(contiguous(parts), CLIP)),
    "clipped before the sum": (CLIP, lambda parts: train_torch(every_nth(parts), CLIP, clip_inside=True)),
    "batch norm of the whole batch": (CLIP, lambda parts: train_torch(every_nth(1), CLIP)),
    "the sum for the mean": (None, lambda parts: train_torch(every_nth(parts), None, share=1.0)),
}


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "wrong", [pytest.param(name, marks=pytest.mark.slow) if name == "the sum for the mean" else name for name in WRONG]
)
def test_wrong_accumulations_do_not_agree(wrong, parts):
    clip, run = WRONG[wrong]
    ours, theirs = train_jax(parts, clip), run(parts)
    for name in ("conv1.weight", "fc.bias", "bn2.bias", "bn2.running_mean", "bn3.running_var"):
        assert not agree(ours.state[name], theirs.state[name], tolerance(name)), name
    assert not agree(ours.logits, theirs.logits, "float64 training, logits")
