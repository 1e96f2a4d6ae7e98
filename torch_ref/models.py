"""Every network of `jax_cifar.models` in plain PyTorch, NCHW: `create_model` builds one from the same configuration.

Modules bear the names of the JAX ones, the ResNets torchvision's; weights start as PyTorch's and torchvision's own do.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from jax_cifar.config import ModelConfig
from jax_cifar.errors import ConfigError, check
from torch_ref.layers import Channels, Conv, Images, Logits, Norm, NormName, make_layers
from torch_ref.speedrun import SpeedrunNet


class TinyCNN(nn.Module):
    """Three stages of conv 3x3, norm, ReLU, max-pool 2; dropout, one dense layer."""

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int],
        norm: NormName,
        channels: Channels,
        width: int = 32,
        dropout: float = 0.3,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        conv, make_norm = make_layers(norm)
        first, second, third = (channels.get(f"conv{i + 1}", width * 2**i) for i in range(3))
        self.conv1, self.bn1 = conv(image_channels, first, 3, padding=1), make_norm(first)
        self.conv2, self.bn2 = conv(first, second, 3, padding=1), make_norm(second)
        self.conv3, self.bn3 = conv(second, third, 3, padding=1), make_norm(third)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(third * _positions(image_size, 8), num_classes)

    def forward(self, x: Images) -> Logits:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(F.max_pool2d(norm(conv(x)), 2))
        return self.fc(self.dropout(x.flatten(1)))


class SimpleCNN(nn.Module):
    """Two stages of conv 3x3, norm, ReLU, max-pool 2; then two dense layers with dropout between them."""

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int],
        norm: NormName,
        channels: Channels,
        width: int = 32,
        dropout: float = 0.0,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        conv, make_norm = make_layers(norm)
        first, second = channels.get("conv1", width), channels.get("conv2", 2 * width)
        hidden = channels.get("fc1", 4 * width)
        self.conv1, self.bn1 = conv(image_channels, first, 3, padding=1), make_norm(first)
        self.conv2, self.bn2 = conv(first, second, 3, padding=1), make_norm(second)
        self.fc1 = nn.Linear(second * _positions(image_size, 4), hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Images) -> Logits:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = F.relu(F.max_pool2d(norm(conv(x)), 2))
        return self.fc2(self.dropout(F.relu(self.fc1(x.flatten(1)))))


class CifarCNN(nn.Module):
    """Four blocks of two conv 3x3 + norm + ReLU, each with max-pool 2 and dropout; then three dense layers."""

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int],
        norm: NormName,
        channels: Channels,
        width: int = 64,
        dropout: float = 0.25,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks, inputs = [], image_channels
        for i in range(4):
            first, second = (channels.get(f"block{i + 1}/conv{j}", width * 2**i) for j in (1, 2))
            blocks.append(_Block(inputs, first, second, norm))
            inputs = second
        self.block1, self.block2, self.block3, self.block4 = blocks
        self.dropout = nn.Dropout(dropout)
        first, second = channels.get("fc1", 16 * width), channels.get("fc2", 8 * width)
        self.fc1 = nn.Linear(inputs * _positions(image_size, 16), first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, num_classes)

    def forward(self, x: Images) -> Logits:
        for block in (self.block1, self.block2, self.block3, self.block4):
            x = self.dropout(block(x))
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)


class _Block(nn.Module):
    def __init__(self, inputs: int, first: int, second: int, norm: NormName) -> None:
        super().__init__()
        conv, make_norm = make_layers(norm)
        self.conv1, self.bn1 = conv(inputs, first, 3, padding=1), make_norm(first)
        self.conv2, self.bn2 = conv(first, second, 3, padding=1), make_norm(second)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(F.max_pool2d(self.bn2(self.conv2(x)), 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first has the stride."""

    convs, expansion = 2, 1

    def __init__(self, inputs: int, inner: list[int], features: int, stride: int, conv: Conv, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, inner[0], 3, stride, padding=1), norm(inner[0])
        self.conv2, self.bn2 = conv(inner[0], features, 3, padding=1), norm(features)
        self.downsample = _downsample(inputs, features, stride, conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the 3x3 has the stride (torchvision's "v1.5")."""

    convs, expansion = 3, 4

    def __init__(self, inputs: int, inner: list[int], features: int, stride: int, conv: Conv, norm: Norm) -> None:
        super().__init__()
        outputs = features * self.expansion
        self.conv1, self.bn1 = conv(inputs, inner[0], 1), norm(inner[0])
        self.conv2, self.bn2 = conv(inner[0], inner[1], 3, stride, padding=1), norm(inner[1])
        self.conv3, self.bn3 = conv(inner[1], outputs, 1), norm(outputs)
        self.downsample = _downsample(inputs, outputs, stride, conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """torchvision's ResNet with a choice of stem and norm, and with dropout before the dense layer."""

    def __init__(
        self,
        num_classes: int,
        stage_sizes: tuple[int, int, int, int],
        block: type[BasicBlock] | type[Bottleneck],
        norm: NormName,
        channels: Channels,
        width: int = 64,
        dropout: float = 0.0,
        stem: Literal["cifar", "imagenet"] = "cifar",
        zero_init_residual: bool = False,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        conv, make_norm = make_layers(norm)
        imagenet = stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = conv(image_channels, width, kernel, stride, padding=kernel // 2)
        self.bn1 = make_norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        stages, inputs = [], width
        for stage, blocks in enumerate(stage_sizes):
            stages.append(nn.Sequential())
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name, features = f"layer{stage + 1}_{index}", width * 2**stage
                inner = [channels.get(f"{name}/conv{i}", features) for i in range(1, block.convs)]
                stages[stage].append(block(inputs, inner, features, stride, conv, make_norm))
                inputs = features * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, num_classes)
        self.apply(functools.partial(_init_resnet, zero_init_residual=zero_init_residual))

    def forward(self, x: Images) -> Logits:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(x.mean((2, 3))))


_CNNS = {"tiny_cnn": TinyCNN, "simple_cnn": SimpleCNN, "cifar_cnn": CifarCNN}
_RESNETS = {
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
}
_NETWORKS: Mapping[str, Callable[..., nn.Module]] = {"speedrun_net": SpeedrunNet, **_CNNS, **_RESNETS}
_SMALLEST_IMAGE = {"tiny_cnn": 8, "simple_cnn": 4, "cifar_cnn": 16}


def create_model(
    config: ModelConfig, num_classes: int, image_size: int | tuple[int, int] = 32, image_channels: int = 3
) -> nn.Module:
    """The network that `config` names, float32, with fresh weights from PyTorch's global generator.

    Args:
        config: architecture and its options; where `width` or `dropout` is None, the architecture's default holds.
        num_classes: width of the last layer.
        image_size: height and width of the images in pixels, which fix the first dense layer of the plain CNNs; one
            number for both.
        image_channels: of the images: 1 where they are grey.

    Raises:
        ConfigError: there is no class, the images are too small, the patches have fewer numbers than
            `model.whiten_pairs`, or the network is one of one's own.
    """
    if not isinstance(config, ModelConfig):
        raise ConfigError(f"model = {type(config).__name__} has no twin in PyTorch: choose a network that ships.")
    check(num_classes >= 1, "num_classes", num_classes, "it must be at least 1")
    smallest = (_SMALLEST_IMAGE | {"speedrun_net": 7 * config.whiten_stride + 2}).get(config.name, 1)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    check(min(size) >= smallest, "image_size", image_size, f"{config.name} needs {smallest} or more")
    pairs, numbers = config.whiten_pairs, 4 * config.whiten_stride**2 * image_channels
    check(pairs is None or pairs <= numbers, "model.whiten_pairs", pairs, f"it must be from 1 to {numbers}")
    options = {name: getattr(config, name) for name in ("norm", "width", "dropout", "convs_per_group")}
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"channels": dict(config.channels), "image_channels": image_channels}
    if config.name in _RESNETS:
        options |= {"stem": config.stem, "zero_init_residual": config.zero_init_residual}
    elif config.name in _CNNS:
        options["image_size"] = size
    else:
        options.pop("dropout", None)
        own = ("whiten_bias", "whiten_stride", "whiten_pairs", "early_average")
        options |= {name: getattr(config, name) for name in own}
    return _NETWORKS[config.name](num_classes, **options)


def _positions(image_size: tuple[int, int], shrunk: int) -> int:
    return (image_size[0] // shrunk) * (image_size[1] // shrunk)


def _downsample(inputs: int, outputs: int, stride: int, conv: Conv, norm: Norm) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))


def _init_resnet(module: nn.Module, zero_init_residual: bool) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
        last_norm = module.bn3 if isinstance(module, Bottleneck) else module.bn2
        nn.init.zeros_(cast(Tensor, last_norm.weight))
