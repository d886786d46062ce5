"""The windows that SVMs are trained on, kept between the rounds of mining.

Names: n windows, R rows of the cache, K classes.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from sppdet.training.locations import LOCATION, STORED_NAMES

Number = TypeVar("Number", int, np.ndarray)

_GROWTH = 2048  # rows by which the cache grows
_TRIM_SLACK = 4  # a class may hold 1/4 more negatives than its limit before they are sorted and trimmed


class SampleCache:
    """The windows that some classes train on, and the state of each class for each window.

    A row is one window. The first rows are positives and stay. Rows of negatives that no class uses any more are used
    again.

    Args:
        positives: ``(P,)`` of `LOCATION`.
        positive_classes: ``(P,)`` the class of each positive, 0 to K - 1.
        classes: K.

    Attributes:
        positives: P, the number of rows of positives.
        locations: ``(R,)`` of `LOCATION`, where each row's window lies.
        held: bool ``(R, K)``, whether class k trains on row r.
        alpha: float64 ``(R, K)``, the dual variables of the last fit.
        score: float32 ``(R, K)``, the margins of the last fit.
    """

    def __init__(self, positives: np.ndarray, positive_classes: np.ndarray, classes: int):
        count = self.positives = len(positives)
        self.locations = positives
        self.held = np.zeros((count, classes), bool)
        self.held[np.arange(count), positive_classes] = True
        self.alpha = np.zeros((count, classes))
        self.score = np.zeros((count, classes), np.float32)
        self._used = np.zeros(count, bool)
        # Orders the rows by image and window, whatever rows they were stored in, and identifies the window.
        self._rank = np.zeros(count, np.int64)
        self._row_of: dict[int, int] = {}  # rank -> row, of the negatives
        self._free: list[int] = []
        self._counts = np.zeros(classes, np.int64)  # negatives of each class
        self._may_free = True  # whether a class has dropped a negative since `collect`

    def _grow(self) -> None:
        count = len(self.locations)
        for name in ("locations", "held", "alpha", "score", "_used", "_rank"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((_GROWTH, *old.shape[1:]), old.dtype)]))
        self._free += range(count + _GROWTH - 1, count - 1, -1)

    def add(self, windows: np.ndarray, locations: np.ndarray, wanted: np.ndarray, score: np.ndarray) -> None:
        """Add negatives; a class that holds one already keeps its state for it.

        Args:
            windows: ``(n,)`` numbers of the windows within their images, none of them twice.
            locations: ``(n,)`` of `LOCATION`.
            wanted: bool ``(n, K)``, whether the window becomes a negative of each class.
            score: ``(n, K)`` margins.
        """
        ranks = _rank(locations["image"].astype(np.int64), windows)
        rows = np.array([self._row(rank) for rank in ranks.tolist()], np.int64)
        self._rank[rows], self._used[rows], self.locations[rows] = ranks, True, locations
        new = wanted & ~self.held[rows]
        self.held[rows] |= new
        self._counts += new.sum(axis=0)
        of_new, classes = np.nonzero(new)
        self.score[rows[of_new], classes] = score[of_new, classes]
        self.alpha[rows[of_new], classes] = 0

    def _row(self, rank: int) -> int:
        """Return the row of the negative of a rank, a free one if there is none yet."""
        row = self._row_of.get(rank)
        if row is None:
            if not self._free:
                self._grow()
            row = self._row_of[rank] = self._free.pop()
        return row

    def negatives(self, k: int) -> np.ndarray:
        """Return the rows of class k's negatives, in an order that does not depend on the other classes."""
        rows = self.positives + np.flatnonzero(self.held[self.positives :, k])
        return rows[np.argsort(self._rank[rows])]

    def problem(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return class k's rows ``(n,)``, positives first, and their labels ``(n,)``, +1 or -1."""
        index = np.concatenate([np.flatnonzero(self.held[: self.positives, k]), self.negatives(k)])
        return index, np.where(index < self.positives, 1, -1)

    def trim(self, k: int, limit: int) -> None:
        """Leave class k its ``limit`` hardest negatives, if it has a quarter more than ``limit``."""
        if self._counts[k] > limit * (_TRIM_SLACK + 1) // _TRIM_SLACK:
            negatives = self.negatives(k)
            hardest = np.argsort(-self.score[negatives, k], kind="stable")
            self.held[negatives[hardest[limit:]], k] = False
            self._count(k)

    def evict(self, k: int, margin: float) -> None:
        """Drop class k's negatives that score below ``margin``."""
        easy = self.held[self.positives :, k] & (self.score[self.positives :, k] < margin)
        self.held[self.positives :, k] &= ~easy
        self._count(k)

    def _count(self, k: int) -> None:
        """Count the negatives of class k, of which some may have gone."""
        self._counts[k] = np.count_nonzero(self.held[self.positives :, k])
        self._may_free = True

    def restrict(self, image: int, allowed: np.ndarray) -> None:
        """Drop the negatives of an image that must not be such.

        Args:
            image: number of the image.
            allowed: bool ``(n, K)``, whether each of the image's windows may be a negative of each class.
        """
        rows = np.flatnonzero(self._used & (self.locations["image"] == image))
        dropped = self.held[rows] & ~allowed[self._rank[rows] - _rank(image, 0)]
        self.held[rows] &= ~dropped
        self._counts -= dropped.sum(axis=0)
        self._may_free = True

    def collect(self) -> None:
        """Free the rows that no class holds any more."""
        if not self._may_free:
            return
        self._may_free = False
        for row in np.flatnonzero(self._used & ~self.held.any(axis=1)).tolist():
            del self._row_of[int(self._rank[row])]
            self._used[row] = False
            self._free.append(row)

    def __len__(self) -> int:
        """Return the number of negatives, each of one class or more."""
        return len(self._row_of)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that `restore` needs, as arrays without fields."""
        rows = np.concatenate([np.arange(self.positives), np.flatnonzero(self._used)])
        state = {stored: self.locations[name][rows] for name, stored in STORED_NAMES.items()}
        state |= {"held": self.held[rows], "alpha": self.alpha[rows], "score": self.score[rows]}
        return state | {"rank": self._rank[rows], "positives": np.array(self.positives)}

    @classmethod
    def restore(cls, state: dict[str, np.ndarray]) -> SampleCache:
        """Return the cache that `state` describes."""
        locations = np.empty(len(state["rank"]), LOCATION)
        for name, stored in STORED_NAMES.items():
            locations[name] = state[stored]
        cache = cls(locations, np.zeros(len(locations), np.int64), state["held"].shape[1])
        cache.positives, cache._rank = state["positives"].item(), state["rank"]
        cache.held, cache.alpha, cache.score = state["held"], state["alpha"], state["score"]
        cache._used = np.arange(len(locations)) >= cache.positives
        cache._row_of = {int(cache._rank[row]): row for row in range(cache.positives, len(locations))}
        cache._counts = cache.held[cache.positives :].sum(axis=0)
        return cache


def _rank(image: Number, window: Number) -> Number:
    """Return the number, or numbers, that order windows by image, then by their number within it."""
    return (image << 32) + window
