"""Every network, small, with variables as training might leave them: what several parity tests start from."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_cifar import models
from jax_cifar.config import ModelConfig

CLASSES = 5
QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # compiling takes most of these tests' time
NAMES = ("tiny_cnn", "simple_cnn", "cifar_cnn", "resnet18", "resnet34", "resnet50", "speedrun_net")
_WIDTHS = {"speedrun_net": 2, "resnet34": 2}
# Image sizes are odd where strides meet them, and leave the plain CNNs more than one position to flatten.
_SIZES = {"tiny_cnn": 19, "simple_cnn": 18, "cifar_cnn": 32, "speedrun_net": 18}
STAGES = (1, 2, 1, 1)  # blocks that are kept of a ResNet's stages where it is shortened: more are more of the same
CONFIGS = {
    f"{name}-{norm}": ModelConfig(name=name, norm=norm, width=_WIDTHS.get(name, 4))
    for name in NAMES
    for norm in ("batch", "group", "none")
} | {
    "resnet18-imagenet": ModelConfig(name="resnet18", width=4, stem="imagenet", zero_init_residual=True),
    "speedrun_net-shallow": ModelConfig(
        name="speedrun_net", width=2, convs_per_group=1, whiten_bias=False, whiten_stride=2, whiten_pairs=8
    ),
    "speedrun_net-residual": ModelConfig(name="speedrun_net", width=2, convs_per_group=3, early_average=True),
}


def image_size(case: str) -> int:
    """Height and width of the images that the network of `CONFIGS[case]` is tested with."""
    return _SIZES.get(CONFIGS[case].name, 19)


@functools.cache
def template(case: str) -> dict[str, Any]:
    """Shapes and types of the JAX network's variables."""
    model, size = models.create_model(CONFIGS[case], CLASSES), image_size(case)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))
    return {"batch_stats": {}} | shapes


def shorten(model: Any) -> Any:
    """The JAX ResNet with `STAGES`; another network as it is."""
    return model.clone(stage_sizes=STAGES) if hasattr(model, "stage_sizes") else model


def shorten_judge(judge: Any) -> Any:
    """PyTorch's ResNet with `STAGES`; another network as it is."""
    if hasattr(judge, "layer1"):
        for i, blocks in enumerate(STAGES, start=1):
            setattr(judge, f"layer{i}", getattr(judge, f"layer{i}")[:blocks])
    return judge


def draw_variables(shapes: Any, dtype: Any = None) -> dict[str, Any]:
    """Variables in NumPy of a template's shapes: no two alike, and no batch statistic at its fresh 0 or 1.

    `dtype` is that of all of them; default: each the template's own.
    """
    draws = np.random.default_rng(2)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = draws.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        else:
            value = draws.uniform(-0.4, 0.4, size=leaf.shape) + (1 if name in ("scale", "var") else 0)
        return value.astype(dtype or leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
