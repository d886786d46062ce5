"""What more training images would probably bring, from the learning curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

_FLAT = 1.0  # points of mAP: a rise that is not worth twice the work


@dataclass(frozen=True)
class CurvePoint:
    """Figures of models that learned from equally many images; spreads are standard deviations, 0 of a single model."""

    images: int
    models: int
    mean_ap: float
    mean_ap_spread: float
    ap75: float
    ap75_spread: float


def curve_points(learning_curve: Sequence[dict]) -> list[CurvePoint]:
    """Return the points of a metrics.json's ``learning_curve``; none where a figure is missing."""
    points = []
    for entry in learning_curve:
        columns = [entry["mAP"], entry["AP75"]]
        if not columns[0] or any(value is None for column in columns for value in column):
            return []
        figures = [figure for column in columns for figure in (mean(column), _spread(column))]
        points.append(CurvePoint(entry["images"], len(columns[0]), *figures))
    return points


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def expectation(points: Sequence[CurvePoint]) -> str:
    """Return a sentence: what the last doubling of the images brought, and what the next one would probably bring.

    Args:
        points: of a quarter, a half and all of the images.

    Examples:
        >>> points = [CurvePoint(n, 3, value, 0.5, 0.0, 0.0) for n, value in ((10, 60.0), (20, 70.0), (40, 75.0))]
        >>> expectation(points)[-88:]
        'Twice as many again (80), of the same kind, would probably bring 2.5 to 5.0 points more.'
    """
    quarter, half, every = points
    gain, before = every.mean_ap - half.mean_ap, half.mean_ap - quarter.mean_ap
    spread = max(half.mean_ap_spread, every.mean_ap_spread)
    change = f"{'rose' if gain >= 0 else 'fell'} by {abs(gain):.1f} points"
    figures = f"from {half.mean_ap:.1f} to {every.mean_ap:.1f}"
    text = f"From {half.images} to {every.images} training images mAP {change}, {figures}."
    if gain < _FLAT:
        return f"{text} More images of the same kind would probably bring little: look at the errors instead."
    if gain <= spread:
        return (
            f"{text} Models of equally many images differ by as much (± {spread:.1f}), so whether more images would "
            "help cannot be told from this."
        )
    most = min(gain, 100 - every.mean_ap)
    least = min(most, gain * min(gain / before, 1.0) if before > 0 else gain / 2)
    more = f"{least:.1f} to {most:.1f}" if most - least >= 0.1 else f"about {most:.1f}"
    return (
        f"{text} Twice as many again ({2 * every.images}), of the same kind, would probably bring {more} points more."
    )
