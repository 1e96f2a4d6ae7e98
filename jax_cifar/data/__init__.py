"""Host side of the data: bytes on disk to uint8 arrays, with NumPy alone."""

from jax_cifar.config import DataConfig
from jax_cifar.data.cifar import default_data_dir, load_cifar
from jax_cifar.data.dataset import Dataset, Splits
from jax_cifar.data.digits import load_digits
from jax_cifar.data.published import CIFAR10, CIFAR100
from jax_cifar.data.splits import divide_training
from jax_cifar.data.statistics import channel_statistics
from jax_cifar.data.synthetic import load_synthetic

__all__ = ["Dataset", "Splits", "channel_statistics", "default_data_dir", "load_data"]

_CIFAR = {spec.name: spec for spec in (CIFAR10, CIFAR100)}


def load_data(config: DataConfig) -> Splits:
    """Load the set that `config` names, with its validation part and subset taken.

    CIFAR comes from a decoded cache, else from `config.dir` (default: `default_data_dir()`), else, where `config.dir`
    is not given, from a verified download into that default; `jax_cifar.data.cifar` has the exact rules. The digits and
    the synthetic set need no file.

    Raises:
        DataError: the files are missing, damaged or another set; the message names the file and the way out.
        ConfigError: `val_fraction` or `subset` cannot be met.
    """
    if config.name in _CIFAR:
        splits = load_cifar(_CIFAR[config.name], config.dir)
    else:
        splits = load_digits() if config.name == "digits" else load_synthetic()
    return divide_training(splits, config.val_fraction, config.subset, config.seed)
