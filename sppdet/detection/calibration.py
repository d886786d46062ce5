"""From margins to probabilities: how often a detection of a margin was right, in images that its SVM had not seen.

A detection is right if its box overlaps an object of its class, which no better detection has taken, by an IoU of 0.5.
The curves are learned by `sppdet.training.calibration`, and are a few numbers per class in model.json. They never
decrease, so that probabilities order the detections of a class as margins do.

Names: N detections, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Sigmoid:
    """Platt's curve: the log odds of being right are ``slope * margin + intercept``.

    Examples:
        >>> Sigmoid(2.0, 0.0)(np.array([0.0, 0.5])).round(3).tolist()
        [0.5, 0.731]
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope > 0):
            raise ValueError(f"a curve has slope {self.slope} and intercept {self.intercept}")

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        """Return the probability of each margin."""
        log_odds = self.slope * np.asarray(margins, np.float64) + self.intercept
        return 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))


@dataclass(frozen=True)
class Steps:
    """The curve of isotonic regression: straight lines between knots, level beyond the outer ones.

    Examples:
        >>> Steps((-1.0, 1.0), (0.25, 0.75))(np.array([-3, 0, 3])).tolist()
        [0.25, 0.5, 0.75]
    """

    margins: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        margins, probabilities = np.array(self.margins, float), np.array(self.probabilities, float)
        in_range = ((probabilities >= 0) & (probabilities <= 1)).all() and np.isfinite(margins).all()
        if margins.shape != probabilities.shape or margins.ndim != 1 or not len(margins) or not in_range:
            raise ValueError("a curve has no knots, or one beyond 0 to 1")
        if (np.diff(margins) <= 0).any() or (np.diff(probabilities) < 0).any():
            raise ValueError("a curve decreases")

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        """Return the probability of each margin."""
        return np.interp(margins, self.margins, self.probabilities)


Curve = Sigmoid | Steps


@dataclass(frozen=True)
class Calibration:
    """The probabilities of a detector's margins.

    Attributes:
        curves: of each of the K classes.
        thresholds: of each class the margin from which on its detections are shown by default, where F1 was best.
        shared: the curve of all classes together, which a class without detections of its own has.
        shared_threshold: the threshold of all classes together.

    Examples:
        >>> calibration = Calibration((Sigmoid(2.0, 0.0), Sigmoid(1.0, 0.0)), (0.0, -0.5), Sigmoid(1.5, 0.0), -0.25)
        >>> calibration.probabilities(np.array([0, 1]), np.array([1.0, 1.0])).astype(float).round(3).tolist()
        [0.881, 0.731]
    """

    curves: tuple[Curve, ...]
    thresholds: tuple[float, ...]
    shared: Curve
    shared_threshold: float

    def __post_init__(self) -> None:
        if len(self.curves) != len(self.thresholds) or not np.isfinite([*self.thresholds, self.shared_threshold]).all():
            raise ValueError(f"{len(self.curves)} curves for the thresholds {list(self.thresholds)}")

    def probabilities(self, labels: np.ndarray, margins: np.ndarray) -> np.ndarray:
        """Return the probability ``(N,)``, float32, of detections of the classes ``labels`` with these margins."""
        probabilities = np.zeros(len(margins), np.float32)
        for k in np.unique(labels):
            rows = labels == k
            probabilities[rows] = self.curves[k](margins[rows])
        return probabilities

    @classmethod
    def of_log_odds(cls, classes: int, threshold: float) -> Calibration:
        """Return the calibration of ``classes`` classes whose margins are log odds, as those of a softmax."""
        curve = Sigmoid(1.0, 0.0)
        return cls((curve,) * classes, (threshold,) * classes, curve, threshold)

    def description(self) -> dict:
        """Return the values that `restore` needs, for JSON."""
        return {
            "classes": [asdict(curve) | {"threshold": t} for curve, t in zip(self.curves, self.thresholds)],
            "shared": asdict(self.shared) | {"threshold": self.shared_threshold},
        }

    @classmethod
    def restore(cls, description: Mapping) -> Calibration:
        """Return the calibration that `description` described.

        Raises:
            LookupError, TypeError, ValueError: it is none.
        """
        of_classes: Sequence[Mapping] = description["classes"]
        shared = description["shared"]
        return cls(
            tuple(map(_curve, of_classes)),
            tuple(float(entry["threshold"]) for entry in of_classes),
            _curve(shared),
            float(shared["threshold"]),
        )


def _curve(description: Mapping) -> Curve:
    """Return the curve of an entry of model.json."""
    if "slope" in description:
        return Sigmoid(float(description["slope"]), float(description["intercept"]))
    margins, probabilities = (tuple(map(float, description[name])) for name in ("margins", "probabilities"))
    return Steps(margins, probabilities)
