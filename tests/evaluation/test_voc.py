from __future__ import annotations

import json

import numpy as np
import pytest
from truth import ELSEWHERE, HERE, THERE, dataset, found, image, scattered

from sppdet.detection.detections import Detections
from sppdet.evaluation.coco import evaluate_coco, write_coco_ground_truth, write_coco_results
from sppdet.evaluation.devkit_files import read_devkit_results, write_devkit_results
from sppdet.evaluation.voc import average_precision, evaluate_voc, match_class, precision_recall, table
from sppdet.ops.boxes import as_boxes, from_voc
from sppdet.utils.errors import SppdetError

# --- Average precision of a curve ---


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


@pytest.mark.parametrize("right", range(11))
def test_a_recall_of_tenths_reaches_its_threshold(right):
    # t = 0, .1 ... right / 10 are reached, also 3, 6 and 7 tenths, which i * 0.1 overshoots.
    recall, precision = np.arange(1, right + 1) / 10, np.ones(right)
    expected = (right + 1) / 11 if right else 0
    assert average_precision(recall, precision, "11-point") == pytest.approx(expected)
    assert average_precision(recall, precision, "area") == pytest.approx(right / 10)


@pytest.mark.parametrize("rule", ["11-point", "area"])
def test_no_detections_give_zero(rule):
    assert average_precision(np.zeros(0), np.zeros(0), rule) == 0


def test_another_rule_is_refused():
    with pytest.raises(ValueError, match="101-point"):
        average_precision(np.ones(1), np.ones(1), "101-point")


# --- Matching ---


def match(detections, truth, threshold=0.5):
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


def test_a_duplicate_is_wrong_also_where_another_object_would_do():
    # Two objects that overlap: a window nearest to the first does not fall back on the second (IoU 8/12).
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
    # Best IoU goes to the difficult object (1) before the other (2/3): ignored, and the other stays unfound.
    result = match([(0, (0, 0, 10, 10), 1.0)], [(0, (2, 0, 12, 10), False), (0, (0, 0, 10, 10), True)])
    assert result.ignored.tolist() == [True]
    assert result.true_positive.tolist() == [False]


def test_an_object_of_another_image_is_not_found():
    result = match([(0, HERE, 2.0), (7, HERE, 1.0)], [(7, HERE, False)])
    assert result.true_positive.tolist() == [False, True]


def test_an_overlap_of_exactly_the_threshold_counts_with_the_devkits_plus_one():
    # 1-based inclusive corners: 10 x 10 and 10 x 5 pixels, IoU 50 / 100. Without "+1" it would be 36 / 81.
    truth, window = from_voc([(1, 1, 10, 10)])[0], from_voc([(1, 1, 10, 5)])[0]
    assert match([(0, window, 1.0)], [(0, truth, False)], 0.5).true_positive.all()
    assert not match([(0, window, 1.0)], [(0, truth, False)], 0.5000001).true_positive.any()
    # A column less: 45 / 100.
    narrow = from_voc([(1, 1, 9, 5)])[0]
    assert not match([(0, narrow, 1.0)], [(0, truth, False)]).true_positive.any()


def test_half_of_a_very_large_object_is_half():
    # 6691 * 6691 is no float32, in which this IoU is 0.49999997: areas are taken in float64.
    assert match([(0, (0, 0, 6691, 3345.5), 1.0)], [(0, (0, 0, 6691, 6691), False)]).true_positive.all()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, 50, float("nan")])
def test_thresholds_outside_of_0_to_1_are_refused(threshold):
    with pytest.raises(ValueError, match="iou_threshold"):
        match([], [], threshold)


def test_recall_without_positives_is_refused():
    with pytest.raises(ValueError, match="no recall"):
        precision_recall(match([(0, HERE, 1.0)], [(0, HERE, True)]))


def devkit_loop(detections, truth, threshold):
    """The devkit's loop, one detection after the other, on 1-based inclusive corners with its "+1"."""
    taken, verdicts = set(), []
    for image_, (x1, y1, x2, y2), _ in sorted(detections, key=lambda row: -row[2]):
        best, best_row = -np.inf, None
        for row, (truth_image, (u1, v1, u2, v2), _) in enumerate(truth):
            width, height = min(x2, u2) - max(x1, u1) + 1, min(y2, v2) - max(y1, v1) + 1
            if truth_image != image_ or width <= 0 or height <= 0:
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
def test_matching_is_the_devkits_loop(seed):
    random = np.random.default_rng(seed)

    def corners():
        # A small grid: overlaps of exactly one half, equal overlaps and duplicates are common.
        low, side = random.integers(1, 4, 2), random.integers(0, 4, 2)
        return [int(value) for value in (*low, *(low + side))]

    truth = [(int(random.integers(5)), corners(), bool(random.random() < 0.3)) for _ in range(12)]
    detections = [(int(random.integers(6)), corners(), float(random.integers(8))) for _ in range(80)]
    verdicts = devkit_loop(detections, truth, 0.5)
    assert set(verdicts) == {"right", "wrong", "ignored"}
    result = match(
        [(row[0], from_voc(row[1])[0], row[2]) for row in detections],
        [(row[0], from_voc(row[1])[0], row[2]) for row in truth],
    )
    assert result.true_positive.tolist() == [verdict == "right" for verdict in verdicts]
    assert result.ignored.tolist() == [verdict == "ignored" for verdict in verdicts]


# --- VOC over a data set ---


def test_voc_result_worked_by_hand():
    # Cats: right, wrong, right of 2: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    # 11-point: t = 0 ... .5 -> 1, t = .6 ... 1 -> 2/3; area: (1 + 2/3) / 2. The one dog is not found.
    truth = dataset(image("a", (HERE, 0), (ELSEWHERE, 1)), image("b", (HERE, 0)))
    detections = [found((HERE, 0, 0.9), (THERE, 0, 0.5)), found((HERE, 0, -0.3))]
    result = evaluate_voc(truth, detections)
    cat, area = 100 * (6 + 5 * 2 / 3) / 11, 100 * (1 + 2 / 3) / 2
    assert result["AP"] == {"cat": pytest.approx(cat), "dog": 0}
    assert result["AP_area"] == {"cat": pytest.approx(area), "dog": 0}
    assert result["recall"] == {"cat": 100, "dog": 0}
    assert result["mAP"] == pytest.approx(cat / 2)
    assert result["mAP_area"] == pytest.approx(area / 2)


def test_a_window_of_another_class_finds_nothing():
    result = evaluate_voc(dataset(image("a", (HERE, 0), (THERE, 1))), [found((HERE, 1, 2.0), (THERE, 1, 1.0))])
    # The dog is found by the second dog window: precision 1/2 at recall 1.
    assert result["AP_area"] == {"cat": 0, "dog": pytest.approx(50)}


@pytest.mark.parametrize("truth", [[], [(HERE, 1, True)]], ids=["no object", "difficult objects alone"])
def test_a_class_without_objects_that_count_has_no_value(truth):
    result = evaluate_voc(dataset(image("a", (HERE, 0), *truth)), [found((HERE, 0, 1.0), (HERE, 1, 1.0))])
    assert result["AP"] == result["AP_area"] == result["recall"] == {"cat": 100, "dog": None}
    assert result["mAP"] == result["mAP_area"] == 100
    assert json.loads(json.dumps(result)) == result


def test_voc_with_nothing_at_all():
    nothing = {"cat": None, "dog": None}
    for truth, detections in [(dataset(), []), (dataset(image("a")), [found()])]:
        result = evaluate_voc(truth, detections)
        assert result == {"mAP": None, "mAP_area": None, "AP": nothing, "AP_area": nothing, "recall": nothing}


def test_voc_threshold_is_handed_on():
    # The upper 7 rows of 10: IoU 0.7.
    truth, detections = dataset(image("a", (HERE, 0))), [found(((0, 0, 10, 7), 0, 1.0))]
    assert evaluate_voc(truth, detections, 0.7)["mAP"] == 100
    assert evaluate_voc(truth, detections, 0.75)["mAP"] == 0


# --- What is refused ---

UNFIT = {
    "2 entries for 1 images": [found(), found()],
    "image a: a score is not a finite": [found((HERE, 0, float("nan")))],
    "image a: a box has a corner": [found(((0, 0, float("inf"), 1), 0, 1.0))],
    "outside 0..1": [found((HERE, 2, 1.0))],
    "outside 0[.]{2}1; evaluate with the classes": [found((HERE, -1, 1.0))],
    "differ in length": [Detections(as_boxes([HERE]), np.zeros(2, np.int64), np.zeros(1, np.float32))],
}


@pytest.mark.parametrize("message", UNFIT)
@pytest.mark.parametrize(
    "use",
    [
        evaluate_voc,
        evaluate_coco,
        lambda truth, detections: write_coco_results("unwritten.json", truth, detections),
        lambda truth, detections: write_devkit_results("unwritten", truth, detections, "test"),
    ],
    ids=["evaluate_voc", "evaluate_coco", "write_coco_results", "write_devkit_results"],
)
def test_detections_that_do_not_fit_are_refused(use, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SppdetError, match=message) as caught:
        use(dataset(image("a", (HERE, 0))), UNFIT[message])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- Files ---


def test_devkit_lines(tmp_path):
    truth = dataset(image("000001"), image("000002"))
    write_devkit_results(tmp_path, truth, [found((HERE, 0, 0.5)), found(((2.25, 3, 4, 5), 0, -1.5))], "test")
    # 1-based inclusive: the top left window of 10 x 10 pixels is 1 1 10 10.
    assert (tmp_path / "comp4_det_test_cat.txt").read_text() == ("000001 0.5 1 1 10 10\n000002 -1.5 3.25 4 4 5\n")
    assert (tmp_path / "comp4_det_test_dog.txt").read_text() == ""
    assert len(list(tmp_path.iterdir())) == 2  # and no temporary file


def test_devkit_files_keep_order_and_average_precision(tmp_path):
    truth, detections = scattered(20, seed=2)
    # Scores that differ in the last bit of a float32 alone, and corners with all of theirs.
    scores = [np.float32(1) + d.scores * np.float32(2**-23) for d in detections]
    detections = [Detections(d.boxes * np.float32(0.987654), d.labels, s) for d, s in zip(detections, scores)]
    write_devkit_results(tmp_path, truth, detections, "val")
    rows = {sample.id: [] for sample in truth.samples}
    for line in (tmp_path / "comp4_det_val_cat.txt").read_text().splitlines():
        name, score, *corners = line.split()
        rows[name].append((from_voc([float(c) for c in corners])[0], 0, float(score)))
    again = [found(*rows[sample.id]) for sample in truth.samples]
    for before, after in zip(detections, again):
        np.testing.assert_array_equal(before.scores, after.scores)
        np.testing.assert_array_equal(before.boxes, after.boxes)
    assert evaluate_voc(truth, again) == evaluate_voc(truth, detections)


def test_devkit_files_are_read_back(tmp_path):
    truth = dataset(image("b"), image("a"), image("c"))
    detections = [found((HERE, 1, 0.1), (THERE, 0, -1.25)), found(), found((HERE, 1, 2.0), (HERE, 1, 1.0))]
    write_devkit_results(tmp_path, truth, detections, "val")
    again = read_devkit_results(tmp_path, truth, "val")
    assert len(again) == 3 and again[0].classes == ("cat", "dog")
    for before, after in zip(detections, again):
        for name in ("boxes", "labels", "scores"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name), strict=True)
    assert read_devkit_results(tmp_path, dataset(classes=()), "val") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "comp4_det_val_dog.txt: cannot be read"),
        ("a 0.5 1 1 10", "a line is not `id score x1 y1 x2 y2`"),
        ("a 0.5 1 1 10 ten", "a line is not"),
        ("\n", "a line is not"),
        ("z 0.5 1 1 10 10", "image 'z' is not in split val"),
    ],
)
def test_broken_devkit_files_are_named(tmp_path, text, message):
    truth = dataset(image("a"))
    write_devkit_results(tmp_path, truth, [found()], "val")
    path = tmp_path / "comp4_det_val_dog.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SppdetError, match=message) as caught:
        read_devkit_results(tmp_path, truth, "val")
    assert "\n" not in str(caught.value)


def test_devkit_refuses_names_that_break_its_files(tmp_path):
    for truth, split, message in [
        (dataset(image("a b")), "test", "'a b': white space"),
        (dataset(image("")), "test", "white space"),
        (dataset(image("a"), classes=["cat/dog"]), "test", "cat/dog"),
        (dataset(image("a")), "../test", "[.][.]/test"),
    ]:
        with pytest.raises(SppdetError, match=message):
            write_devkit_results(tmp_path, truth, [found()], split)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SppdetError, match=r"file/truth\.json: cannot be written"):
        write_coco_ground_truth(tmp_path / "file" / "truth.json", dataset())


# --- Terminal ---


def test_table_of_voc():
    truth = dataset(image("a", (HERE, 0), (THERE, 0)), classes=["cat", "pottedplant"])
    # One of two found: 11-point 6/11 (t = 0 ... .5), area 1/2.
    assert table(evaluate_voc(truth, [found((HERE, 0, 1.0))])).splitlines() == [
        "class       AP 11-pt  AP area   recall",
        "cat             54.5     50.0     50.0",
        "pottedplant        -        -        -",
        "mean            54.5     50.0",
    ]
