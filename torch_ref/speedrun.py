"""The speedrun network, and what a network is that starts from images."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.layers import Channels, Images, Logits, NormName, make_layers


@runtime_checkable
class StartsFromImages(Protocol):
    """A network whose start depends on training images, of which it looks at 5000 at most."""

    def init_from(self, images: Images) -> None:
        """Set what depends on them, from normalised images."""


class SpeedrunNet(nn.Module):
    """airbench's network (Jordan, arXiv 2404.00498); `init_from` sets its first kernel, which is never trained."""

    def __init__(
        self,
        num_classes: int,
        norm: NormName,
        channels: Channels,
        width: int = 64,
        convs_per_group: int = 2,
        whiten_bias: bool = True,
        whiten_stride: int = 1,
        whiten_pairs: int | None = None,
        early_average: bool = False,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        filters, stride = whiten_pairs or 8 * whiten_stride**2 * image_channels, whiten_stride
        inputs, self.pairs = 2 * filters if whiten_pairs else filters, whiten_pairs
        self.whiten = nn.Conv2d(image_channels, filters, 2 * stride, stride, stride - 1, bias=whiten_bias)
        self.whiten.weight.requires_grad_(False)
        groups = []
        for i, usual in enumerate((width, 4 * width, 4 * width), start=1):
            features = [channels.get(f"group{i}/conv{j + 1}", usual) for j in range(convs_per_group)]
            groups.append(_Group(inputs, features, norm, early_average and i == 3))
            inputs = features[-1]
        self.group1, self.group2, self.group3 = groups
        self.head = nn.Linear(inputs, num_classes, bias=False)

    def forward(self, x: Images) -> Logits:
        x = self.whiten(x)
        x = F.gelu(torch.cat((x, -x), 1) if self.pairs else x)
        x = self.group3(self.group2(self.group1(x)))
        # In float32 under autocast, too: a maximum's gradient goes to the numbers that equal it. torch.compile works
        # them out anew, unrounded: where the maximum was rounded to bfloat16 none equalled it, and 0 / 0 came out.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.head(x.amax((2, 3))) / 9

    @torch.no_grad()
    def init_from(self, images: Images) -> None:
        """Set the first kernel to filters that whiten the patches of normalised images, and their negatives."""
        patches = F.unfold(images[:5000], self.whiten.weight.shape[-1]).movedim(1, 0).flatten(1)
        eigenvalues, eigenvectors = torch.linalg.eigh(torch.cov(patches, correction=0))
        # Every eigenvector's largest component is made positive, as in JAX: its sign is otherwise the machine's choice.
        largest = eigenvectors.gather(0, eigenvectors.abs().argmax(0, keepdim=True))
        filters = (eigenvectors * largest.sign() / (eigenvalues.clamp(min=0) + 5e-4).sqrt()).T.flip(0)
        filters = filters[: self.pairs] if self.pairs else torch.cat((filters, -filters))
        self.whiten.weight.copy_(filters.view_as(self.whiten.weight))


class _Group(nn.Module):
    def __init__(self, inputs: int, features: list[int], norm: NormName, early_average: bool) -> None:
        super().__init__()
        conv, make_norm = make_layers(norm, momentum=0.4, epsilon=1e-12)
        self.conv1, self.bn1 = conv(inputs, features[0], 3, padding=1), make_norm(features[0])
        if len(features) > 1:
            self.conv2, self.bn2 = conv(features[0], features[1], 3, padding=1), make_norm(features[1])
        if len(features) > 2:
            self.conv3, self.bn3 = conv(features[1], features[2], 3, padding=1), make_norm(features[2])
        self.convs, self.early_average = len(features), early_average
        self.apply(_init_group)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.avg_pool2d(x, 2)) if self.early_average else F.max_pool2d(self.conv1(x), 2)
        x = F.gelu(self.bn1(x))
        if self.convs == 1:
            return x
        y = F.gelu(self.bn2(self.conv2(x)))
        return y if self.convs == 2 else F.gelu(x + self.bn3(self.conv3(y)))


def _init_group(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        # The first filters pass their channel through; the others keep PyTorch's default.
        nn.init.dirac_(module.weight.data[: module.in_channels])
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        module.weight.requires_grad_(False)
