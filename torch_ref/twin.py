"""The PyTorch twin of a run's network; of one's own it comes from a file that the user names: `FILE.py:Name`.

`Name(module, image_shape)` returns the network, NCHW; `module` is the linen module with its fields, `image_shape` the
height, width and channels that it sees. Its layers bear flax's names by the rule of `torch_ref.convert`: the parameters
of `Conv_0` are those of `Conv.0`, as of a `torch.nn.ModuleList` called `Conv`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from jax_cifar.config.modules import running
from jax_cifar.errors import ConfigError, check
from jax_cifar.files import expand
from torch_ref import convert
from torch_ref.models import create_model


def make_twin(trained: Any, named: str | None = None) -> nn.Module:
    """The network of a `jax_cifar.run.load.Run` in PyTorch, with the run's weights.

    Args:
        trained: the run, its batch norms folded or not.
        named: the twin of a network of one's own, as `load_twin` takes it.
    """
    spec, network = trained.network.spec, trained.config.model
    height, width, channels = spec.image_shape if spec.side is None else (spec.side, spec.side, spec.image_shape[2])
    if named is not None:
        twin = load_twin(named, trained.network.model, (height, width, channels))
    else:
        if getattr(trained.network.model, "norm", None) == "folded":
            network = dataclasses.replace(network, norm="none", zero_init_residual=False)
        twin = create_model(network, spec.num_classes, (height, width), channels)
    twin.load_state_dict(convert.to_torch(trained.variables, twin))
    return twin


def load_twin(named: str, module: Any, image_shape: tuple[int, int, int]) -> nn.Module:
    """Run the file, and make the twin of a linen module, float32, with weights still to be loaded.

    Raises:
        ConfigError: there is no such file or name, it fails, or what it returns is no PyTorch module.
    """
    file, _, name = named.rpartition(":")
    check(file.endswith(".py") and name.isidentifier(), "--torch-twin", named, "it must be FILE.py:Name")
    path: Path = expand(file)
    if not path.is_file():
        raise ConfigError(f"--torch-twin: {path} is not there.")
    with running(path) as program:
        make = getattr(program, name, None)
        if not callable(make):
            raise ConfigError(f"it defines no class or function {name}, which --torch-twin names")
        twin = make(module, image_shape)
    if not isinstance(twin, nn.Module):
        raise ConfigError(f"{named} returned {type(twin).__name__}; it must return a torch.nn.Module.")
    return twin.float()
