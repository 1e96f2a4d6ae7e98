"""Host side of the data: bytes on disk to uint8 arrays, with NumPy alone."""

from jax_cifar.config import DataConfig
from jax_cifar.data.cifar import default_data_dir, load_cifar
from jax_cifar.data.dataset import Dataset, Splits, channel_statistics
from jax_cifar.data.digits import load_digits
from jax_cifar.data.npz import load_npz, read_npz
from jax_cifar.data.published import CIFAR10, CIFAR100
from jax_cifar.data.splits import divide_training, divide_whole
from jax_cifar.data.synthetic import load_synthetic
from jax_cifar.errors import check
from jax_cifar.files import expand

__all__ = [
    "Dataset",
    "Splits",
    "channel_statistics",
    "default_data_dir",
    "divide_training",
    "divide_whole",
    "load_data",
    "read_npz",
]


def load_data(config: DataConfig) -> Splits:
    """Load the set that `config` names, divided and changed as its other fields say.

    CIFAR comes from a decoded cache, else from `config.dir` (default: `default_data_dir()`), else, where `config.dir`
    is not given, from a verified download into that default; `jax_cifar.data.cifar` has the exact rules. `folder` and
    `npz` are images of one's own; the modules of these names say how they have to lie. The digits and the synthetic set
    need no file.

    Raises:
        DataError: the files are missing, damaged or another set, or hold a single class; the message names the file and
            the way out.
        ConfigError: a part, subset, long tail or noise that is asked for cannot be had of this set.
    """
    return divide_whole(_load_whole(config), config)


def _load_whole(config: DataConfig) -> Splits:
    match config.name:
        case "cifar10":
            return load_cifar(CIFAR10, config.dir)
        case "cifar100":
            return load_cifar(CIFAR100, config.dir)
        case "digits":
            return load_digits()
        case "synthetic":
            return load_synthetic()
        case "npz" | "folder":
            expected = f"data.name = {config.name} has to be told where the files are"
            check(config.dir is not None, "data.dir", config.dir, expected)
            path = expand(config.dir or "")
            if config.name == "npz":
                return load_npz(path, config)
            # Pillow is not needed for the other sets, and takes its time to load.
            from jax_cifar.data.folder import load_folder

            return load_folder(path, config)
