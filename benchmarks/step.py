"""A train step and inference of every network: JAX beside PyTorch eager, channels last and compiled."""

import argparse

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

MODELS = ("simple_cnn", "tiny_cnn", "cifar_cnn", "speedrun_net", "resnet18", "resnet34", "resnet50")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="networks (default: all)")
    parser.add_argument("--batch", metavar="N", type=int, default=128, help="images per step (default 128)")
    parser.add_argument("--what", nargs="+", choices=["train", "inference"], default=["train", "inference"])
    parser.add_argument("--torch", nargs="*", choices=TORCH_WAYS, default=list(TORCH_WAYS), help="ways to run PyTorch")


def measure(options: argparse.Namespace) -> list[Case]:
    """Time every network."""
    batch, cases = random_batch(options.batch), []
    kinds = {"train": (jax_train_step, torch_train_step), "inference": (jax_inference, torch_inference)}
    for name in options.models:
        config = network_config(name, options.batch)
        for what in options.what:
            ours, theirs = kinds[what]
            ways = {"jax": ours(config, batch)} | {way: theirs(config, batch, way) for way in options.torch}
            cases.append(Case(f"{name}, {what}", interleave(ways, options.rounds), options.batch))
    return cases
