"""The fully connected layers on the pooled vector: fc6, fc7 and, while they are trained, the classifier fc8."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from sppdet.config import FC_BINS, FC_UNITS
from sppdet.utils import SppdetError

_NETWORK_LAYERS = {"alexnet": ("classifier.1", "classifier.4"), "vgg16": ("classifier.0", "classifier.3")}


class Head(nn.Module):
    """fc6 and fc7 with ReLU; ``layer`` says which of them :meth:`vectors` returns.

    Args:
        inputs: D, the pooled vector's length.
        units: outputs of fc6 and of fc7.
        layer: ``fc6``, ``fc7``, or ``pool5+fc7``: fc7 behind the pooled vector.
        scale: the pooled vector is multiplied by this first, so that its size does not depend on the backbone.
        dropout: after each layer while training; none otherwise, and no rescaling then (inverted dropout).
        ranks: of fc6 and fc7 as products of two thin matrices, see :meth:`truncated`; 0 is a whole layer.
        balance: for ``pool5+fc7``, what fc7 is multiplied by, so that it counts as much as the pooled vector.

    With ``half`` set, :meth:`vectors` multiplies in bfloat16, as the backbone does where the processor can.
    """

    half = False

    def __init__(
        self,
        inputs: int,
        units: int,
        layer: str,
        scale: float = 1.0,
        dropout: float = 0.5,
        ranks: Sequence[int] = (0, 0),
        balance: float = 1.0,
    ):
        super().__init__()
        self.units, self.layer, self.scale, self.dropout, self.ranks = units, layer, scale, dropout, tuple(ranks)
        self.balance = balance
        self.fc6 = _fully_connected(inputs, units, ranks[0])
        self.fc7 = _fully_connected(units, units, ranks[1])
        self.drop = nn.Dropout(dropout)
        self._converted = None

    @classmethod
    def restore(cls, inputs: int, description: dict, tensors: dict[str, torch.Tensor], half: bool) -> Head:
        """The trained head that :meth:`description` and its state_dict describe, ready for :meth:`vectors`."""
        head = cls(inputs, **description)
        head.load_state_dict(tensors)
        head.half = half
        return head.eval()

    @classmethod
    def of_network(cls, name: str, state: dict[str, torch.Tensor], dropout: float) -> Head:
        """fc6 and fc7 of a torchvision AlexNet or VGG16, for windows pooled at the one level that their fc6 reads.

        On a window that is the whole map of a 224 x 224 image, that level's bins are those of the network's last
        pool. Its fc6 reads them channel by channel, ours bin by bin. (The fc6 of the SPP-net paper reads four levels;
        no such weights are public.)

        Args:
            state: the network's state_dict.

        Raises:
            SppdetError: a state_dict without these layers.
        """
        fc6, fc7 = _NETWORK_LAYERS[name]
        try:
            by_channel = state[f"{fc6}.weight"].view(FC_UNITS, -1, FC_BINS[name] ** 2)
            head = cls(by_channel[0].numel(), FC_UNITS, "fc7", dropout=dropout)
            tensors = {"fc6.weight": by_channel.transpose(1, 2).flatten(1), "fc6.bias": state[f"{fc6}.bias"]}
            head.load_state_dict(tensors | {f"fc7.{kind}": state[f"{fc7}.{kind}"] for kind in ("weight", "bias")})
        except (KeyError, RuntimeError):
            raise SppdetError(
                f"backbone.weights: holds no fc6 and fc7 of {name} ({fc6}, {fc7}); give the weights of the whole "
                "torchvision network, or set finetune.init=random"
            ) from None
        return head

    @property
    def dimension(self) -> int:
        return self.units

    @property
    def concat_pooled(self) -> bool:
        """Whether the SVMs see the pooled vector too, before :meth:`vectors`."""
        return self.layer == "pool5+fc7"

    def description(self) -> dict:
        """The arguments that rebuild it, apart from ``inputs``."""
        return {name: getattr(self, name) for name in ("units", "layer", "scale", "dropout", "ranks", "balance")}

    def truncated(self, ranks: Sequence[int]) -> Head:
        """The same layers as products of two thin matrices by truncated SVD, for quick detection.

        Fast R-CNN (arXiv 1504.08083), section 3.1: ``W = U S V^T`` becomes a layer ``S V^T`` of ``rank`` outputs
        without biases and a layer ``U`` with those of W. A rank of 0 leaves its layer whole; this head must be.
        """
        made = Head(self.fc6.in_features, **self.description() | {"ranks": tuple(ranks)})
        made.half = self.half
        with torch.no_grad():
            for old, new, rank in ((self.fc6, made.fc6, ranks[0]), (self.fc7, made.fc7, ranks[1])):
                if not rank:
                    new.load_state_dict(old.state_dict())
                    continue
                weight = old.weight.double()
                # Left singular vectors from the small product W W^T; S V^T of the largest is then U^T W.
                u = torch.linalg.eigh(weight @ weight.T).eigenvectors[:, -rank:]
                new[0].weight.copy_(u.T @ weight)
                new[1].weight.copy_(u)
                new[1].bias.copy_(old.bias)
        return made.eval()

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """``(n, inputs) -> (n, units)``, the output of fc7."""
        return self.of_scaled(pooled * self.scale)

    def of_scaled(self, pooled: torch.Tensor) -> torch.Tensor:
        """The same of pooled vectors that were multiplied by ``scale`` already."""
        hidden = self.drop(torch.relu(self.fc6(pooled)))
        return self.drop(torch.relu(self.fc7(hidden)))

    @torch.inference_mode()
    def vectors(self, pooled: torch.Tensor) -> torch.Tensor:
        """``(n, inputs) -> (n, units)`` float32: the output of fc6 or fc7, after its ReLU, as the SVMs see it.

        ``pooled`` is float32 or, where they are such numbers anyway, bfloat16.
        """
        hidden = pooled.bfloat16() if self.half else pooled.float() * self.scale
        for layer in self._layers()[: 1 if self.layer == "fc6" else 2]:
            hidden = torch.relu(layer(hidden))
        return hidden.float() * self.balance

    def _layers(self) -> list[nn.Module]:
        """fc6 and fc7; with ``half`` converted once, and fc6 with the scale in it."""
        if not self.half:
            return [self.fc6, self.fc7]
        if self.training or self._converted is None:
            scaled = copy.deepcopy(self.fc6)
            (scaled[0] if isinstance(scaled, nn.Sequential) else scaled).weight *= self.scale
            self._converted = [scaled.bfloat16(), copy.deepcopy(self.fc7).bfloat16()]
        return self._converted

    def train(self, mode: bool = True) -> Head:
        self._converted = None  # the weights may change now
        return super().train(mode)


def _fully_connected(inputs: int, outputs: int, rank: int) -> nn.Module:
    """A layer of He's initialisation, or two without a ReLU between them."""
    if rank:
        return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
