"""Numbers of a report: ranges of resampled images, and counts at thresholds against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_data import ELSEWHERE, HERE, THERE, dataset_of, detections_of, image_of, random_detections

from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.report.figures import count_at_thresholds, object_counts, resampled_ranges
from sppdet.evaluation.significance import draw_image_counts, range_of_95, resampled_ap

IMAGES = dataset_of(
    image_of("1", (HERE, 0), (THERE, 1), (ELSEWHERE, 0, True)),
    image_of("2", (HERE, 0)),
)
DETECTIONS = [
    detections_of((HERE, 0, 2.0), (HERE, 0, 1.0), (THERE, 1, -1.0), (ELSEWHERE, 0, 0.5)),
    detections_of((THERE, 1, 3.0), (HERE, 0, 0.0)),
]


def test_counts_at_every_threshold_are_those_of_counting():
    counts = count_at_thresholds(IMAGES, DETECTIONS)
    assert counts.objects.tolist() == [2, 1]
    # Class cat: right at 2 and 0, wrong at 1 (a second box), ignored at 0.5 (on a difficult object).
    for t, threshold in enumerate(counts.thresholds):
        assert counts.hits[0, t] == int(threshold <= 2) + int(threshold <= 0)
        assert counts.false_alarms[0, t] == (threshold <= 1)
        assert counts.hits[1, t] == (threshold <= -1) and counts.false_alarms[1, t] == (threshold <= 3)


def test_thresholds_are_round_numbers_that_cover_the_scores():
    counts = count_at_thresholds(IMAGES, DETECTIONS)
    np.testing.assert_allclose(counts.thresholds, np.arange(-1, 3.001, 0.01), atol=1e-9)
    assert counts.decimals == 2 and counts.thresholds[counts.start] == -0.5
    wide = count_at_thresholds(IMAGES, [detections_of((HERE, 0, 5000.0)), detections_of((HERE, 0, -40000.0))])
    assert wide.decimals == 0 and wide.thresholds[0] == -40000 and wide.thresholds[-1] == 5000
    assert 200 < len(wide.thresholds) <= 402


def test_the_best_threshold_is_the_middle_of_those_with_the_highest_f1():
    counts = count_at_thresholds(IMAGES, DETECTIONS)
    # Cats: F1 is 2/3 with one of two found and no false alarm, in (1, 2], and 4/5 with both and one false alarm.
    assert counts.best(0) == pytest.approx(-0.5, abs=0.011)
    nothing = count_at_thresholds(IMAGES, [detections_of(), detections_of()])
    assert nothing.best(0) is None and nothing.best() is None and nothing.hits.shape == (2, len(nothing.thresholds))


def test_ranges_are_those_of_resampled_images():
    dataset, detections = random_detections(40, seed=1)
    ranges = resampled_ranges(dataset, detections, evaluate_coco(dataset, detections)["AP"])
    ap = resampled_ap(dataset, detections, draw_image_counts(40, 1000))
    assert ranges.draws == 1000 and ranges.ap == [pytest.approx(range_of_95(ap[0]))] and ranges.mean == ranges.ap[0]
    # A found cat is found at every IoU: COCO's AP is another rule for the same curve.
    assert ranges.coco == pytest.approx(ranges.mean, abs=4)


def test_without_objects_there_is_no_range():
    empty = dataset_of(image_of("1"))
    ranges = resampled_ranges(empty, [detections_of((HERE, 0, 1.0))], None)
    assert (ranges.ap, ranges.mean, ranges.coco) == ([None, None], None, None)


def test_difficult_objects_are_not_counted():
    assert object_counts(IMAGES).tolist() == [2, 1]
