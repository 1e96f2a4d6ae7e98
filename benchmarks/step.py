"""A train step and inference of every network: JAX beside PyTorch eager, channels last and compiled, a process each."""

import argparse
from collections.abc import Iterator

from benchmarks.networks import TORCH_WAYS, torch_has
from benchmarks.timing import Case, add_rounds, interleave
from benchmarks.trainings import JAX
from benchmarks.way import Subject, in_processes

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
    add_rounds(parser)


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return (len(options.models or (() if options.config else MODELS)) + len(options.config)) * len(options.what)


def measure(options: argparse.Namespace) -> Iterator[Case]:
    """Time every network; with a network, a loss or an update rule of one's own, which PyTorch has not, ours alone."""
    names = options.models or ([] if options.config else MODELS)
    subjects = [Subject("model", name, options.batch) for name in names]
    subjects += [Subject("config", name, options.batch) for name in options.config]
    configs = [subject.config() for subject in subjects]  # a mistake is told before anything is timed
    for subject, config in zip(subjects, configs, strict=True):
        for what in options.what:
            others = options.torch if torch_has(config, what) else []
            with in_processes([JAX, *others], what, subject) as ways:
                timings = interleave(ways, options.rounds)
            yield Case(f"{config.name}, {what}", timings, options.batch)
