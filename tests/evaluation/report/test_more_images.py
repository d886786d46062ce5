"""What more images would bring: the sentence under a learning curve."""

from __future__ import annotations

import pytest

from sppdet.evaluation.report.more_images import CurvePoint, curve_points, expectation


def curve_of(*means: float, spread: float = 0.5) -> list[CurvePoint]:
    return [CurvePoint(images, 3, mean, spread, 0.0, 0.0) for images, mean in zip((10, 20, 40), means)]


def test_points_have_mean_and_standard_deviation():
    many, one = {"images": 10, "mAP": [50.0, 52.0], "AP75": [20.0, 20.0]}, {"images": 20, "mAP": [60.0], "AP75": [30.0]}
    first, second = curve_points([many, one])
    assert first == CurvePoint(10, 2, 51.0, pytest.approx(2**0.5), 20.0, 0.0)
    assert second == CurvePoint(20, 1, 60.0, 0.0, 30.0, 0.0)


def test_a_figure_that_is_missing_leaves_no_curve():
    assert curve_points([{"images": 10, "mAP": [50.0, None], "AP75": [20.0, 20.0]}]) == []
    assert curve_points([]) == []


def test_gains_that_shrink_go_on_shrinking():
    text = expectation(curve_of(60, 70, 75))
    assert text.startswith("From 20 to 40 training images mAP rose by 5.0 points, from 70.0 to 75.0.")
    assert text.endswith("Twice as many again (80), of the same kind, would probably bring 2.5 to 5.0 points more.")


def test_gains_that_grow_are_not_expected_to_go_on_growing():
    assert expectation(curve_of(60, 62, 70)).endswith("would probably bring about 8.0 points more.")
    assert expectation(curve_of(60, 50, 54)).endswith("would probably bring 2.0 to 4.0 points more.")


def test_no_more_than_100_is_expected():
    assert expectation(curve_of(70, 85, 97)).endswith("would probably bring about 3.0 points more.")


@pytest.mark.parametrize("last", [70.9, 70.0, 68.0])
def test_a_flat_curve_says_that_more_images_bring_little(last):
    text = expectation(curve_of(60, 70, last))
    assert text.endswith("More images of the same kind would probably bring little: look at the errors instead.")
    assert ("fell by 2.0 points" in text) == (last == 68)


def test_a_rise_within_the_spread_tells_nothing():
    text = expectation(curve_of(60, 70, 73, spread=4.0))
    assert "differ by as much (± 4.0)" in text and "cannot be told" in text
