"""The loops of `sppdet.ops.suppression_kernel` as operations of torch on any device, for many boxes at a time.

Each operation rounds to float32 where the compiled loops do, so both keep the same boxes; means of votes may differ in
the last bit. ``torchvision.ops.nms`` does not serve: on CUDA it compares with the overlap in float32, and 6 / 20, which
float32 rounds up, is not above 0.3 there.

Names: n candidates, G classes that have some, m candidates of the class with most, S survivors.
"""

from __future__ import annotations

import torch

_PAIRS = 4_000_000  # of boxes that are compared at a time; each takes about 40 bytes


def survivors(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, overlap: float, most: int
) -> torch.Tensor:
    """Return what `sppdet.ops.suppression.nms_by_class` returns, on the device of the boxes."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    row, column, table = _by_class(boxes[order], labels[order])
    present = torch.zeros(table.shape[:2], dtype=torch.bool, device=boxes.device)
    present[row, column] = True
    classes = max(1, _PAIRS // max(1, table.shape[1]) ** 2)
    blocks = zip(table.split(classes), present.split(classes))
    kept = torch.cat([present[:0], *(_kept(*block, overlap) for block in blocks)])
    kept = kept & (kept.cumsum(dim=1) <= most)
    return order[kept[row, column]]


def _kept(table: torch.Tensor, present: torch.Tensor, overlap: float) -> torch.Tensor:
    """Return which boxes of a table ``(G, m, 4)``, whose rows are sorted, best first, are kept: ``(G, m)``.

    Whether a box is kept depends on the better ones alone. Rounds start with all boxes; in each a box stays if no
    better one that has stayed so far overlaps it. So after r rounds the r best boxes of a row are right, and where a
    round changes nothing all are.
    """
    suppresses = (_ious(table, table) > overlap).triu(1)
    kept, staying = torch.zeros_like(present), present
    while not torch.equal(staying, kept):
        kept = staying
        staying = present & ~(suppresses & kept[:, :, None]).any(dim=1)
    return kept


def voted(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor,
    overlap: float,
    steepness: float,
) -> torch.Tensor:
    """Return the boxes ``(S, 4)`` that `sppdet.ops.suppression.vote` returns, on the device of the boxes."""
    order = torch.argsort(labels, stable=True)
    row, column, table = _by_class(boxes[order], labels[order])
    margins = torch.full(table.shape[:2], -torch.inf, dtype=torch.float64, device=boxes.device)
    margins[row, column] = scores[order].double()
    position = torch.argsort(order)[rows]
    at_once = max(1, _PAIRS // max(1, table.shape[1]))
    blocks = zip(row[position].split(at_once), column[position].split(at_once))
    return torch.cat([boxes[:0], *(_means(table, margins, *block, overlap, steepness) for block in blocks)])


def _means(
    table: torch.Tensor,
    margins: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor,
    overlap: float,
    steepness: float,
) -> torch.Tensor:
    """Return the boxes ``(S, 4)`` of survivors at ``row`` and ``column`` of a table, averaged with those around."""
    candidates = table[row]  # (S, m, 4)
    votes = _ious(table[row, column][:, None], candidates)[:, 0] >= overlap
    votes[torch.arange(len(row), device=row.device), column] = True  # a box without area votes for itself
    # Scores relative to the survivor's: exp() of a large score alone would overflow.
    relative = margins[row] - margins[row, column][:, None]
    weights = torch.where(votes, torch.exp(steepness * relative), 0.0)
    return ((weights[..., None] * candidates).sum(dim=1) / weights.sum(dim=1, keepdim=True)).float()


def _by_class(boxes: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(n,)`` row and column of boxes that are sorted by their labels in a table ``(G, m, 4)``, and the table.

    Shorter rows are filled with boxes without area, which overlap nothing.
    """
    _, row, counts = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    column = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[row]
    table = boxes.new_zeros(len(counts), int(counts.max()) if len(counts) else 0, 4)
    table[row, column] = boxes
    return row, column, table


def _ious(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the IoUs ``(G, p, q)`` of boxes ``(G, p, 4)`` and ``(G, q, 4)``: float32 as float64; nan without area."""
    low = torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    high = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    sides = (high - low).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    areas = [(boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (a, b)]
    return (shared / (areas[0][:, :, None] + areas[1][:, None, :] - shared)).double()
