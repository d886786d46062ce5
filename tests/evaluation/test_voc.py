"""VOC's average precision: curves, matching and data sets worked out by hand, and the devkit's own loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation_data import ELSEWHERE, HERE, THERE, dataset_of, detections_of, image_of

from sppdet.evaluation.coco import evaluate_coco, write_coco_results
from sppdet.evaluation.devkit_files import write_devkit_results
from sppdet.evaluation.voc import (
    ClassMatch,
    average_precision,
    check_detections,
    evaluate_voc,
    match_class,
    mean_over_known,
    precision_recall,
    table,
)
from sppdet.ops.boxes import as_boxes, from_voc
from sppdet.utils.errors import SppdetError


def test_both_rules_on_a_curve_worked_by_hand():
    # 4 objects, detections right, wrong, right, wrong, right:
    recall = np.array([1, 1, 2, 2, 3]) / 4
    precision = np.array([1 / 1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    # t = 0 .1 .2 -> 1; t = .3 .4 .5 -> 2/3; t = .6 .7 -> 3/5; t = .8 .9 1 -> 0.
    assert average_precision(recall, precision, "11-point") == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    # Three steps of a quarter under 1, 2/3 and 3/5, and nothing for the last object.
    assert average_precision(recall, precision, "area") == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)


def test_a_dip_in_precision_is_filled_from_the_right():
    # Wrong, right, right of 2: precision 0, 1/2, 2/3 is 2/3 everywhere once it is monotone.
    recall, precision = np.array([0, 1, 2]) / 2, np.array([0, 1 / 2, 2 / 3])
    assert average_precision(recall, precision, "11-point") == pytest.approx(2 / 3)
    assert average_precision(recall, precision, "area") == pytest.approx(2 / 3)


@pytest.mark.parametrize("hits", range(11))
def test_a_recall_of_tenths_reaches_its_threshold(hits):
    # t = 0, .1 ... hits / 10 are reached, also 3, 6 and 7 tenths, which i * 0.1 overshoots.
    recall, precision = np.arange(1, hits + 1) / 10, np.ones(hits)
    expected = (hits + 1) / 11 if hits else 0
    assert average_precision(recall, precision, "11-point") == pytest.approx(expected)
    assert average_precision(recall, precision, "area") == pytest.approx(hits / 10)


@pytest.mark.parametrize("rule", ["11-point", "area"])
def test_no_detections_give_zero(rule):
    assert average_precision(np.zeros(0), np.zeros(0), rule) == 0


def test_another_rule_is_refused():
    with pytest.raises(ValueError, match="101-point"):
        average_precision(np.ones(1), np.ones(1), "101-point")


def match(detections, truth, threshold=0.5) -> ClassMatch:
    """Match rows of (image, box, score) with rows of (image, box, difficult)."""
    return match_class(
        np.array([row[0] for row in detections], np.int64),
        as_boxes([row[1] for row in detections]),
        np.array([row[2] for row in detections], np.float32),
        np.array([row[0] for row in truth], np.int64),
        as_boxes([row[1] for row in truth]),
        np.array([row[2] for row in truth], bool),
        threshold,
    )


def test_detections_are_matched_by_descending_score():
    result = match([(0, HERE, -2.0), (0, ELSEWHERE, 3.0), (0, THERE, 0.0)], [(0, HERE, False), (0, THERE, False)])
    assert result.order.tolist() == [1, 2, 0]
    assert result.true_positive.tolist() == [False, True, True]
    recall, precision = precision_recall(result)
    assert recall.tolist() == [0, 1 / 2, 1]
    assert precision.tolist() == [0, 1 / 2, 2 / 3]


def test_equal_scores_keep_their_order():
    # The first of three equals is the one that finds the object.
    result = match([(0, HERE, 1.0)] * 3, [(0, HERE, False)])
    assert result.order.tolist() == [0, 1, 2]
    assert result.true_positive.tolist() == [True, False, False]


def test_a_duplicate_is_wrong_even_where_it_overlaps_another_object_enough():
    # Two objects that overlap: a box nearest to the first does not fall back on the second (IoU 8/12).
    first, second = (0, 0, 10, 10), (2, 0, 12, 10)
    result = match([(0, first, 2.0), (0, first, 1.0)], [(0, first, False), (0, second, False)])
    assert result.true_positive.tolist() == [True, False]
    assert not result.ignored.any()


def test_detections_on_a_difficult_object_do_not_count():
    result = match([(0, HERE, 3.0), (0, HERE, 2.0), (0, THERE, 1.0)], [(0, HERE, True), (0, THERE, False)])
    assert result.ignored.tolist() == [True, True, False]
    assert result.positives == 1
    recall, precision = precision_recall(result)
    assert (recall.tolist(), precision.tolist()) == ([1], [1])


def test_a_difficult_object_hides_one_that_counts():
    # IoU 1 with the difficult object, 2/3 with the other: the detection is ignored, and the other is not found.
    result = match([(0, (0, 0, 10, 10), 1.0)], [(0, (2, 0, 12, 10), False), (0, (0, 0, 10, 10), True)])
    assert result.ignored.tolist() == [True]
    assert result.true_positive.tolist() == [False]


def test_an_object_of_another_image_is_not_found():
    result = match([(0, HERE, 2.0), (7, HERE, 1.0)], [(7, HERE, False)])
    assert result.true_positive.tolist() == [False, True]


def test_an_overlap_of_exactly_the_threshold_counts_with_the_devkits_plus_one():
    # 1-based inclusive corners: 10 x 10 and 10 x 5 pixels, IoU 50 / 100. Without "+1" it would be 36 / 81.
    truth, box = from_voc([(1, 1, 10, 10)])[0], from_voc([(1, 1, 10, 5)])[0]
    assert match([(0, box, 1.0)], [(0, truth, False)], 0.5).true_positive.all()
    assert not match([(0, box, 1.0)], [(0, truth, False)], 0.5000001).true_positive.any()
    # A column less: 45 / 100.
    narrow = from_voc([(1, 1, 9, 5)])[0]
    assert not match([(0, narrow, 1.0)], [(0, truth, False)]).true_positive.any()


def test_half_of_a_very_large_object_is_half():
    # 6691 * 6691 is not a float32: in that type this IoU is 0.49999997. Areas are computed in float64.
    assert match([(0, (0, 0, 6691, 3345.5), 1.0)], [(0, (0, 0, 6691, 6691), False)]).true_positive.all()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, 50, float("nan")])
def test_thresholds_outside_of_0_to_1_are_refused(threshold):
    with pytest.raises(ValueError, match="iou_threshold"):
        match([], [], threshold)


def test_recall_without_positives_is_refused():
    with pytest.raises(ValueError, match="no recall"):
        precision_recall(match([(0, HERE, 1.0)], [(0, HERE, True)]))


def devkit_loop(detections, truth, threshold) -> list[str]:
    """Match as the devkit's loop does, one detection after the other, on 1-based inclusive corners with its "+1"."""
    taken: set[int] = set()
    verdicts = []
    for image, (x1, y1, x2, y2), _ in sorted(detections, key=lambda row: -row[2]):
        best, best_row = -np.inf, None
        for row, (truth_image, (u1, v1, u2, v2), _) in enumerate(truth):
            width, height = min(x2, u2) - max(x1, u1) + 1, min(y2, v2) - max(y1, v1) + 1
            if truth_image != image or width <= 0 or height <= 0:
                continue
            both = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1)
            overlap = width * height / (both - width * height)
            if overlap > best:
                best, best_row = overlap, row
        if best < threshold:
            verdicts.append("wrong")
        elif truth[best_row][2]:
            verdicts.append("ignored")
        elif best_row in taken:
            verdicts.append("wrong")
        else:
            taken.add(best_row)
            verdicts.append("right")
    return verdicts


@pytest.mark.parametrize("seed", range(8))
def test_matching_equals_the_devkits_loop(seed):
    rng = np.random.default_rng(seed)

    def corners() -> list[int]:
        # A small grid: overlaps of exactly one half, equal overlaps and duplicates are common.
        low, side = rng.integers(1, 4, 2), rng.integers(0, 4, 2)
        return [int(value) for value in (*low, *(low + side))]

    truth = [(int(rng.integers(5)), corners(), bool(rng.random() < 0.3)) for _ in range(12)]
    detections = [(int(rng.integers(6)), corners(), float(rng.integers(8))) for _ in range(80)]
    verdicts = devkit_loop(detections, truth, 0.5)
    assert set(verdicts) == {"right", "wrong", "ignored"}
    result = match(
        [(row[0], from_voc(row[1])[0], row[2]) for row in detections],
        [(row[0], from_voc(row[1])[0], row[2]) for row in truth],
    )
    assert result.true_positive.tolist() == [verdict == "right" for verdict in verdicts]
    assert result.ignored.tolist() == [verdict == "ignored" for verdict in verdicts]


def test_voc_result_worked_by_hand():
    # Cats: right, wrong, right of 2: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    # 11-point: t = 0 ... .5 -> 1, t = .6 ... 1 -> 2/3; area: (1 + 2/3) / 2. The one dog is not found.
    truth = dataset_of(image_of("a", (HERE, 0), (ELSEWHERE, 1)), image_of("b", (HERE, 0)))
    detections = [detections_of((HERE, 0, 0.9), (THERE, 0, 0.5)), detections_of((HERE, 0, -0.3))]
    result = evaluate_voc(truth, detections)
    cat, area = 100 * (6 + 5 * 2 / 3) / 11, 100 * (1 + 2 / 3) / 2
    assert result["AP"] == {"cat": pytest.approx(cat), "dog": 0}
    assert result["AP_area"] == {"cat": pytest.approx(area), "dog": 0}
    assert result["recall"] == {"cat": 100, "dog": 0}
    assert result["mAP"] == pytest.approx(cat / 2)
    assert result["mAP_area"] == pytest.approx(area / 2)


def test_a_detection_of_another_class_finds_nothing():
    result = evaluate_voc(
        dataset_of(image_of("a", (HERE, 0), (THERE, 1))), [detections_of((HERE, 1, 2.0), (THERE, 1, 1.0))]
    )
    # The dog is found by the second detection of a dog: precision 1/2 at recall 1.
    assert result["AP_area"] == {"cat": 0, "dog": pytest.approx(50)}


@pytest.mark.parametrize("truth", [[], [(HERE, 1, True)]], ids=["no object", "difficult objects alone"])
def test_a_class_without_objects_that_count_has_no_figures(truth):
    result = evaluate_voc(dataset_of(image_of("a", (HERE, 0), *truth)), [detections_of((HERE, 0, 1.0), (HERE, 1, 1.0))])
    assert result["AP"] == result["AP_area"] == result["recall"] == {"cat": 100, "dog": None}
    assert result["mAP"] == result["mAP_area"] == 100
    assert json.loads(json.dumps(result)) == result


def test_voc_without_objects_and_detections():
    nothing = {"cat": None, "dog": None}
    for truth, detections in [(dataset_of(), []), (dataset_of(image_of("a")), [detections_of()])]:
        result = evaluate_voc(truth, detections)
        assert result == {"mAP": None, "mAP_area": None, "AP": nothing, "AP_area": nothing, "recall": nothing}


def test_evaluate_voc_uses_the_threshold():
    # The upper 7 rows of 10: IoU 0.7.
    truth, detections = dataset_of(image_of("a", (HERE, 0))), [detections_of(((0, 0, 10, 7), 0, 1.0))]
    assert evaluate_voc(truth, detections, 0.7)["mAP"] == 100
    assert evaluate_voc(truth, detections, 0.75)["mAP"] == 0


UNFIT = {
    "2 entries for 1 images": [detections_of(), detections_of()],
    "image a: a score is not a finite": [detections_of((HERE, 0, float("nan")))],
    "image a: a box has a corner": [detections_of(((0, 0, float("inf"), 1), 0, 1.0))],
    "outside 0..1": [detections_of((HERE, 2, 1.0))],
    "outside 0[.]{2}1; evaluate with the classes": [detections_of((HERE, -1, 1.0))],
}


@pytest.mark.parametrize("message", UNFIT)
@pytest.mark.parametrize(
    "use",
    [
        check_detections,
        evaluate_voc,
        evaluate_coco,
        lambda truth, detections: write_coco_results("unwritten.json", truth, detections),
        lambda truth, detections: write_devkit_results("unwritten", truth, detections, "test"),
    ],
    ids=["check_detections", "evaluate_voc", "evaluate_coco", "write_coco_results", "write_devkit_results"],
)
def test_detections_that_do_not_fit_are_refused_before_anything_is_written(use, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SppdetError, match=message) as caught:
        use(dataset_of(image_of("a", (HERE, 0))), UNFIT[message])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_table_of_voc():
    truth = dataset_of(image_of("a", (HERE, 0), (THERE, 0)), classes=["cat", "pottedplant"])
    # One of two found: 11-point 6/11 (t = 0 ... .5), area 1/2.
    assert table(evaluate_voc(truth, [detections_of((HERE, 0, 1.0))])).splitlines() == [
        "class       AP 11-pt  AP area   recall",
        "cat             54.5     50.0     50.0",
        "pottedplant        -        -        -",
        "mean            54.5     50.0",
    ]


def test_the_mean_leaves_out_classes_without_figures():
    assert mean_over_known({"cat": 10.0, "dog": None, "cow": 40.0}) == 25
    assert mean_over_known({"dog": None}) is None
