"""Everything a run tells: console, JSON lines, TensorBoard, plots, environment.

The only package that imports rich, tensorboardX and matplotlib, each at the moment it is needed.
"""

from jax_cifar.telemetry.console import Console
from jax_cifar.telemetry.describe import describe_config
from jax_cifar.telemetry.environment import (
    describe_devices,
    describe_versions,
    package_versions,
    write_environment,
)
from jax_cifar.telemetry.plots import draw_confusion_matrix, draw_curves, draw_plots
from jax_cifar.telemetry.run_log import RunLog, read_metrics

__all__ = [
    "Console",
    "RunLog",
    "describe_config",
    "describe_devices",
    "describe_versions",
    "draw_confusion_matrix",
    "draw_curves",
    "draw_plots",
    "package_versions",
    "read_metrics",
    "write_environment",
]
