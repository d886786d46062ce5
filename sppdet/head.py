"""The fully connected layers on the pooled vector: fc6, fc7 and, while they are trained, the classifier fc8."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Head(nn.Module):
    """fc6 and fc7 with ReLU; ``layer`` says which of them :meth:`vectors` returns.

    Args:
        inputs: D, the pooled vector's length.
        units: outputs of fc6 and of fc7.
        layer: ``fc6`` or ``fc7``.
        scale: the pooled vector is multiplied by this first, so that its size does not depend on the backbone.
        dropout: after each layer while training; none otherwise, and no rescaling then (inverted dropout).

    With ``half`` set, :meth:`vectors` multiplies in bfloat16, as the backbone does where the processor can.
    """

    half = False

    def __init__(self, inputs: int, units: int, layer: str, scale: float = 1.0, dropout: float = 0.5):
        super().__init__()
        self.units, self.layer, self.scale, self.dropout = units, layer, scale, dropout
        self.fc6 = nn.Linear(inputs, units)
        self.fc7 = nn.Linear(units, units)
        self.drop = nn.Dropout(dropout)
        self._converted = None
        for linear in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)

    @classmethod
    def restore(cls, inputs: int, description: dict, tensors: dict[str, torch.Tensor], half: bool) -> Head:
        """The trained head that :meth:`description` and its state_dict describe, ready for :meth:`vectors`."""
        head = cls(inputs, **description)
        head.load_state_dict(tensors)
        head.half = half
        return head.eval()

    @property
    def dimension(self) -> int:
        return self.units

    def description(self) -> dict:
        """The arguments that rebuild it, apart from ``inputs``."""
        return {"units": self.units, "layer": self.layer, "scale": self.scale, "dropout": self.dropout}

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """``(n, inputs) -> (n, units)``, the output of fc7."""
        hidden = self.drop(torch.relu(self.fc6(pooled * self.scale)))
        return self.drop(torch.relu(self.fc7(hidden)))

    @torch.inference_mode()
    def vectors(self, pooled: np.ndarray) -> np.ndarray:
        """``(n, inputs) -> (n, units)`` float32: the output of ``layer``, after its ReLU, as the SVMs see it."""
        kind = torch.bfloat16 if self.half else torch.float32
        hidden = (torch.from_numpy(pooled) * self.scale).to(kind)
        for weight, bias in self._weights(kind)[: 1 if self.layer == "fc6" else 2]:
            hidden = torch.relu(nn.functional.linear(hidden, weight, bias))
        return hidden.float().numpy()

    def _weights(self, kind: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weight and bias of both layers, converted once."""
        if self.training or self._converted is None or self._converted[0][0].dtype != kind:
            self._converted = [(layer.weight.to(kind), layer.bias.to(kind)) for layer in (self.fc6, self.fc7)]
        return self._converted

    def train(self, mode: bool = True) -> Head:
        self._converted = None  # the weights may change now
        return super().train(mode)
