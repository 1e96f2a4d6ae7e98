"""The first lines of a run: what it runs on, what it trains on, and what it trains."""

from jax_cifar.config import Config
from jax_cifar.data import Splits
from jax_cifar.models import parameter_table
from jax_cifar.telemetry import Console, describe_devices, describe_versions
from jax_cifar.training.session import Session, compute_dtype
from jax_cifar.training.state import TrainState


def announce_machine(console: Console, config: Config) -> None:
    """The first lines: versions, devices, what the configuration sets."""
    console.facts({"versions": describe_versions(), "devices": describe_devices(), "config": config.name})
    console.config(config)


def announce_data(console: Console, splits: Splits) -> None:
    """What is trained on and judged by, and where it came from."""
    sizes = [f"{len(splits.train.labels):,} training"]
    if splits.validation is not None:
        sizes.append(f"{len(splits.validation.labels):,} validation")
    sizes.append(f"{len(splits.test.labels):,} test images")
    console.facts({"images": f"{splits.name}: {', '.join(sizes)}, {splits.num_classes} classes; from {splits.source}"})


def announce_network(console: Console, session: Session, state: TrainState) -> None:
    """Size of the network, dtype, and what compiling took."""
    rows = parameter_table(state.params)
    if session.config.log.parameter_table:
        console.parameter_table(rows)
    console.facts(
        {
            "network": f"{sum(count for *_, count in rows):,} parameters, computing in {compute_dtype(session.config)}",
            "compiled": f"in {session.clock.seconds['compile']:.1f} s",
        }
    )
