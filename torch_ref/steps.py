"""What the reference trainer does with a batch: preparing it, one update from it, and evaluation of a whole set."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jax_cifar.config import Config
from jax_cifar.data import Dataset, channel_statistics
from jax_cifar.errors import check
from torch_ref.augment import make_augment, make_mixer
from torch_ref.models import create_model
from torch_ref.optimizers import Lookahead, make_optimizers
from torch_ref.schedules import make_scheduler
from torch_ref.speedrun import StartsFromImages

Images = Float[Tensor, "batch channel height width"]
# What the network sees of pixels between 0 and 1, of so many a side; None: as many as there are.
Inputs = Callable[[Images, int | None], Images]


class DeviceData(NamedTuple):
    """Images and labels as they lie on the device."""

    images: UInt8[Tensor, "n height width channel"]
    labels: Int[Tensor, " n"]


def to_device(part: Dataset, device: torch.device) -> DeviceData:
    """A part of the data, copied to the device once."""
    # Copied, since a decoded cache may be read-only, which PyTorch's tensors cannot be.
    images, labels = torch.tensor(part.images), torch.tensor(part.labels, dtype=torch.int64)
    return DeviceData(images.to(device), labels.to(device))


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What autocast computes in: as in JAX, what `train.dtype` says, or bfloat16 on a GPU and float32 on a CPU."""
    name = config.train.dtype
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and device.type != "cpu") else torch.float32


def pixels(images: UInt8[Tensor, "batch height width channel"]) -> Images:
    """Pixels between 0 and 1 in float32; NCHW in shape, and as the images lie in memory (channels last)."""
    return images.permute(0, 3, 1, 2).float() / 255


def make_inputs(part: Dataset, device: torch.device) -> Inputs:
    """Every channel to mean 0 and standard deviation 1, measured on a whole part of the data; smaller where asked.

    A channel that is the same in all images becomes 0, as in JAX.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
        for values in channel_statistics(part.images)
    )
    std = torch.where(std == 0, 1.0, std)
    return lambda images, side: downsample((images - mean) / std, side)


def downsample(images: Images, side: int | None) -> Float[Tensor, "batch channel new_height new_width"]:
    """Images of `side` x `side` pixels, by antialiased bilinear filtering; None: as they are."""
    return images if side is None else F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def make_network(
    config: Config, num_classes: int, data: DeviceData, inputs: Inputs, memory_format: torch.memory_format
) -> nn.Module:
    """The configured network with fresh weights, on the device; where it has `init_from`, the first images start it.

    They are of the last side of `train.resolutions`, by which it is judged, as in JAX.
    """
    side, (height, width, channels) = last_side(config), data.images.shape[1:]
    size = (height, width) if side is None else (side, side)
    model = create_model(config.model, num_classes, size, channels).to(data.images.device)
    if isinstance(model, StartsFromImages):
        model.init_from(inputs(pixels(data.images[:5000]), side))
    return model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def epoch_order(generator: torch.Generator, n: int, batch_size: int) -> Int[Tensor, "steps batch"]:
    """A permutation of the images cut into whole batches; the rest waits for another epoch."""
    steps = n // batch_size
    return torch.randperm(n, generator=generator)[: steps * batch_size].view(steps, batch_size)


def last_side(config: Config) -> int | None:
    """Pixels a side of the images that a trained network is judged by; None: their own."""
    return config.train.resolutions[-1][0] if config.train.resolutions else None


def make_prepare(
    config: Config, data: DeviceData, inputs: Inputs, num_classes: int, memory_format: torch.memory_format
) -> Callable[[Int[Tensor, " batch"], int, int | None], tuple[Images, Num[Tensor, "batch *classes"]]]:
    """`prepare(index, epoch, side)`: gather, augment and mix one batch and make it inputs, all on the device."""
    augment, mixer = make_augment(config.augment), make_mixer(config.mix)

    def prepare(index: Tensor, epoch: int, side: int | None) -> tuple[Tensor, Tensor]:
        images, targets = augment(pixels(data.images[index]), index, epoch), data.labels[index]
        if mixer is not None:
            images, targets = mixer(images, F.one_hot(targets, num_classes).float())
        return inputs(images, side).contiguous(memory_format=memory_format), targets

    return prepare


class Trainer:
    """A network with all that changes while it is trained; `update` makes one update.

    Raises:
        ConfigError: the schedule or a multiplier does not fit.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        total_steps: int,
        steps_per_epoch: int,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.config, self.model, self.dtype = config, model, dtype
        # Calls the same modules and parameters, so that all else sees the plain network.
        self.forward = torch.compile(model) if compiled else model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizers = make_optimizers(config.optim, dict(model.named_parameters()))
        _check_eta_min(config, self.optimizers)
        # OneCycle moves Muon's momentum; that of the SGD beside it stays.
        cycles = config.schedule.name == "onecycle"
        fixed = dataclasses.replace(config.schedule, cycle_momentum=False) if cycles else config.schedule
        self.schedulers = [
            make_scheduler(fixed if i else config.schedule, optimizer, total_steps, steps_per_epoch)
            for i, optimizer in enumerate(self.optimizers)
        ]
        every, alpha, optim = config.optim.lookahead_every, config.optim.lookahead_alpha, config.optim
        self.lookahead = Lookahead(self.parameters, every, alpha) if every else None
        self.average = None
        if optim.ema_decay:
            average = warming_up(optim.ema_decay) if optim.ema_warmup else get_ema_multi_avg_fn(optim.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
            self.average.update_parameters(model)  # the first call copies: the average starts at the initial weights

    @property
    def eval_model(self) -> nn.Module:
        """What is evaluated: the averaged network where averaging is on, else the trained one."""
        return self.model if self.average is None else self.average.module

    def update(self, images: Images, targets: Num[Tensor, "batch *classes"]) -> tuple[Tensor, Tensor]:
        """One update from normalised images and labels [batch] or soft targets [batch, classes].

        Returns the mean loss and the number of correct images, scalars on the device. With soft targets an image counts
        by the share that its target gives to the predicted class.
        """
        loss, correct = self._gradients(images, targets)
        if self.config.optim.clip_norm is not None:
            clip_grad_norm_(self.parameters, self.config.optim.clip_norm)
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if self.lookahead is not None:
            self.lookahead.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss, correct

    def warm_up(self, images: Images, targets: Num[Tensor, "batch *classes"]) -> None:
        """Compile, and let kernels be chosen, in one forward and backward pass; the network stays as it is."""
        before = copy.deepcopy(self.model.state_dict())
        loss, _ = self._gradients(images, targets)
        loss.item()  # waits for the device
        self.model.load_state_dict(before)
        self.model.zero_grad()

    def _gradients(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss, in `optim.accumulate` parts: each takes every parts-th image, as in JAX."""
        self.model.train()
        parts, smoothing = self.config.optim.accumulate, self.config.train.label_smoothing
        losses, correct = [], []
        for part in range(parts):
            x, y = images[part::parts], targets[part::parts]
            logits = _logits(self.forward, x, self.dtype)
            loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
            (loss / parts).backward()
            losses.append(loss.detach())
            correct.append(_correct(logits, y))
        return torch.stack(losses).mean(), torch.stack(correct).sum()


def warming_up(decay: float) -> Callable[..., None]:
    """For `AveragedModel`: a decay of min(decay, (1 + t) / (10 + t)) after t updates; its first call only copies."""

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Tensor) -> None:
        done = int(count) - 1
        share = max(1 - decay, 9 / (10 + done))
        for average, value in zip(averages, values, strict=True):
            average.copy_(torch.lerp(average, value, share) if average.is_floating_point() else value)

    return update


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: DeviceData,
    inputs: Inputs,
    batch_size: int,
    dtype: torch.dtype,
    side: int | None,
    tta: str = "none",
) -> tuple[float, float]:
    """Mean loss and accuracy over every image, by the mean logits of its `views`; sums are float64 and integers."""
    model.eval()
    loss, correct = 0.0, 0
    for images, labels in _batches(data, batch_size):
        logits = logits_of_views(lambda view: _logits(model, inputs(view, side), dtype), pixels(images), tta)
        loss = loss + F.cross_entropy(logits, labels, reduction="none").sum(dtype=torch.float64)
        correct = correct + _correct(logits, labels)
    return float(loss) / len(data.labels), int(correct) / len(data.labels)


def views(images: Images, tta: str) -> list[list[Images]]:
    """The versions of a batch that test-time augmentation (`eval.tta`) looks at, in groups that count the same.

    `mirror` is the image and its mirror image. `mirror-translate` adds the same two of the image moved by one pixel
    down and right, and by one pixel up and left, the border filled by reflection (cifar10-airbench, `infer`).
    """
    groups = [[images]]
    if tta == "mirror-translate":
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        groups.append([padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]])
    mirrored = tta != "none"
    return [[*group, *(view.flip(3) for view in group)] if mirrored else group for group in groups]


def logits_of_views(
    predict: Callable[[Images], Float[Tensor, "batch classes"]], images: Images, tta: str
) -> Float[Tensor, "batch classes"]:
    """The mean over the `views` of what `predict` gives; `unsure`: of six where a class leads by less than 0.5."""
    if tta == "unsure":
        logits = predict(images)
        first, second = logits.softmax(1).topk(2).values.unbind(1)
        unsure = first - second < 0.5
        if unsure.any():
            logits[unsure] = logits_of_views(predict, images[unsure], "mirror-translate")
        return logits
    means = [torch.stack([predict(view) for view in group]).mean(0) for group in views(images, tta)]
    return torch.stack(means).mean(0)


def _batches(data: DeviceData, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True)


def _logits(forward: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits in float32 at least, computed in `dtype` where autocast has it."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = forward(images)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _correct(logits: Tensor, targets: Tensor) -> Tensor:
    predictions = logits.argmax(1)
    if targets.ndim == 1:
        return (predictions == targets).sum()
    return targets.gather(1, predictions[:, None]).sum()


def _check_eta_min(config: Config, optimizers: list[torch.optim.Optimizer]) -> None:
    eta_min, lr = config.schedule.eta_min, config.optim.lr
    if config.schedule.name not in ("cosine", "warm_restarts") or eta_min == 0:
        return
    check(eta_min <= lr, "schedule.eta_min", eta_min, f"it must be at most optim.lr = {lr}")
    one_rate = all(group["lr"] == lr for optimizer in optimizers for group in optimizer.param_groups)
    expected = "PyTorch's schedulers would give every learning rate this lowest value; set it to 0 or use one rate"
    check(one_rate, "schedule.eta_min", eta_min, expected)
