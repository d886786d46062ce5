"""Pyramids and windows for the tests of pooling."""

from __future__ import annotations

import numpy as np

LEVELS = [(6, 3, 2, 1), (4, 3, 2, 1), (4, 2, 1), (1,), (5, 2), (1, 2, 3, 6), (2, 4), (12, 6, 4, 3), (5, 3, 2)]


def random_cells(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Windows of every size, from one cell to the whole map."""
    x1, y1 = rng.integers(0, width, count), rng.integers(0, height, count)
    x2, y2 = x1 + 1 + rng.integers(0, width - x1), y1 + 1 + rng.integers(0, height - y1)
    whole = [
        [0, 0, width, height],
        [0, 0, 1, 1],
        [width - 1, height - 1, width, height],
        [0, height - 1, width, height],
    ]
    return np.concatenate([np.stack([x1, y1, x2, y2], axis=1), whole]).astype(np.int32)
