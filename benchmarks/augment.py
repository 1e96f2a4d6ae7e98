"""Images per second of every transform and pipeline under jit, beside per-image references; its share of a train step.

Ways: `jax` transforms a float32 batch that stays on the device. `per image` does the same with Pillow and NumPy, one
uint8 image after another on one core, as a data loader's worker does (benchmarks/per_image). `torchvision` is
`torchvision.transforms.v2`, one uint8 tensor after another on one core, where it has the transform; without torchvision
its column stays empty. `torch_ref` is this project's PyTorch, whole batches on the device, for the few that it has.

The train step is the product's: gathering, augmenting, mixing, normalising and the update in one compiled call. All of
JAX's programs are compiled with the product's options.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.networks import network_config
from benchmarks.per_image import chain, mix_reference
from benchmarks.step import MODELS
from benchmarks.tables import markdown
from benchmarks.timing import Case, Timing, Work, add_rounds, interleave
from benchmarks.torchvision_peer import load_torchvision, torchvision_transform
from jax_cifar.augment import (
    CLAHE,
    AutoAugment,
    CoarseDropout,
    ColorJitter,
    CutMix,
    Cutout,
    ElasticTransform,
    GridDistortion,
    HorizontalFlip,
    MixUp,
    OneOf,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomRotation,
    SampleInfo,
    Sometimes,
    ToGray,
    TrivialAugmentWide,
    compose,
    make_mixer,
)
from jax_cifar.backend.compiler import compiler_options
from jax_cifar.backend.mesh import make_mesh, replicated
from jax_cifar.backend.portions import by_shares
from jax_cifar.backend.threads import cpu_count
from jax_cifar.config import Config, DataConfig, DatasetName, MixConfig
from jax_cifar.config.files import load_config
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.errors import ConfigError, check
from jax_cifar.lab.pictures import describe
from jax_cifar.optim.rules import Hyper
from jax_cifar.run.folder import input_spec
from jax_cifar.training.keys import run_key
from jax_cifar.training.session import initial_state, make_network
from jax_cifar.training.steps import DeviceData, epoch_order, make_prepare, make_train_steps, zero_sums
from torch_ref import augment as torch_augment

JITTER = ColorJitter(0.2, 0.2, 0.2, 0.1)
# Each acts on every image, so that what is measured is the transform.
TRANSFORMS = (
    RandomCrop(padding=4),
    HorizontalFlip(p=1.0),
    RandomResizedCrop(),
    RandomAffine(15.0, (0.1, 0.1), (0.9, 1.1), 10.0),
    RandomRotation(15.0),
    ElasticTransform(alpha=20.0, sigma=4.0, p=1.0),
    GridDistortion(p=1.0),
    JITTER,
    ToGray(p=1.0),
    CLAHE(tile_grid_size=(4, 4), p=1.0),
    Cutout(length=8),
    RandomErasing(p=1.0),
    CoarseDropout((1, 4), (4, 8), (4, 8), p=1.0),
    AutoAugment(),
    TrivialAugmentWide(),
    OneOf((JITTER, ToGray(p=1.0)), p=1.0),
    Sometimes(JITTER, p=1.0),
)
MIXES = (MixUp(), CutMix())
CONFIGS = Path(__file__).parents[1] / "configs"
STRONG = f"{CONFIGS / 'cifar100_resnet34.py'}:strong"
PIPELINES = (f"{CONFIGS / 'cifar100_resnet34.py'}:plain", STRONG, str(CONFIGS / "cifar10_tiny_cnn.py"))
WHAT = ("transforms", "mixing", "pipelines", "steps")
PER_IMAGE, TORCHVISION, ALONE, PLAIN = "per image", "torchvision", "augmentation alone", "step without"

# What --quick asks for where nothing else is said.
QUICK = {"what": ["mixing", "pipelines"], "config": STRONG, "rounds": 3}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="parts (default: all)")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="its augmentation in place of the usual pipelines")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["cifar_cnn", "resnet18"], help="train steps of")
    parser.add_argument("--batch", metavar="N", type=int, default=128, help="images per batch (default 128)")
    parser.add_argument("--data", choices=get_args(DatasetName), default="cifar10", help="digits need no download")
    add_rounds(parser)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    pipelines = len(PIPELINES) if options.config is None else 1
    parts = {"transforms": len(TRANSFORMS), "mixing": len(MIXES), "pipelines": pipelines}
    return sum(parts.get(what, 2 * len(options.models)) for what in set(options.what))


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Time every transform and pipeline, and the train steps with and without augmentation."""
    splits, v2 = load_data(DataConfig(name=options.data)), load_torchvision()
    size = len(splits.train)
    check(2 <= options.batch <= size, "--batch", options.batch, f"it must lie between 2 and {size}, all images")
    sample = splits.train.take(np.arange(options.batch))
    usual = (STRONG,) if options.config is None else (options.config,)
    if "transforms" in options.what:
        for transform in TRANSFORMS:
            ways = image_ways((transform,), sample, v2)
            yield Case(describe(transform), interleave(ways, options.rounds), options.batch)
    if "mixing" in options.what:
        for mix in MIXES:
            ways = mixing_ways(mix, sample, splits.num_classes, v2)
            yield Case(type(mix).__name__, interleave(ways, options.rounds), options.batch)
    if "pipelines" in options.what:
        for config in map(load_config, PIPELINES if options.config is None else usual):
            ways = image_ways(config.augment, sample, v2)
            yield Case(config.name, interleave(ways, options.rounds), options.batch)
    if "steps" in options.what:
        for name in options.models:
            yield from step_cases(network_config(name, options.batch), load_config(usual[0]), splits, options.rounds)


def table(cases: Sequence[Case]) -> str:
    """Images per second where references were timed, and how many times theirs ours are; then the train steps."""
    rates = [case for case in cases if PER_IMAGE in case.timings]
    names = list(dict.fromkeys(name for case in rates for name in case.timings))
    lines = [["images/s", *names, *(f"times {name}" for name in names[1:])]] if rates else []
    lines += [["-"] * len(line) for line in lines]
    for case in rates:
        speeds = [f"{case.images / case.timings[name].median:,.0f}" if name in case.timings else "" for name in names]
        lines.append([case.name, *speeds, *(_times(case.ours, case.timings.get(name)) for name in names[1:])])
    parts = ["\n".join("| " + " | ".join(line) + " |" for line in lines)] if rates else []
    steps = [case for case in cases if PER_IMAGE not in case.timings]
    return "\n\n".join([*parts, *([markdown(steps)] if steps else [])])


def _times(ours: Timing, other: Timing | None) -> str:
    """How many times as many images as `other`, round by round: median (least to most)."""
    if other is None:
        return ""
    ratios = [theirs / own for own, theirs in zip(ours.seconds, other.seconds, strict=True)]
    return f"**{statistics.median(ratios):.3g}** ({min(ratios):.3g}-{max(ratios):.3g})"


def image_ways(transforms: tuple[Any, ...], sample: Dataset, v2: Any) -> dict[str, Work]:
    """Every way to apply `transforms` to the images of `sample`."""
    augment, info = compose(transforms), SampleInfo(jnp.arange(len(sample)), jnp.asarray(0))
    images = jnp.asarray(sample.images, jnp.float32) / 255
    change, rng = chain(transforms), np.random.default_rng(0)

    def one_by_one(count: int) -> None:
        for _ in range(count):
            np.stack([change(rng, image) for image in sample.images])

    ways = {"jax": jax_way(lambda key, images: augment(key, images, info), images), PER_IMAGE: one_by_one}
    theirs = [torchvision_transform(transform, v2) for transform in transforms] if v2 else [None]
    if None not in theirs:
        ways[TORCHVISION] = torchvision_way(v2.Compose(theirs), sample)
    try:
        ours = torch_augment.make_augment(transforms)
    except ConfigError:
        return ways
    index = torch.arange(len(sample))
    return ways | {"torch_ref": torch_way(lambda images: ours(images, index.to(images.device), 0), sample)}


def mixing_ways(mix: MixUp | CutMix, sample: Dataset, classes: int, v2: Any) -> dict[str, Work]:
    """Every way to mix the images of `sample` and their labels; all but `per image` take the batch as a whole."""
    targets, (draw, apply), rng = (
        np.eye(classes, dtype=np.float32)[sample.labels],
        mix_reference(mix),
        np.random.default_rng(0),
    )
    images = jnp.asarray(sample.images, jnp.float32) / 255

    def one_by_one(count: int) -> None:
        for _ in range(count):
            apply(sample.images, targets, draw(rng, sample.images.shape))

    mixup_alpha, cutmix_alpha = (mix.alpha, 0.0) if isinstance(mix, MixUp) else (0.0, mix.alpha)
    config = MixConfig(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    ours, mixer = make_mixer(config), torch_augment.make_mixer(config)
    assert ours is not None and mixer is not None
    ways = {"jax": jax_way(lambda key, images: ours(key, images, jnp.asarray(targets)), images), PER_IMAGE: one_by_one}
    if v2:
        theirs = getattr(v2, type(mix).__name__)(alpha=mix.alpha, num_classes=classes)
        labels = torch.tensor(sample.labels, dtype=torch.int64)
        ways[TORCHVISION] = torch_way(lambda images: theirs(images, labels.to(images.device))[0], sample)
    soft = torch.tensor(targets)
    return ways | {"torch_ref": torch_way(lambda images: mixer(images, soft.to(images.device))[0], sample)}


def jax_way(apply: Callable[[jax.Array, Any], Any], values: Any) -> Work:
    """`apply(key, values)` under jit, with another key each time."""

    @partial(jax.jit, compiler_options=compiler_options())
    def run(values: Any, count: jax.Array) -> tuple[Any, jax.Array]:
        return apply(jax.random.fold_in(run_key(0), count), values), count + 1

    # Each call takes its count from the one before: two that do not depend on each other may run at the same time.
    total = jnp.asarray(0)

    def work(count: int) -> None:
        nonlocal total
        for _ in range(count):
            result, total = run(values, total)
        jax.block_until_ready(result)

    return work


def torch_way(apply: Callable[[torch.Tensor], torch.Tensor], sample: Dataset) -> Work:
    """`apply` to the whole batch, float32 NCHW on the device, with as many cores as XLA has."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.tensor(sample.images, device=device).permute(0, 3, 1, 2).contiguous().float() / 255

    def work(count: int) -> None:
        torch.set_num_threads(cpu_count())
        for _ in range(count):
            result = apply(images)
        result[0, 0, 0, 0].item()  # waits for the device

    return work


def torchvision_way(apply: Callable[[torch.Tensor], torch.Tensor], sample: Dataset) -> Work:
    """`apply` to one uint8 CHW image after another."""
    images = torch.tensor(sample.images).permute(0, 3, 1, 2).contiguous().unbind()

    def work(count: int) -> None:
        torch.set_num_threads(1)  # as in a data loader's worker
        for _ in range(count):
            torch.stack([apply(image) for image in images])

    return work


def step_cases(network: Config, augmented: Config, splits: Splits, rounds: int) -> list[Case]:
    """A train step of `network` with the augmentation of `augmented` and without, and that augmentation alone.

    In the first case the ratio is 1 plus the share of the step that augmentation adds; in the second it is the time of
    the augmentation compiled on its own, as a share of the step without it.
    """
    config = dataclasses.replace(network, augment=augmented.augment, mix=augmented.mix)
    data = jax.device_put(
        DeviceData(jnp.asarray(splits.train.images), jnp.asarray(splits.train.labels)), replicated(make_mesh(config))
    )
    with_it = f"step with {augmented.name}"
    ways = {
        with_it: step_way(config, splits, data),
        PLAIN: step_way(network, splits, data),
        ALONE: prepare_way(config, splits, data),
    }
    timings, batch = interleave(ways, rounds), config.train.batch_size
    return [
        Case(f"{network.name}, train step", {name: timings[name] for name in (with_it, PLAIN)}, batch),
        Case(f"{network.name}, augmentation", {name: timings[name] for name in (ALONE, PLAIN)}, batch),
    ]


def step_way(config: Config, splits: Splits, data: DeviceData) -> Work:
    """Updates as a run makes them, each in one compiled call, from the images on the device."""
    mesh, network = make_mesh(config), make_network(config, input_spec(config, splits))
    state, optimizer = initial_state(config, network, splits.train.images)
    steps = partial(by_shares(make_train_steps(network, optimizer, config, mesh), mesh), count=1)
    options = compiler_options(config.train.deterministic)
    program = jax.jit(steps, out_shardings=replicated(mesh), donate_argnums=0, compiler_options=options)
    order = epoch_order(run_key(0), jnp.asarray(0), len(splits.train), config.train.batch_size)
    # One entry serves all steps: a place beyond the end of an array is taken to be its last.
    tables = Hyper(*(jnp.full(1, value, jnp.float32) for value in (config.optim.lr, config.optim.momentum, 0.0)))
    current: Any = jax.device_put((state, zero_sums(config), order, tables, run_key(1)), replicated(mesh))

    def work(count: int) -> None:
        nonlocal current
        for _ in range(count):
            state, sums, *rest = current
            state, sums = program(state, sums, data, *rest)
            current = (state, sums, *rest)
        jax.block_until_ready(current)

    return work


def prepare_way(config: Config, splits: Splits, data: DeviceData) -> Work:
    """The part of a step before the network, compiled on its own: gather, augment, mix, normalise."""
    mesh, network = make_mesh(config), make_network(config, input_spec(config, splits))
    prepare, start = by_shares(make_prepare(config, network, mesh), mesh), jnp.asarray(0)
    index = epoch_order(run_key(0), start, len(splits.train), config.train.batch_size)[0]
    return jax_way(lambda key, values: prepare(values[0], values[1], start, start, key), (data, index))
