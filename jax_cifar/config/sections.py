"""The configuration of a run: frozen dataclasses, each field with its type, its bounds, its default and its meaning.

A config file defines `get_config() -> Config`; `jax_cifar.config.files` reads it and applies the command line. This
module needs nothing but the standard library, so that `--help` is quick and `torch_ref` can share it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jax_cifar.config.chains import chains
from jax_cifar.config.checks import (
    Probability,
    above,
    address,
    at_least,
    at_least_below,
    between,
    check_fields,
    each_once,
    multipliers,
    not_empty,
    only_for,
)
from jax_cifar.config.placeholder import Recorded
from jax_cifar.errors import check

DatasetName = Literal["cifar10", "cifar100", "digits", "folder", "npz", "synthetic"]
ModelName = Literal["tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet34", "resnet50", "speedrun_net"]
OptimizerName = Literal["sgd", "adam", "adamw", "adagrad", "muon"]
ScheduleName = Literal["constant", "cosine", "onecycle", "warm_restarts", "step", "triangular"]

Count = Annotated[int, at_least(1)]
Width = Annotated[int, between(1, 2**16)]  # channels
Side = Annotated[int, between(1, 4096)]  # of an image in pixels
Positive = Annotated[float, above(0)]
NotNegative = Annotated[float, at_least(0)]
BelowOne = Annotated[float, at_least_below(0, 1)]
Multipliers = Annotated[tuple[tuple[str, float], ...], multipliers]

# What reads a field, where not everything does.
resnets, speedrun = only_for("resnet18", "resnet34", "resnet50"), only_for("speedrun_net")
with_dropout = only_for("tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet34", "resnet50")
adams, rules = only_for("adam", "adamw"), only_for("sgd", "adam", "adamw", "adagrad", "muon")
muon, onecycle, triangular = only_for("muon"), only_for("onecycle"), only_for("triangular")
with_warmup, restarts = only_for("constant", "cosine", "step"), only_for("warm_restarts")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and where they lie. All that is drawn here is drawn by `seed`, in the order of the fields."""

    name: DatasetName = "cifar10"  # data set; folder and npz hold images of one's own
    # folder with the files (npz: or the file); CIFAR's default: $JAX_CIFAR_DATA, else the cache
    dir: Annotated[str | None, not_empty] = None
    image_size: Annotated[Side | None, only_for("folder")] = None  # folder: side that pictures are resized to; 32
    # folder, npz: share of every class taken for testing where the files hold no test part
    test_fraction: Annotated[Positive, at_least_below(0, 1), only_for("folder", "npz")] = 0.2
    val_fraction: BelowOne = 0.0  # share of the training images held out for validation, the same share of every class
    subset: Count | None = None  # keep only this many training images, spread evenly over the classes
    imbalance: Annotated[float, at_least(1)] = 1.0  # long tail: largest class / smallest, falling geometrically
    label_noise: BelowOne = 0.0  # share of the training images that get a wrong label
    noise_kind: Literal["symmetric", "pair"] = "symmetric"  # the wrong label: any other class, or always the next
    seed: Annotated[int, between(0, 2**64 - 1)] = 0  # seed of everything drawn here

    def __post_init__(self) -> None:
        check_fields(self, "data")


@dataclass(frozen=True)
class MixConfig:
    """Mixing of two images and their labels; with both on, each batch gets one of the two."""

    mixup_alpha: NotNegative = 0.0  # MixUp: lambda ~ Beta(alpha, alpha); 0 switches it off
    cutmix_alpha: NotNegative = 0.0  # CutMix: lambda ~ Beta(alpha, alpha); 0 switches it off
    probability: Probability = 1.0  # chance that a batch is mixed at all
    switch_probability: Probability = 0.5  # with both on: chance that a mixed batch gets CutMix

    def __post_init__(self) -> None:
        check_fields(self, "mix")


@dataclass(frozen=True)
class ModelConfig:
    """The network, where it is one that ships. A linen module of one's own stands in place of this section."""

    name: ModelName = "simple_cnn"  # architecture
    norm: Literal["batch", "group", "none"] = "batch"  # normalisation layer; batch has PyTorch's exact semantics
    # channels of the first stage; default: the architecture's own
    width: Width | None = None
    # layers that have another number of filters than follows from width, (path, number), as pruning leaves them
    channels: Annotated[tuple[tuple[str, Width], ...], each_once] = ()
    dropout: Annotated[BelowOne | None, with_dropout] = None  # dropout probability; default: the architecture's own
    # speedrun_net: convolutions in each of its three groups, 1 to 3; default: 2
    convs_per_group: Annotated[int | None, between(1, 3), speedrun] = None
    # speedrun_net: train a bias after the fixed whitening, which costs its gradient's time
    whiten_bias: Annotated[bool, speedrun] = True
    # speedrun_net: pixels between the patches that are whitened, each twice as wide; 2 quarters what follows
    whiten_stride: Annotated[int, between(1, 4), speedrun] = 1
    # speedrun_net: pairs of a whitening filter and its negative, of the largest variances; default: all, apart
    whiten_pairs: Annotated[Width | None, speedrun] = None
    # speedrun_net: the mean of 2x2 pixels before the last group, in place of the max-pool behind its first convolution,
    # which has a quarter of the work then
    early_average: Annotated[bool, speedrun] = False
    stem: Annotated[Literal["cifar", "imagenet"], resnets] = "cifar"  # 3x3 stride 1, or 7x7 stride 2 and max-pool
    zero_init_residual: Annotated[bool, resnets] = False  # ResNets: start every residual branch at zero

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.zero_init_residual:
            check(self.norm != "none", "model.zero_init_residual", True, "it needs model.norm batch or group")
        if self.whiten_pairs is not None:
            check(not self.whiten_bias, "model.whiten_pairs", self.whiten_pairs, "it needs model.whiten_bias False")
        free = [layer for chain in chains(self.name, self.convs_per_group) for layer in chain[:-1]]
        for path, _ in self.channels:
            expected = f"layers of {self.name} that may have any number of filters are {', '.join(free)}"
            check(path in free, "model.channels", path, expected)


@dataclass(frozen=True)
class OptimConfig:
    """The update rule. Multipliers are pairs (regular expression on parameter paths, factor); the first match wins.

    `name` may be a function of one's own, learning rate -> optax transformation: `optax.lion`, or with its own
    arguments `functools.partial(optax.lion, b1=0.95)`. The schedule moves its rate; clipping, lookahead and averaging
    work with it as with the others.
    """

    name: OptimizerName | Callable[..., Any] = "sgd"  # update rule: one of these, or a function of one's own
    lr: Positive = 0.1  # peak learning rate
    momentum: Annotated[BelowOne, only_for("sgd", "muon")] = 0.9  # sgd and muon: momentum
    nesterov: Annotated[bool, only_for("sgd")] = False  # sgd: Nesterov's form
    b1: Annotated[BelowOne, adams] = 0.9  # adam, adamw: decay of the first moment
    b2: Annotated[BelowOne, adams] = 0.999  # adam, adamw: decay of the second moment
    eps: Annotated[Positive, only_for("adam", "adamw", "adagrad")] = 1e-8  # those: added to the denominator
    # coupled (sgd, adam, adagrad) or decoupled (adamw, muon), as PyTorch has it
    weight_decay: Annotated[NotNegative, rules] = 0.0
    decay_multipliers: Annotated[Multipliers, rules] = ()  # factors on weight_decay by parameter path
    lr_multipliers: Multipliers = ()  # factors on lr by parameter path
    clip_norm: Positive | None = None  # clip gradients to this global norm
    accumulate: Count = 1  # split each batch into this many forward and backward passes, one update
    ema_decay: BelowOne = 0.0  # exponential moving average of the weights, used for evaluation; 0 switches it off
    ema_warmup: bool = True  # average: start with a decay of 0.1, which grows to ema_decay as (1 + step) / (10 + step)
    # lookahead: synchronise slow and fast weights every so many steps; 0 switches it off
    lookahead_every: Annotated[int, between(0, 2**31 - 1)] = 0
    lookahead_alpha: Probability = 0.5  # lookahead: share of the way from the slow to the fast weights
    aux_lr: Annotated[Positive, muon] = 0.05  # muon: rate of all but the convolution kernels (SGD with Nesterov)
    aux_momentum: Annotated[BelowOne, muon] = 0.85  # muon: momentum of those

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        if self.nesterov:
            check(self.momentum > 0, "optim.nesterov", True, "Nesterov's form needs optim.momentum > 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves between 0 and `optim.lr`. Lengths are in `unit`.

    `name` may be a function of one's own, (step, total_steps) -> share of `optim.lr`, with step from 0 on.
    """

    name: ScheduleName | Callable[..., Any] = "cosine"  # shape: one of these, or a function of one's own
    unit: Literal["epochs", "steps", "run"] = "epochs"  # unit of warmup, t_0 and milestones; run: shares of the whole
    warmup: Annotated[NotNegative, with_warmup] = 0.0  # cosine, constant, step: length of the linear warm-up
    warmup_start: Annotated[Probability, with_warmup] = 0.0  # the warm-up's first rate, as a share of optim.lr
    eta_min: Annotated[NotNegative, only_for("cosine", "warm_restarts")] = 0.0  # those two: lowest rate
    t_0: Annotated[Positive, restarts] = 10.0  # warm_restarts: length of the first cycle
    t_mult: Annotated[Count, restarts] = 1  # warm_restarts: each cycle is this many times longer than the last
    milestones: Annotated[tuple[float, ...], only_for("step")] = ()  # step: when the rate is multiplied by gamma
    gamma: Annotated[Positive, only_for("step")] = 0.1  # step: factor at each milestone
    # onecycle, triangular: share of the run before the peak
    pct_start: Annotated[Probability, only_for("onecycle", "triangular")] = 0.3
    div_factor: Annotated[Positive, onecycle] = 25.0  # onecycle: peak / first rate
    final_div_factor: Annotated[Positive, onecycle] = 1e4  # onecycle: first rate / last rate
    anneal: Annotated[Literal["cos", "linear"], onecycle] = "cos"  # onecycle: shape of the phases
    three_phase: Annotated[bool, onecycle] = False  # onecycle: down to the first rate, then to the last
    cycle_momentum: Annotated[bool, onecycle] = True  # onecycle: momentum (b1 for adam) moves against the rate
    base_momentum: Annotated[BelowOne, onecycle] = 0.85  # onecycle: momentum at the peak rate
    max_momentum: Annotated[BelowOne, onecycle] = 0.95  # onecycle: momentum at the ends
    start_factor: Annotated[Probability, triangular] = 0.0  # triangular: first rate / peak
    end_factor: Annotated[Probability, triangular] = 0.0  # triangular: last rate / peak

    def __post_init__(self) -> None:
        check_fields(self, "schedule")
        if self.name == "onecycle":
            check(0 < self.pct_start < 1, "schedule.pct_start", self.pct_start, "onecycle needs it inside (0, 1)")
        ascending = list(self.milestones) == sorted(set(self.milestones)) and all(m > 0 for m in self.milestones)
        check(ascending, "schedule.milestones", self.milestones, "they must be positive and ascending")
        if self.unit == "run":
            expected = "as schedule.unit = run it is a share of the run, less than 1; in epochs: --schedule.unit epochs"
            check(self.warmup < 1, "schedule.warmup", self.warmup, expected)
            check(not self.milestones or self.milestones[-1] < 1, "schedule.milestones", self.milestones, expected)
            check(self.t_0 <= 1 or self.name != "warm_restarts", "schedule.t_0", self.t_0, expected)


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch, loss and precision.

    A run that `patience` ends had the schedule of its planned length: its rate is not at its end. The last weights are
    the result; the best ones by validation accuracy are kept beside them (`--checkpoint best`).
    """

    epochs: Positive = 10.0  # passes over the training images
    steps: Count | None = None  # number of updates; takes the place of epochs where given
    # stop early after so many epochs without a better validation accuracy; 0: never
    patience: Annotated[int, at_least(0)] = 0
    batch_size: Count = 128  # images per update, over all devices
    label_smoothing: Probability = 0.0  # share of the target spread over all classes
    # a loss of one's own in place of the cross-entropy: (logits [n, classes], targets [n] or [n, classes]) -> [n]
    loss: Callable[..., Any] | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute dtype; auto: bfloat16 on GPU/TPU, float32 on CPU
    seed: Annotated[int, between(0, 2**32 - 1)] = 0  # seed of initialisation, order, augmentation and dropout
    # updates inside one compiled call; default: a second's worth on a CPU, else log.every
    steps_per_call: Count | None = None
    compilation_cache: bool = True  # keep compiled programs in the user's cache folder
    # image sides in turn, each for a share of the run, the last judges; by networks whose parameters fit every side:
    # ResNets, speedrun_net, or one's own that averages over the image
    resolutions: tuple[tuple[Count, Annotated[Positive, between(0, 1)]], ...] = ()
    # skip updates whose loss or gradient is not finite, and stop after so many in a row; 0: stop at the first
    skip_nonfinite: Annotated[int, between(0, 2**31 - 1)] = 0
    # on a GPU: the same bits every time, by algorithms that may be slower; a CPU and a TPU give them anyway
    deterministic: bool = False
    debug_nans: bool = False  # stop at the update that makes a NaN, and name operation and layer (slow)

    def __post_init__(self) -> None:
        check_fields(self, "train")
        total = sum(share for _, share in self.resolutions)
        check(not total or abs(total - 1) < 1e-6, "train.resolutions", total, "the shares must add up to 1")
        if self.loss is not None:
            smoothing, expected = self.label_smoothing, "a loss of one's own does its own smoothing"
            check(smoothing == 0, "train.label_smoothing", smoothing, expected)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation of the validation and test images."""

    batch_size: Count = 1000  # images per forward pass
    every: NotNegative = 1.0  # epochs between evaluations of the validation (else test) images; 0: only at the end
    # test-time augmentation of the final test figure; unsure: mirror-translate where a class leads by less than 0.5
    tta: Literal["none", "mirror", "mirror-translate", "unsure"] = "none"

    def __post_init__(self) -> None:
        check_fields(self, "eval")


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving. The last state is always saved, and the best by validation accuracy where there is a validation part."""

    every: NotNegative = 1.0  # epochs between checkpoints; 0: only the last
    keep: Count = 2  # how many of the newest checkpoints are kept

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint")


@dataclass(frozen=True)
class LogConfig:
    """What is written while training."""

    every: Count = 50  # steps between log lines, counted anew in each epoch
    tensorboard: bool = True  # write TensorBoard event files
    plots: bool = True  # draw loss, accuracy, learning rate and confusion matrix as PNG files at the end
    parameter_table: bool = False  # print name, shape and count of every parameter

    def __post_init__(self) -> None:
        check_fields(self, "log")


@dataclass(frozen=True)
class DistributedConfig:
    """Several devices: each batch is spread over them, the state is kept on all.

    On several hosts every process runs the same command. Slurm, Open MPI, Kubernetes and GKE tell the processes of
    one another; elsewhere coordinator, num_processes and process_id do. num_processes 1: each is a run of its own.
    """

    devices: Count | None = None  # how many devices to use; default: all
    coordinator: Annotated[str | None, address] = None  # host:port of process 0, as all others reach it
    num_processes: Count | None = None  # of this run, on all hosts
    process_id: Annotated[int | None, at_least(0)] = None  # of this process: 0, 1, ...

    def __post_init__(self) -> None:
        check_fields(self, "distributed")
        if self.process_id is not None and self.num_processes is not None:
            expected = f"of {self.num_processes} processes the last is {self.num_processes - 1}"
            check(self.process_id < self.num_processes, "distributed.process_id", self.process_id, expected)


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str  # name of the experiment, the config file's by custom; runs are kept under it
    data: DataConfig = field(default_factory=DataConfig)
    augment: tuple[Callable[..., Any], ...] = ()  # transforms of jax_cifar.augment, in order; set in the config file
    mix: MixConfig = field(default_factory=MixConfig)
    model: Any = field(default_factory=ModelConfig)  # a ModelConfig, or a linen module of one's own
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    # the module that load_config made of the config file; no part of the experiment, neither set nor kept nor compared
    loaded_as: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self, "")
        good = bool(re.fullmatch(r"[\w.-]+", self.name)) and self.name.strip(".") != ""
        check(good, "name", self.name, "use letters, digits, '_', '-' and '.'")
        good = isinstance(self.model, ModelConfig) or is_network(self.model)
        check(good, "model", self.model, "give a ModelConfig or an instance of a linen module, such as MyNet()")
        if self.train.patience:
            expected = "validation images are looked at every --eval.every epochs, here never"
            check(self.eval.every > 0, "train.patience", self.train.patience, expected)
        batch, parts = self.train.batch_size, self.optim.accumulate
        check(batch % parts == 0, "optim.accumulate", parts, f"it must divide train.batch_size = {batch}")


def is_network(value: object) -> bool:
    """Whether `value` is a linen module, or stands for one, told without importing flax; the class of one is none."""
    if isinstance(value, Recorded):
        return value.kind == "network"
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in ("init", "apply"))
