"""COCO's figures and files, beside VOC's figures and beside pycocotools on the files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_data import HERE, THERE, dataset_of, detections_of, image_of, random_detections
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sppdet.evaluation.coco import evaluate_coco, ground_truth, image_ids, write_coco_ground_truth, write_coco_results
from sppdet.evaluation.voc import evaluate_voc, without_ignored
from sppdet.ops.boxes import from_xywh, to_xywh
from sppdet.utils.errors import SppdetError


def test_coco_ap50_is_the_area_where_precision_is_flat():
    # 2 detections of nothing, then all 4 objects: the monotone precision is 4/6 at every recall.
    truth = dataset_of(*(image_of(str(i), (HERE, 0)) for i in range(4)), classes=["cat"])
    detections = [detections_of((HERE, 0, 1.0), *[(THERE, 0, 2.0)] * (i < 2)) for i in range(4)]
    assert evaluate_voc(truth, detections)["mAP_area"] == pytest.approx(100 * 4 / 6)
    assert evaluate_voc(truth, detections)["mAP"] == pytest.approx(100 * 4 / 6)
    assert evaluate_coco(truth, detections)["AP50"] == pytest.approx(100 * 4 / 6)


def test_coco_samples_the_area_at_101_recalls():
    # 2 of 4 objects found, nothing else: area 1/2, while the recalls 0, .01 ... .50 are 51 of 101.
    truth = dataset_of(*(image_of(str(i), (HERE, 0)) for i in range(4)), classes=["cat"])
    detections = [detections_of((HERE, 0, 1.0)), detections_of((HERE, 0, 1.0)), detections_of(), detections_of()]
    assert evaluate_voc(truth, detections)["mAP_area"] == pytest.approx(50)
    assert evaluate_coco(truth, detections)["AP50"] == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize("seed", range(4))
def test_coco_ap50_and_area_differ_by_a_sampling_step_at_most(seed):
    # The monotone precision p falls from p(0) to p(1). The left sum of 100 steps exceeds its area by at most
    # (p(0) - p(1)) / 100, and COCO's mean, which counts p(1) once more, lies within 1/101 below that sum:
    # so the two are within a hundredth. Recalls of 64 objects are binary fractions, exact in both programs.
    truth, detections = random_detections(64, seed)
    area = evaluate_voc(truth, detections)["mAP_area"]
    assert 10 < area < 90
    assert evaluate_coco(truth, detections)["AP50"] == pytest.approx(area, abs=1)


def test_coco_figures_of_one_detection():
    # IoU 0.8 of a 40 x 40 object (medium): found at thresholds .50 ... .80, 7 of 10.
    truth = dataset_of(image_of("a", ((0, 0, 40, 40), 0)))
    result = evaluate_coco(truth, [detections_of(((0, 0, 40, 32), 0, 1.0))])
    assert result == {
        "AP": pytest.approx(70),
        "AP50": pytest.approx(100),
        "AP75": pytest.approx(100),
        "AP_small": None,
        "AP_medium": pytest.approx(70),
        "AP_large": None,
        "AR_100": pytest.approx(70),
    }


def test_coco_ignores_detections_by_their_share_inside_a_difficult_object():
    # A quarter of the difficult object: VOC's IoU is 1/4 (wrong), COCO's overlap with a crowd is 1 (ignored).
    truth = dataset_of(image_of("a", (HERE, 0, True), (THERE, 0)), classes=["cat"])
    detections = [detections_of(((0, 0, 5, 5), 0, 2.0), (THERE, 0, 1.0))]
    assert evaluate_coco(truth, detections)["AP50"] == pytest.approx(100)
    assert evaluate_voc(truth, detections)["mAP_area"] == pytest.approx(50)


def test_regions_that_are_ignored_are_pycocotools_crowds(tmp_path):
    """Beside a file with crowds, and beside VOC's rule, in images without a second detection of an object."""
    truth, detections = with_regions(40)
    crowds = [
        {"id": 1000 + i, "image_id": i, "category_id": 1, "iscrowd": 1, "bbox": box, "area": box[2] * box[3]}
        for i, sample in enumerate(truth)
        for box in to_xywh(sample.ignored).tolist()
    ]
    plain = [replace(sample, ignored=np.zeros((0, 4)), ignored_labels=np.zeros(0, int)) for sample in truth]
    write_coco_ground_truth(tmp_path / "truth.json", dataset_of(*plain, classes=["cat"]))
    content = json.loads((tmp_path / "truth.json").read_text())
    content["annotations"] += crowds
    (tmp_path / "truth.json").write_text(json.dumps(content))
    write_coco_results(tmp_path / "results.json", truth, detections)
    toolkit = COCO(tmp_path / "truth.json")
    evaluation = COCOeval(toolkit, toolkit.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = evaluate_coco(truth, detections)
    assert [figures["AP"], figures["AP50"]] == pytest.approx((100 * evaluation.stats[:2]).tolist())
    assert figures["AP50"] > evaluate_coco(dataset_of(*plain, classes=["cat"]), detections)["AP50"] + 1
    kept = [len(entry.scores) for entry in without_ignored(truth, detections)]
    of_all_sizes = [entry for entry in evaluation.evalImgs if entry and entry["aRng"] == [0, 1e10]]
    counted = {entry["image_id"]: int((~entry["dtIgnore"][0].astype(bool)).sum()) for entry in of_all_sizes}
    assert kept == [counted.get(i, 0) for i in range(40)] and sum(kept) < sum(len(d.scores) for d in detections)


def with_regions(images: int):
    """Return images "0", "1" ... with a cat and a region that is ignored, and detections near and far from both."""
    rng, samples, detections = np.random.default_rng(5), [], []
    for i in range(images):
        x, y, side = rng.integers(150, 300), rng.integers(0, 200), rng.integers(40, 100)
        region = np.array([[x, y, x + side, y + side]], np.float32)
        samples.append(replace(image_of(str(i), (HERE, 0)), ignored=region, ignored_labels=np.array([0])))
        boxes = region.repeat(6, axis=0) + rng.integers(-60, 60, (6, 4))
        boxes = [box for box in boxes.tolist() if box[2] > box[0] and box[3] > box[1] and box[0] > 20]
        scores = rng.permutation(len(boxes) + 1)
        rows = [(box, 0, score) for box, score in zip(boxes, scores[1:])]
        detections.append(detections_of(*rows, *([((0, 0, 10, 9), 0, scores[0])] if i % 3 else [])))
    return dataset_of(*samples, classes=["cat"]), detections


def test_a_region_that_is_ignored_for_every_class_is_a_crowd_of_each():
    region = replace(image_of("a"), ignored=np.array([HERE], np.float32), ignored_labels=np.array([-1]))
    assert [entry["category_id"] for entry in ground_truth(dataset_of(region))["annotations"]] == [1, 2]


def test_coco_without_detections_or_without_objects(capsys):
    truth = dataset_of(image_of("a", (HERE, 0)))
    assert evaluate_coco(truth, [detections_of()])["AP"] == 0
    for empty in (dataset_of(image_of("a")), dataset_of(image_of("a", (HERE, 0, True)))):
        assert set(evaluate_coco(empty, [detections_of((HERE, 0, 1.0))]).values()) == {None}
    assert set(evaluate_coco(dataset_of(), []).values()) == {None}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "names, numbers",
    [
        (["000005", "000012"], [5, 12]),
        (["2007_000027", "2007_000032"], [1, 2]),
        (["1", "001"], [1, 2]),  # one number, two images
        (["7", "x"], [1, 2]),
        (["²", "3"], [1, 2]),  # a digit to `str.isdigit`, not to `int`
        (["9007199254740992", "1"], [1, 2]),  # 2**53
        (["9007199254740991", "1"], [2**53 - 1, 1]),
        ([], []),
    ],
)
def test_image_ids(names, numbers):
    assert image_ids(dataset_of(*(image_of(name) for name in names))) == numbers


def test_coco_files_give_pycocotools_the_same_figures(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, detections = random_detections(20, seed=1)
    write_coco_ground_truth(tmp_path / "new" / "truth.json", truth)
    write_coco_results(tmp_path / "results.json", truth, detections)
    coco = COCO(str(tmp_path / "new" / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = evaluate_coco(truth, detections)
    assert 100 * evaluation.stats[0] == expected["AP"] > 0
    assert 100 * evaluation.stats[1] == expected["AP50"]
    assert 100 * evaluation.stats[8] == expected["AR_100"]


def test_coco_results_are_read_back_exactly(tmp_path):
    truth = dataset_of(image_of("000007", path="a/7.jpg"), image_of("000008", path="b/8.jpg"))
    score = np.float32(-0.1)
    detections = [detections_of(), detections_of(((1.5, 2, 11, 22), 1, score))]
    write_coco_results(tmp_path / "results.json", truth, detections)
    [row] = json.loads((tmp_path / "results.json").read_text())
    # `file_name` is relative to the common folder of the images.
    assert {key: row[key] for key in ("image_id", "category_id", "file_name")} == {
        "image_id": 8,
        "category_id": 2,
        "file_name": "b/8.jpg",
    }
    assert row["bbox"] == [1.5, 2, 9.5, 20]
    assert np.float32(row["score"]) == score
    np.testing.assert_array_equal(from_xywh([row["bbox"]]), detections[1].boxes)


def test_coco_ground_truth(tmp_path):
    write_coco_ground_truth(
        tmp_path / "truth.json", dataset_of(image_of("a", (HERE, 1), (THERE, 0, True)), image_of("b"))
    )
    content = json.loads((tmp_path / "truth.json").read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480},
        {"id": 2, "file_name": "b.jpg", "width": 640, "height": 480},
    ]
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "cat"), (2, "dog")]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [100, 0, 10, 10], "area": 100, "iscrowd": 1, "difficult": 1},
    ]


def test_coco_files_without_content(tmp_path):
    write_coco_results(tmp_path / "results.json", dataset_of(image_of("a")), [detections_of()])
    write_coco_ground_truth(tmp_path / "truth.json", dataset_of())
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert json.loads((tmp_path / "truth.json").read_text())["images"] == []


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SppdetError, match=r"file/truth\.json: cannot be written"):
        write_coco_ground_truth(tmp_path / "file" / "truth.json", dataset_of())
