"""The network of own_network.py once more, in PyTorch, so that it can be exported to ONNX.

python scripts/export.py --workdir runs/net --torch-twin docs/examples/own_network_torch.py:Net --out net.onnx
"""

import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Layers bear flax's names: the parameters of `Conv_0` are those of `Conv.0`."""

    def __init__(self, net, image_shape):  # the linen module with its fields; height, width, channels
        super().__init__()
        height, width, channels = image_shape
        features = (channels, net.features, 2 * net.features)
        self.Conv = nn.ModuleList(nn.Conv2d(features[i], features[i + 1], 3, padding=1, bias=False) for i in (0, 1))
        self.BatchNorm = nn.ModuleList(nn.BatchNorm2d(features[i + 1]) for i in (0, 1))
        inputs = features[2] * (height // 16) * (width // 16)
        self.Dense = nn.ModuleList([nn.Linear(inputs, net.num_classes)])

    def forward(self, x):
        for conv, norm in zip(self.Conv, self.BatchNorm, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 4)
        x = x.permute(0, 2, 3, 1).flatten(1)  # flattened in JAX's order: height, width, channel
        (dense,) = self.Dense
        return dense(x)
