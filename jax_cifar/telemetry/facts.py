"""The facts that a run prints before it trains: what it runs on, what it trains on, and what it trains."""

from collections.abc import Sequence
from typing import Any

from jax_cifar.config import Config
from jax_cifar.data import Splits
from jax_cifar.telemetry.environment import describe_devices, describe_versions


def machine_facts(config: Config) -> dict[str, str]:
    """Versions, devices and the experiment's name."""
    return {"versions": describe_versions(), "devices": describe_devices(), "config": config.name}


def data_facts(splits: Splits) -> dict[str, str]:
    """What is trained on and judged by, and where it came from."""
    sizes = [f"{len(splits.train):,} training"]
    if splits.validation is not None:
        sizes.append(f"{len(splits.validation):,} validation")
    sizes.append(f"{len(splits.test):,} test images")
    return {"images": f"{splits.name}: {', '.join(sizes)}, {splits.num_classes} classes; from {splits.source}"}


def network_facts(rows: Sequence[tuple[str, tuple[int, ...], int]], dtype: Any, seconds: float) -> dict[str, str]:
    """Size of the network (rows of its parameter table), dtype, and the seconds that compiling took."""
    parameters = sum(count for *_, count in rows)
    return {"network": f"{parameters:,} parameters, computing in {dtype}", "compiled": f"in {seconds:.1f} s"}
