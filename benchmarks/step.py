"""A train step and inference of every network: JAX beside PyTorch eager, channels last and compiled."""

import argparse
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.networks import (
    TORCH_WAYS,
    jax_inference,
    jax_train_step,
    network_config,
    random_batch,
    torch_inference,
    torch_train_step,
)
from benchmarks.timing import Case, interleave
from jax_cifar.config import ModelConfig
from jax_cifar.config.files import load_config

MODELS = ("simple_cnn", "tiny_cnn", "cifar_cnn", "speedrun_net", "resnet18", "resnet34", "resnet50")

# What --quick asks for where nothing else is said.
QUICK = {"models": ["simple_cnn", "speedrun_net"], "torch": ["torch channels_last"], "rounds": 3}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--models", nargs="+", choices=MODELS, help="networks (default: all, or those of --config)")
    parser.add_argument("--config", metavar="FILE", nargs="+", default=[], help="config files, for their networks")
    parser.add_argument("--batch", metavar="N", type=int, default=128, help="images per step (default 128)")
    parser.add_argument("--what", nargs="+", choices=["train", "inference"], default=["train", "inference"])
    parser.add_argument("--torch", nargs="*", choices=TORCH_WAYS, default=list(TORCH_WAYS), help="ways to run PyTorch")


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return (len(options.models or (() if options.config else MODELS)) + len(options.config)) * len(options.what)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Time every network; one of one's own, which has no PyTorch twin, alone."""
    batch = random_batch(options.batch)
    names = options.models or ([] if options.config else MODELS)
    configs = [network_config(name, options.batch) for name in names]
    for config in map(load_config, options.config):
        configs.append(replace(config, train=replace(config.train, batch_size=options.batch)))
    kinds = {"train": (jax_train_step, torch_train_step), "inference": (jax_inference, torch_inference)}
    for config in configs:
        others = options.torch if isinstance(config.model, ModelConfig) else []
        for what in options.what:
            ours, theirs = kinds[what]
            ways = {"jax": ours(config, batch)} | {way: theirs(config, batch, way) for way in others}
            yield Case(f"{config.name}, {what}", interleave(ways, options.rounds), options.batch)
