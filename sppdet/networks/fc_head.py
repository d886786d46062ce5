"""The fully connected layers fc6 and fc7 on the pooled vector."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sppdet.networks.trunks import fc_layers
from sppdet.utils import SppdetError


class Head(nn.Module):
    """fc6 and fc7, each followed by a ReLU.

    Args:
        inputs: D, the length of a pooled vector.
        units: outputs of fc6 and of fc7.
        layer: which vectors the SVMs see: ``fc6``, ``fc7``, or ``pool5+fc7``, fc7 behind the pooled vector.
        scale: factor of the pooled vectors before fc6, so that their size does not depend on the backbone.
        dropout: share of outputs dropped after each layer in training; the others are scaled up (inverted dropout), so
            that nothing has to be scaled afterwards.
        ranks: of fc6 and fc7 as products of two thin matrices, see `truncated`; 0 is a whole layer.
        balance: for ``pool5+fc7``, factor of fc7, so that it counts as much as the pooled vector.

    Attributes:
        use_bfloat16: whether `vectors` multiplies in bfloat16, as the backbone does where the CPU can.

    Examples:
        >>> head = Head(inputs=12, units=4, layer="fc7").eval()
        >>> head.vectors(torch.ones(3, 12)).shape
        torch.Size([3, 4])
    """

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
        self.inputs, self.units, self.layer, self.scale = inputs, units, layer, scale
        self.dropout, self.ranks, self.balance = dropout, tuple(ranks), balance
        self.use_bfloat16 = False
        self.fc6 = _fully_connected(inputs, units, ranks[0])
        self.fc7 = _fully_connected(units, units, ranks[1])
        self.drop = nn.Dropout(dropout)
        self._converted: dict[torch.device, list[nn.Module]] = {}  # the layers in bfloat16, or on other devices

    @classmethod
    def restore(
        cls, inputs: int, description: dict[str, Any], tensors: dict[str, torch.Tensor], use_bfloat16: bool
    ) -> Head:
        """Rebuild a trained head for `vectors`.

        Args:
            inputs: D, the length of a pooled vector.
            description: what `description` returned.
            tensors: the head's state_dict.
            use_bfloat16: whether to multiply in bfloat16.
        """
        head = cls(inputs, **description)
        head.load_state_dict(tensors)
        head.use_bfloat16 = use_bfloat16
        return head.eval()

    @classmethod
    def of_network(cls, name: str, state: dict[str, torch.Tensor], dropout: float) -> Head:
        """Take fc6 and fc7 of a torchvision network, for windows pooled at the one level that its fc6 reads.

        On a window that is the whole map of a 224 x 224 image, the bins of this level are those of the network's last
        pool. The network's fc6 reads them channel by channel, this head's bin by bin. (The fc6 of the SPP-net paper
        reads four levels; no such weights are public.)

        Args:
            name: the network, which must bring fc layers.
            state: the network's state_dict.
            dropout: in training.

        Raises:
            SppdetError: a network or a state_dict without these layers.
        """
        layers = fc_layers(name)
        try:
            by_channel = state[f"{layers.fc6}.weight"].view(layers.units, -1, layers.bins**2)
            head = cls(by_channel[0].numel(), layers.units, "fc7", dropout=dropout)
            tensors = {"fc6.weight": by_channel.transpose(1, 2).flatten(1), "fc6.bias": state[f"{layers.fc6}.bias"]}
            tensors |= {f"fc7.{kind}": state[f"{layers.fc7}.{kind}"] for kind in ("weight", "bias")}
            head.load_state_dict(tensors)
        except (KeyError, RuntimeError):
            raise SppdetError(
                f"backbone.weights: holds no fc6 and fc7 of {name} ({layers.fc6}, {layers.fc7}); give the weights of "
                "the whole torchvision network, or set finetune.init=random"
            ) from None
        return head

    @property
    def dimension(self) -> int:
        """Length of the vectors that `vectors` returns."""
        return self.units

    @property
    def concat_pooled(self) -> bool:
        """Whether the SVMs see the pooled vector too, before the vector of `vectors`."""
        return self.layer == "pool5+fc7"

    def description(self) -> dict[str, Any]:
        """Return the arguments that rebuild the head, apart from ``inputs``."""
        names = ("units", "layer", "scale", "dropout", "ranks", "balance")
        return {name: getattr(self, name) for name in names}

    def truncated(self, ranks: Sequence[int]) -> Head:
        """Return the layers as products of two thin matrices by truncated SVD, for quick detection.

        Fast R-CNN (arXiv 1504.08083), section 3.1: ``W = U S V^T`` becomes a layer ``S V^T`` of ``rank`` outputs
        without biases and a layer ``U`` with the biases of W.

        Args:
            ranks: of fc6 and fc7; 0 leaves a layer whole. The layers of this head must be whole.
        """
        thin = Head(self.inputs, **self.description() | {"ranks": tuple(ranks)})
        thin.use_bfloat16 = self.use_bfloat16
        _truncate(self.fc6, thin.fc6)
        _truncate(self.fc7, thin.fc7)
        return thin.eval()

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Compute fc7 of pooled vectors: ``(n, inputs) -> (n, units)``."""
        return self.of_scaled(pooled * self.scale)

    def of_scaled(self, pooled: torch.Tensor) -> torch.Tensor:
        """Compute fc7 of pooled vectors that are already multiplied by ``scale``: ``(n, inputs) -> (n, units)``."""
        hidden = self.drop(torch.relu(self.fc6(pooled)))
        return self.drop(torch.relu(self.fc7(hidden)))

    @torch.inference_mode()
    def vectors(self, pooled: torch.Tensor) -> torch.Tensor:
        """Compute fc6 or fc7, as ``layer`` says, after the ReLU and without dropout: what the SVMs see.

        Args:
            pooled: ``(n, inputs)``, float32 or bfloat16.

        Returns:
            float32 ``(n, units)``, multiplied by ``balance``.
        """
        hidden = pooled.bfloat16() if self.use_bfloat16 else pooled.float() * self.scale
        for layer in self._layers(pooled.device)[: 1 if self.layer == "fc6" else 2]:
            hidden = torch.relu(layer(hidden))
        return hidden.float() * self.balance

    def _layers(self, device: torch.device) -> list[nn.Module]:
        """Return fc6 and fc7 on a device; in bfloat16 they are converted once, and fc6 includes the scale."""
        if not self.use_bfloat16 and device == next(self.parameters()).device:
            return [self.fc6, self.fc7]
        if self.training or device not in self._converted:
            fc6, fc7 = copy.deepcopy(self.fc6), copy.deepcopy(self.fc7)
            if self.use_bfloat16:
                first = fc6[0] if isinstance(fc6, nn.Sequential) else fc6
                first.get_parameter("weight").mul_(self.scale)
                fc6, fc7 = fc6.bfloat16(), fc7.bfloat16()
            self._converted[device] = [fc6.to(device), fc7.to(device)]
        return self._converted[device]

    def train(self, mode: bool = True) -> Head:
        """Set training or evaluation mode, and convert the layers again when they are next needed."""
        self._converted = {}  # the weights may change now
        return super().train(mode)


def _fully_connected(inputs: int, outputs: int, rank: int) -> nn.Linear | nn.Sequential:
    """Build a layer of He's initialisation, or, with a rank, two layers without a ReLU between them."""
    if rank:
        return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def _truncate(whole: nn.Module, thin: nn.Module) -> None:
    """Write the weights of the layer ``whole`` into ``thin``, a layer or two of a lower rank."""
    if not isinstance(thin, nn.Sequential):
        thin.load_state_dict(whole.state_dict())
        return
    first, second = thin.children()
    weight = whole.get_parameter("weight").double()
    # Left singular vectors from the small product W W^T; S V^T of the largest is then U^T W.
    u = torch.linalg.eigh(weight @ weight.T).eigenvectors[:, -first.get_parameter("weight").shape[0] :]
    first.get_parameter("weight").copy_(u.T @ weight)
    second.get_parameter("weight").copy_(u)
    second.get_parameter("bias").copy_(whole.get_parameter("bias"))
