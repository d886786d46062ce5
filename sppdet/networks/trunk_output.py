"""What a trunk's feature map is: of which layers, and where its cells lie. Known without torch.

`sppdet.networks.cut` cuts a network; `sppdet.networks.cell_grid` derives the grid from its layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sppdet.config import BackboneSettings


@dataclass(frozen=True)
class CellGrid:
    """Where a trunk's cells lie in its input: cell i is centred on pixel ``centre + stride * i`` (0-based).

    Attributes:
        stride: pixels between the centres of neighbouring cells.
        centre: pixel on which cell 0 is centred.
    """

    stride: int
    centre: float


@dataclass(frozen=True)
class Cut:
    """Where a network ends.

    Attributes:
        layers: names of the layers whose outputs are concatenated along the channels, in this order; none is the
            network's last output.
        dilate: whether layers after stride 16 keep it: they are dilated instead of strided.
    """

    layers: tuple[str, ...] = ()
    dilate: bool = False

    def description(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults; JSON-like, for model files and keys."""
        return ({"layers": list(self.layers)} if self.layers else {}) | ({"dilate": True} if self.dilate else {})

    @classmethod
    def of(cls, settings: BackboneSettings) -> Cut:
        """Return the cut that a configuration describes."""
        return cls(settings.layers, settings.dilate)

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Cut:
        """Return the cut of a `description`, which may hold other entries.

        Raises:
            SppdetError: its layers or its dilation are of another type.
        """
        return cls.of(BackboneSettings(layers=description.get("layers", ()), dilate=description.get("dilate", False)))


WHOLE = Cut()  # to the network's last output
