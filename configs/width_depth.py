"""Width against depth: SimpleCNN made deeper and narrower, at equal parameters and at equal multiply-adds.

python scripts/ablate.py --config configs/width_depth.py --variants --against model.depth --seeds 3

Every net has SimpleCNN's two stages of 3x3 convolutions with BatchNorm and ReLU, a max-pool after each, and its hidden
dense layer; `depth` counts the convolutions, shared between the stages. The net of depth 2 is SimpleCNN of width 32
with BatchNorm. The others are as narrow as keeps its parameters (variants parameters_*), most of which are the dense
layer's, or its multiply-adds (multiply_adds_*), most of which are the convolutions'. Images are halved to 16 pixels,
as for full ones an hour on 2 cores would not do. On CIFAR-100: --data.name cifar100. Accuracy after 3 epochs (n = 3,
experiments.md): 68.31 % of depth 2, 72.65 % of depth 4 with as many parameters, 68.44 % of depth 4 with as much work;
on CIFAR-100 37.07, 39.06 and 33.61 %.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_cifar.config import CheckpointConfig, Config, DataConfig, EvalConfig, OptimConfig, ScheduleConfig, TrainConfig
from jax_cifar.models.layers import Dense, make_head, make_layers
from jax_cifar.ops.pooling import max_pool

SIDE = 16  # pixels that images are reduced to
SameParameters = Literal["parameters_2", "parameters_3", "parameters_4", "parameters_6", "parameters_8"]
SameWork = Literal["multiply_adds_2", "multiply_adds_3", "multiply_adds_4", "multiply_adds_6", "multiply_adds_8"]
Variant = Literal[SameParameters, SameWork]


class DeepSimpleCNN(nn.Module):
    """SimpleCNN with `depth` convolutions in its two stages, the second of which has one more where it is odd.

    Parameters: `conv1`, `bn1`, ... in the order of the convolutions; `fc1`, with twice the last width, and `fc2`.
    """

    num_classes: int = 10
    depth: int = 2
    widths: tuple[int, int] = (32, 64)  # channels of each stage
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    smallest_image = 4

    @nn.compact
    def __call__(self, images, train):
        conv, norm = make_layers("batch", train, self.dtype, self.param_dtype)
        x = images
        for i, (stage, last) in enumerate(places(self.depth), start=1):
            x = norm(name=f"bn{i}")(conv(self.widths[stage], 3, padding=1, name=f"conv{i}")(x))
            x = nn.relu(max_pool(x, 2) if last else x)
        dense = Dense(2 * self.widths[1], dtype=self.dtype, param_dtype=self.param_dtype, name="fc1")
        return make_head(self.num_classes, self.param_dtype, "fc2")(nn.relu(dense(x.reshape(x.shape[0], -1))))


def places(depth: int) -> list[tuple[int, bool]]:
    """Of every convolution its stage, 0 or 1, and whether it is the last one there."""
    first = depth // 2
    return [(int(i >= first), i in (first - 1, depth - 1)) for i in range(depth)]


def costs(depth: int, widths: tuple[int, int], classes: int = 10) -> dict[str, int]:
    """Trained numbers, and multiply-adds in convolutions and dense layers for one image."""
    parameters, multiply_adds, channels, side = 0, 0, 3, SIDE
    for stage, last in places(depth):
        kernel, channels = 9 * channels * widths[stage], widths[stage]
        parameters += kernel + 2 * channels
        multiply_adds += kernel * side**2
        side //= 1 + last
    hidden = 2 * widths[1]
    dense = channels * side**2 * hidden + hidden * classes
    return {"parameters": parameters + dense + hidden + classes, "multiply_adds": multiply_adds + dense}


def narrow(depth: int, budget: str) -> tuple[int, int]:
    """The widths, the second about twice the first, that come closest to what SimpleCNN has of `budget`."""
    aim = costs(2, (32, 64))[budget]
    pairs = [(first, 2 * first + more) for first in range(4, 33) for more in (0, -1, 1, -2, 2)]
    return min(pairs, key=lambda widths: abs(costs(depth, widths)[budget] - aim))


def get_config(variant: Variant = "parameters_2") -> Config:
    budget, _, depth = variant.rpartition("_")
    return Config(
        name=f"width_depth_{budget}",
        data=DataConfig(name="cifar10"),
        model=DeepSimpleCNN(depth=int(depth), widths=narrow(int(depth), budget)),
        optim=OptimConfig(name="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", unit="run", warmup=0.1),
        train=TrainConfig(epochs=3, batch_size=128, resolutions=((SIDE, 1.0),)),
        eval=EvalConfig(every=0),
        checkpoint=CheckpointConfig(every=0),
    )
