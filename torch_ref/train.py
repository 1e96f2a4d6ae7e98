"""The same experiments in plain PyTorch: train what a config file describes, for comparison with scripts/train.py.

    python -m torch_ref.train --config configs/quickstart.py
    python -m torch_ref.train --config configs/cifar10_simple_cnn.py --optim.lr 0.01 --compile

Runs on one device, CUDA if there is one. The training images are trained on and the test images evaluated at the end,
with the test-time augmentation of `eval.tta` a second time; nothing is saved. `eval.every`, `steps_per_call`,
`compilation_cache`, `deterministic` and `debug_nans` of `train`, and the sections checkpoint, log and distributed have
no effect.
Exit codes: 0 done; 2 bad input; 3 the loss stopped being finite.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from jax_cifar.allocator import keep_memory
from jax_cifar.cli import ExperimentParser, run
from jax_cifar.config import Config
from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError, Diverged, check
from jax_cifar.files import write_json

# PyTorch is loaded when training begins, so that --help and error messages come at once.
if TYPE_CHECKING:
    import torch
    from torch import nn

    from torch_ref.steps import Trainer

ROW = "{:>7} {:>8} {:>9} {:>10} {:>10} {:>9}"


@dataclass(frozen=True)
class Result:
    """What a run gives. Losses are in nats, accuracies shares of 1.

    `seconds`: `data` is loading and copying to the device; `compile` building the network and one pass forward and
    backward, in which torch.compile compiles and libraries choose their kernels; `train` all updates with the drawing,
    augmenting and normalising of their batches, and nothing else; `eval` the evaluation of the test images;
    `total` the whole call of `train`. `images_per_second` is over `train`.
    """

    model: "nn.Module"  # as evaluated: averaged if optim.ema_decay is on
    losses: list[float]  # mean training loss of every update
    train_accuracy: float  # of the last epoch, as the network saw its images
    test_accuracy: float
    test_loss: float
    test_accuracy_tta: float | None  # with `eval.tta`; None without one
    images_per_second: float
    seconds: dict[str, float]
    epochs: list[dict[str, float]]  # with `each_epoch`: "seconds" of training until then, "accuracy" of the test images


def train(
    config: Config,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    device: "str | torch.device | None" = None,
    verbose: bool = True,
    each_epoch: bool = False,
) -> Result:
    """Train what `config` says and evaluate the test images; the same seed and device give the same result.

    Args:
        config: as for `jax_cifar.train`.
        channels_last: keep weights and images in memory in the order NHWC.
        compiled: train through `torch.compile`; the evaluation is always eager.
        device: where to train; default: CUDA if there is one, else the CPU.
        verbose: print a row per epoch and a last line.
        each_epoch: evaluate the test images after every epoch, and not only at the end.

    Raises:
        ConfigError: the configuration cannot be met, or PyTorch cannot compile here.
        DataError: the data are missing or damaged.
        Diverged: the loss stopped being finite.
    """
    import torch

    from torch_ref import steps

    started = time.perf_counter()
    seconds: dict[str, float] = dict.fromkeys(("data", "compile", "train", "eval"), 0.0)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = _begin(config, place, channels_last, compiled, seconds)
    total_steps, steps_per_epoch, sides = run.plan
    if verbose:
        mode = f"{'compiled' if compiled else 'eager'}{', channels last' if channels_last else ''}"
        dtype = str(run.trainer.dtype).removeprefix("torch.")
        print(f"{config.name}: PyTorch {torch.__version__} on {place}, {dtype}, {mode}")
        print(ROW.format("epoch", "step", "loss", "train acc", "images/s", "seconds"))

    # Its own generator, so that the order of the images does not depend on what else is drawn.
    generator, losses, accuracy = torch.Generator().manual_seed(config.train.seed), [], 0.0
    epochs: list[dict[str, float]] = []
    for epoch in range(-(-total_steps // steps_per_epoch)):
        before = seconds["train"]
        with _charge(seconds, "train"):
            order = steps.epoch_order(generator, run.images, config.train.batch_size)[: total_steps - len(losses)]
            batches = zip(order.to(place), sides[len(losses) :], strict=False)
            updates = [run.trainer.update(*run.prepare(index, epoch, side)) for index, side in batches]
            # Fetched once per epoch, which waits for the device.
            epoch_losses, correct = (torch.stack(column).tolist() for column in zip(*updates, strict=True))
        losses += epoch_losses
        accuracy = sum(correct) / order.numel()
        loss, took = sum(epoch_losses) / len(order), seconds["train"] - before
        check_finite(loss, f"training loss of epoch {epoch + 1}")
        if verbose:
            row = epoch + 1, len(losses), f"{loss:.4f}", f"{accuracy:.2%}", f"{order.numel() / took:,.0f}"
            print(ROW.format(*row, f"{seconds['train']:.1f}"), flush=True)
        if each_epoch and len(losses) < total_steps:
            with _charge(seconds, "eval"):
                epochs.append({"seconds": seconds["train"], "accuracy": run.judge("none")[1]})

    with _charge(seconds, "eval"):
        test_loss, test_accuracy = run.judge("none")
        with_tta = None if config.eval.tta == "none" else run.judge(config.eval.tta)[1]
    check_finite(test_loss, "test loss")
    if each_epoch:
        epochs.append({"seconds": seconds["train"], "accuracy": test_accuracy})
    speed = total_steps * config.train.batch_size / seconds["train"]
    seconds["total"] = time.perf_counter() - started
    result = Result(
        run.trainer.eval_model, losses, accuracy, test_accuracy, test_loss, with_tta, speed, seconds, epochs
    )
    if verbose:
        print(summary_line(result))
    return result


class _Run(NamedTuple):
    """What is there before the first update."""

    plan: "Plan"
    images: int  # that are trained on
    trainer: "Trainer"
    prepare: Callable[..., Any]  # `steps.make_prepare`
    judge: Callable[[str], tuple[float, float]]  # by a test-time augmentation: loss and accuracy of the test images


def _begin(
    config: Config, place: "torch.device", channels_last: bool, compiled: bool, seconds: dict[str, float]
) -> _Run:
    """Data on the device, a fresh network, and all that compiles compiled; charged to `seconds`."""
    import torch

    from torch_ref import steps

    torch.manual_seed(config.train.seed)
    with _charge(seconds, "data"):
        splits = load_data(config.data)
        data, test = steps.to_device(splits.train, place), steps.to_device(splits.test, place)
    run_plan = plan(config, len(data.labels))
    with _charge(seconds, "compile"):
        dtype = steps.compute_dtype(config, place)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        inputs = steps.make_inputs(splits.train, place)
        prepare = steps.make_prepare(config, data, inputs, splits.num_classes, memory_format)
        network = steps.make_network(config, splits.num_classes, data, inputs, memory_format)
        trainer = steps.Trainer(config, network, *run_plan[:2], dtype=dtype, compiled=compiled)
        for side in dict.fromkeys(run_plan.sides):
            _warm_up(trainer, *prepare(torch.arange(config.train.batch_size, device=place), 0, side), compiled)

    def judge(tta: str) -> tuple[float, float]:
        batch_size, side = config.eval.batch_size, steps.last_side(config)
        return steps.evaluate(trainer.eval_model, test, inputs, batch_size, dtype, side, tta)

    return _Run(run_plan, len(data.labels), trainer, prepare, judge)


class Plan(NamedTuple):
    """What a run does when."""

    total_steps: int
    steps_per_epoch: int  # images that do not fill an epoch's last batch are left out
    sides: list[int | None]  # of the images of every update; None: their own


def plan(config: Config, images: int) -> Plan:
    """The updates of a run over so many training images; raises `ConfigError` for one that would be another in JAX."""
    batch_size, skips, loss = config.train.batch_size, config.train.skip_nonfinite, config.train.loss
    patience, name = config.train.patience, getattr(loss, "__name__", loss)
    check(skips == 0, "train.skip_nonfinite", skips, "the reference stops at a loss that is not finite; leave it out")
    check(loss is None, "train.loss", name, "the reference has the cross-entropy alone; leave it out")
    check(patience == 0, "train.patience", patience, "the reference trains to the planned end; set it to 0")
    check(batch_size <= images, "train.batch_size", batch_size, f"there are {images} training images")
    steps_per_epoch = images // batch_size
    total_steps = config.train.steps or max(1, round(config.train.epochs * steps_per_epoch))
    sides, share = [], 0.0
    for side, part in config.train.resolutions:
        share += part
        sides += [side] * (round(share * total_steps) - len(sides))
    return Plan(total_steps, steps_per_epoch, sides or [None] * total_steps)


def check_finite(loss: float, what: str) -> None:
    """Raise `Diverged` unless a loss is finite."""
    if not math.isfinite(loss):
        raise Diverged(f"The {what} is {loss}. Try a smaller optim.lr.")


def summary_line(result: Result) -> str:
    """Accuracy, speed and where the time went, in one line."""
    spent = ", ".join(f"{kind} {value:.1f}" for kind, value in result.seconds.items())
    accuracy = f"test accuracy {result.test_accuracy:.2%}, loss {result.test_loss:.4f}"
    if result.test_accuracy_tta is not None:
        accuracy += f", with test-time augmentation {result.test_accuracy_tta:.2%}"
    return f"{accuracy}; {result.images_per_second:,.0f} images/s; seconds: {spent}"


def _warm_up(trainer: "Trainer", images: "torch.Tensor", targets: "torch.Tensor", compiled: bool) -> None:
    try:
        trainer.warm_up(images, targets)
    except RuntimeError as error:
        if not compiled:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"torch.compile does not work here ({reason}). Leave --compile out.") from error


@contextmanager
def _charge(seconds: dict[str, float], kind: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[kind] += time.perf_counter() - start


def main(arguments: Sequence[str]) -> None:
    """Parse, load, train, write."""
    # Config files import jax, which would take most of a GPU's memory as soon as one asks it for its backend.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = ExperimentParser(__doc__, prog="python -m torch_ref.train")
    parser.add_argument("--channels-last", action="store_true", help="weights and images in memory as NHWC")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--each-epoch", action="store_true", help="evaluate the test images after every epoch")
    parser.add_json("write the figures and the losses to this file")
    options, config = parser.read(arguments)
    ways = {"channels_last": options.channels_last, "compiled": options.compile}
    result = train(config, **ways, each_epoch=options.each_epoch)
    if options.json is not None:
        figures = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        del figures["model"]
        write_json(options.json, {"config_name": config.name} | figures)


if __name__ == "__main__":
    keep_memory()  # as our scripts do
    run(main)
