"""The configuration of a run: frozen dataclasses, each field with its meaning, its type and its range.

A config file defines `get_config() -> Config`; `jax_cifar.config.files` reads it and applies the command line. This
module needs nothing but the standard library, so that `--help` is quick and `torch_ref` can share it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from jax_cifar.config.checks import (
    check_at_least,
    check_below_one,
    check_fraction,
    check_patterns,
    check_positive,
    check_types,
)
from jax_cifar.errors import check

DatasetName = Literal["cifar10", "cifar100", "digits", "synthetic"]
ModelName = Literal["tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet34", "resnet50", "speedrun_net"]
OptimizerName = Literal["sgd", "adam", "adamw", "adagrad", "muon"]
ScheduleName = Literal["constant", "cosine", "onecycle", "warm_restarts", "step", "triangular"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and where they lie."""

    name: DatasetName = "cifar10"  # data set
    dir: str | None = None  # folder with the published files; default $JAX_CIFAR_DATA, else the user's cache folder
    val_fraction: float = 0.0  # share of the training images held out for validation, the same share of every class
    subset: int | None = None  # keep only this many training images, spread evenly over the classes
    seed: int = 0  # seed of the validation split and the subset

    def __post_init__(self) -> None:
        check_types(self, "data")
        check_below_one(self, "data", "val_fraction")
        check_positive(self, "data", "subset")
        check(0 <= self.seed < 2**64, "data.seed", self.seed, "it must lie between 0 and 2**64 - 1")


@dataclass(frozen=True)
class MixConfig:
    """Mixing of two images and their labels; with both on, each batch gets one of the two."""

    mixup_alpha: float = 0.0  # MixUp: lambda ~ Beta(alpha, alpha); 0 switches it off
    cutmix_alpha: float = 0.0  # CutMix: lambda ~ Beta(alpha, alpha); 0 switches it off
    probability: float = 1.0  # chance that a batch is mixed at all
    switch_probability: float = 0.5  # with both on: chance that a mixed batch gets CutMix

    def __post_init__(self) -> None:
        check_types(self, "mix")
        check_at_least(self, "mix", mixup_alpha=0, cutmix_alpha=0)
        check_fraction(self, "mix", "probability", "switch_probability")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: ModelName = "simple_cnn"  # architecture
    norm: Literal["batch", "group", "none"] = "batch"  # normalisation layer; batch has PyTorch's exact semantics
    width: int | None = None  # channels of the first stage; default: the architecture's own
    dropout: float | None = None  # dropout probability; default: the architecture's own
    convs_per_group: int | None = None  # speedrun_net: convolutions in each of its three groups, 1 to 3; default: 2
    whiten_bias: bool = True  # speedrun_net: train a bias after the fixed whitening, which costs its gradient's time
    stem: Literal["cifar", "imagenet"] = "cifar"  # ResNets: 3x3 stride 1, or 7x7 stride 2 and max-pool
    zero_init_residual: bool = False  # ResNets: start every residual branch at zero

    def __post_init__(self) -> None:
        check_types(self, "model")
        if self.width is not None:
            check(self.width >= 1, "model.width", self.width, "it must be at least 1")
        if self.convs_per_group is not None:
            convs = self.convs_per_group
            check(convs in (1, 2, 3), "model.convs_per_group", convs, "it must be 1, 2 or 3")
        if self.dropout is not None:
            check_below_one(self, "model", "dropout")
        self._check_architecture_has_options()

    def _check_architecture_has_options(self) -> None:
        name, zero_init, convs = self.name, self.zero_init_residual, self.convs_per_group
        if not name.startswith("resnet"):
            check(self.stem == "cifar", "model.stem", self.stem, f"{name} has one stem only; ResNets have a choice")
            check(not zero_init, "model.zero_init_residual", zero_init, f"{name} has no residual branches; ResNets do")
        if zero_init:
            check(self.norm != "none", "model.zero_init_residual", True, "it needs model.norm batch or group")
        if name == "speedrun_net":
            check(not self.dropout, "model.dropout", self.dropout, f"{name} has no dropout; leave the field out")
        else:
            check(convs is None, "model.convs_per_group", convs, f"{name} has no groups of convolutions; leave it out")
            check(self.whiten_bias, "model.whiten_bias", False, f"{name} has no whitening; leave the field out")


@dataclass(frozen=True)
class OptimConfig:
    """The update rule. Multipliers are pairs (regular expression on parameter paths, factor); the first match wins."""

    name: OptimizerName = "sgd"  # update rule
    lr: float = 0.1  # peak learning rate
    momentum: float = 0.9  # sgd and muon: momentum
    nesterov: bool = False  # sgd: Nesterov's form
    b1: float = 0.9  # adam, adamw: decay of the first moment
    b2: float = 0.999  # adam, adamw: decay of the second moment
    eps: float = 1e-8  # adam, adamw, adagrad: added to the denominator
    weight_decay: float = 0.0  # coupled (sgd, adam, adagrad) or decoupled (adamw, muon), as in PyTorch
    decay_multipliers: tuple[tuple[str, float], ...] = ()  # factors on weight_decay by parameter path
    lr_multipliers: tuple[tuple[str, float], ...] = ()  # factors on lr by parameter path
    clip_norm: float | None = None  # clip gradients to this global norm
    accumulate: int = 1  # split each batch into this many forward and backward passes, one update
    ema_decay: float = 0.0  # exponential moving average of the weights, used for evaluation; 0 switches it off
    lookahead_every: int = 0  # lookahead: synchronise slow and fast weights every so many steps; 0 switches it off
    lookahead_alpha: float = 0.5  # lookahead: share of the way from the slow to the fast weights
    aux_lr: float = 0.05  # muon: learning rate of everything that is not a convolution kernel (SGD with Nesterov)
    aux_momentum: float = 0.85  # muon: momentum of those

    def __post_init__(self) -> None:
        check_types(self, "optim")
        check_positive(self, "optim", "lr", "eps", "clip_norm", "aux_lr")
        check_below_one(self, "optim", "momentum", "b1", "b2", "ema_decay", "aux_momentum")
        check_at_least(self, "optim", weight_decay=0, lookahead_every=0, accumulate=1)
        check_fraction(self, "optim", "lookahead_alpha")
        check_patterns(self.decay_multipliers, "optim.decay_multipliers")
        check_patterns(self.lr_multipliers, "optim.lr_multipliers")
        if self.nesterov:
            check(self.momentum > 0, "optim.nesterov", True, "Nesterov's form needs optim.momentum > 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves between 0 and `optim.lr`. Lengths are in `unit`."""

    name: ScheduleName = "cosine"  # constant, cosine (with warm-up), onecycle, warm_restarts, step or triangular
    unit: Literal["epochs", "steps"] = "epochs"  # unit of warmup, t_0 and milestones
    warmup: float = 0.0  # cosine, constant, step: length of the linear warm-up
    warmup_start: float = 0.0  # the warm-up's first rate, as a share of optim.lr
    eta_min: float = 0.0  # cosine, warm_restarts: lowest rate
    t_0: float = 10.0  # warm_restarts: length of the first cycle
    t_mult: int = 1  # warm_restarts: each cycle is this many times longer than the last
    milestones: tuple[float, ...] = ()  # step: when the rate is multiplied by gamma
    gamma: float = 0.1  # step: factor at each milestone
    pct_start: float = 0.3  # onecycle, triangular: share of the run before the peak
    div_factor: float = 25.0  # onecycle: peak / first rate
    final_div_factor: float = 1e4  # onecycle: first rate / last rate
    anneal: Literal["cos", "linear"] = "cos"  # onecycle: shape of the phases
    three_phase: bool = False  # onecycle: down to the first rate, then to the last
    cycle_momentum: bool = True  # onecycle: momentum (b1 for adam) moves against the rate
    base_momentum: float = 0.85  # onecycle: momentum at the peak rate
    max_momentum: float = 0.95  # onecycle: momentum at the ends
    start_factor: float = 0.0  # triangular: first rate / peak
    end_factor: float = 0.0  # triangular: last rate / peak

    def __post_init__(self) -> None:
        check_types(self, "schedule")
        check_at_least(self, "schedule", warmup=0, eta_min=0, t_mult=1)
        check_positive(self, "schedule", "t_0", "gamma", "div_factor", "final_div_factor")
        check_fraction(self, "schedule", "warmup_start", "pct_start", "start_factor", "end_factor")
        check_below_one(self, "schedule", "base_momentum", "max_momentum")
        if self.name == "onecycle":
            check(0 < self.pct_start < 1, "schedule.pct_start", self.pct_start, "onecycle needs it inside (0, 1)")
        ascending = list(self.milestones) == sorted(set(self.milestones)) and all(m > 0 for m in self.milestones)
        check(ascending, "schedule.milestones", self.milestones, "they must be positive and ascending")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch, loss and precision."""

    epochs: float = 10.0  # passes over the training images
    steps: int | None = None  # number of updates; takes the place of epochs where given
    batch_size: int = 128  # images per update, over all devices
    label_smoothing: float = 0.0  # share of the target spread over all classes
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute dtype; auto: bfloat16 on GPU/TPU, float32 on CPU
    seed: int = 0  # seed of initialisation, order, augmentation and dropout
    steps_per_call: int | None = (
        None  # steps inside one compiled call; default: a second's worth on a CPU, else log.every
    )
    compilation_cache: bool = True  # keep compiled programs in the user's cache folder
    resolutions: tuple[tuple[int, float], ...] = ()  # image sides in turn, each for a share of the run; the last judges
    debug_nans: bool = False  # stop at the first operation that makes a NaN (slow)

    def __post_init__(self) -> None:
        check_types(self, "train")
        check_positive(self, "train", "epochs", "steps", "batch_size", "steps_per_call")
        check_fraction(self, "train", "label_smoothing")
        for side, share in self.resolutions:
            check(side >= 1, "train.resolutions", side, "an image has at least 1 pixel a side")
            check(0 < share <= 1, "train.resolutions", share, "a share of the run lies between 0 and 1")
        total = sum(share for _, share in self.resolutions)
        check(not total or abs(total - 1) < 1e-6, "train.resolutions", total, "the shares must add up to 1")
        check(0 <= self.seed < 2**32, "train.seed", self.seed, "it must lie between 0 and 2**32 - 1")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation of the validation and test images."""

    batch_size: int = 1000  # images per forward pass
    every: float = 1.0  # epochs between evaluations of the validation (else test) images; 0: only at the end
    tta: Literal["none", "mirror", "mirror-translate"] = "none"  # test-time augmentation of the final test figure

    def __post_init__(self) -> None:
        check_types(self, "eval")
        check_positive(self, "eval", "batch_size")
        check_at_least(self, "eval", every=0)


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving. The last state is always saved, and the best by validation accuracy where there is a validation part."""

    every: float = 1.0  # epochs between checkpoints; 0: only the last
    keep: int = 2  # how many of the newest checkpoints are kept

    def __post_init__(self) -> None:
        check_types(self, "checkpoint")
        check_at_least(self, "checkpoint", every=0, keep=1)


@dataclass(frozen=True)
class LogConfig:
    """What is written while training."""

    every: int = 50  # steps between log lines, counted anew in each epoch
    tensorboard: bool = True  # write TensorBoard event files
    plots: bool = True  # draw loss, accuracy and learning rate as PNG files at the end
    parameter_table: bool = False  # print name, shape and count of every parameter

    def __post_init__(self) -> None:
        check_types(self, "log")
        check_at_least(self, "log", every=1)


@dataclass(frozen=True)
class DistributedConfig:
    """Several devices: each batch is spread over them, the state is kept on all."""

    devices: int | None = None  # how many devices to use; default: all

    def __post_init__(self) -> None:
        check_types(self, "distributed")
        check_positive(self, "distributed", "devices")


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str  # name of the experiment, the config file's by custom; runs are kept under it
    data: DataConfig = field(default_factory=DataConfig)
    augment: tuple[Callable[..., Any], ...] = ()  # transforms of jax_cifar.augment, in order; set in the config file
    mix: MixConfig = field(default_factory=MixConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        check_types(self, "")
        check(bool(re.fullmatch(r"[\w.-]+", self.name)), "name", self.name, "use letters, digits, '_', '-' and '.'")
        sides = {side for side, _ in self.train.resolutions}
        expected = f"{self.model.name} takes images of one size; speedrun_net and the ResNets take several"
        fixed = self.model.name in ("tiny_cnn", "simple_cnn", "cifar_cnn")
        check(not (fixed and len(sides) > 1), "train.resolutions", self.train.resolutions, expected)
        batch, parts = self.train.batch_size, self.optim.accumulate
        check(batch % parts == 0, "optim.accumulate", parts, f"it must divide train.batch_size = {batch}")
