"""Errors of a known kind, and repaired detections that the evaluation itself measures again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppdet.data.dataset import Dataset, Sample
from sppdet.detection.detections import Detections
from sppdet.evaluation.diagnosis import KINDS, OUTCOMES, diagnose, errors_by_class, similar_classes
from sppdet.evaluation.voc import evaluate_voc
from sppdet.ops import boxes as geometry

CLASSES = ("car", "cow", "sheep")
COW, SECOND, SHEEP, CAR, HARD = ([x, 0, x + 12, 10] for x in (0, 100, 200, 300, 400))
NOWHERE = [500, 0, 512, 10]
NOTHING = np.zeros((0, 4), np.float32)


def shifted(box: list[int], shift: int) -> list[int]:
    """Move a box of 12 pixels to the right: by 2 its IoU is 10 / 14, by 6 it is 6 / 18, by 10 it is 2 / 22 < 0.1."""
    return [box[0] + shift, box[1], box[2] + shift, box[3]]


def image_of(*rows, name="a") -> Sample:
    """Return a sample of (box, class) or (box, class, difficult)."""
    boxes = geometry.as_boxes([row[0] for row in rows])
    labels = np.array([CLASSES.index(row[1]) for row in rows], np.int64)
    return Sample(name, Path(f"{name}.jpg"), 640, 480, boxes, labels, np.array([len(row) > 2 for row in rows], bool))


def detections_of(*boxes, label="cow") -> Detections:
    """Return detections of one class, highest score first."""
    scores = -np.arange(len(boxes), dtype=np.float32)
    return Detections(geometry.as_boxes(boxes), np.full(len(boxes), CLASSES.index(label)), scores, CLASSES)


FIELD = image_of((COW, "cow"), (SECOND, "cow"), (SHEEP, "sheep"), (CAR, "car"), (HARD, "cow", True))


def diagnosis_of_cows(detections: Detections, sample=FIELD, proposals=NOTHING) -> dict:
    """Return what the diagnosis of one image says of cows."""
    result = diagnose(Dataset(CLASSES, (sample,)), [detections], [geometry.as_boxes(proposals)])
    return result["classes"]["cow"]


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (shifted(COW, 2), "duplicate"),
        (shifted(COW, 6), "localisation"),
        (shifted(COW, 10), "background"),
        (SHEEP, "similar"),
        (shifted(SHEEP, 6), "similar"),
        (shifted(SHEEP, 10), "background"),
        (CAR, "misclassified"),
        (shifted(CAR, 2), "misclassified"),
        (shifted(CAR, 6), "both"),
        (NOWHERE, "background"),
        (shifted(HARD, 6), "localisation"),
    ],
)
def test_every_kind_of_wrong_detection(box, kind):
    counts = diagnosis_of_cows(detections_of(COW, box))["detections"]
    assert {name: count for name, count in counts.items() if count} == {"correct": 1, kind: 1}


def test_a_detection_on_a_difficult_object_is_in_no_count():
    assert (
        diagnosis_of_cows(detections_of(HARD, COW))["detections"] == diagnosis_of_cows(detections_of(COW))["detections"]
    )


def test_an_object_of_the_class_counts_before_a_similar_class_and_that_before_another():
    crowd = image_of((COW, "cow"), (shifted(COW, 10), "sheep"), (shifted(COW, 16), "car"))
    # Shifted by 8: IoU 4 / 20 with the cow, 10 / 14 with the sheep, 4 / 20 with the car; by 14: off the cow.
    assert diagnosis_of_cows(detections_of(shifted(COW, 8)), crowd)["detections"]["localisation"] == 1
    assert diagnosis_of_cows(detections_of(shifted(COW, 14)), crowd)["detections"]["similar"] == 1
    assert diagnosis_of_cows(detections_of(shifted(COW, 14)), crowd)["confused_with"] == {"sheep": 1}


def test_as_many_detections_are_counted_as_there_are_objects():
    result = diagnosis_of_cows(detections_of(NOWHERE, COW, SECOND, SHEEP, CAR))
    assert result["detections"] == {
        "correct": 1, "localisation": 0, "duplicate": 0, "similar": 0, "misclassified": 0, "both": 0, "background": 1,
    }  # fmt: skip
    assert result["objects"] == {"found": 1, "outranked": 1, "undetected": 0, "unproposed": 0}


def test_missed_with_and_without_a_proposal():
    missed = detections_of(COW)
    assert diagnosis_of_cows(missed, proposals=[shifted(SECOND, 2)])["objects"]["undetected"] == 1
    assert diagnosis_of_cows(missed, proposals=[shifted(SECOND, 6)])["objects"]["unproposed"] == 1
    # Box regression found it all the same.
    assert diagnosis_of_cows(detections_of(COW, SECOND), proposals=[])["objects"]["found"] == 2


def test_gains_worked_by_hand():
    """Two cows: right, duplicate, badly placed on each cow, sheep, car, nothing, badly on a difficult one."""
    wrong = [
        shifted(COW, 2),
        shifted(COW, 6),
        shifted(SECOND, 6),
        SHEEP,
        CAR,
        NOWHERE,
        shifted(HARD, 6),
    ]
    result = diagnose(Dataset(CLASSES, (FIELD,)), [detections_of(COW, *wrong)], [geometry.as_boxes([SECOND])])
    cow, errors = result["classes"]["cow"], result["errors"]
    assert cow["AP"] == pytest.approx(600 / 11) and cow["AP_area"] == pytest.approx(50)
    # right, wrong, right: recall 1 at a precision of 2/3.
    assert cow["AP_without"]["localisation"] == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    # No object is found by a detection below these errors, so their removal gains nothing.
    for kind in ("duplicate", "similar", "misclassified", "both", "background", "outranked", "unproposed"):
        assert cow["AP_without"][kind] == pytest.approx(cow["AP"])
    assert cow["AP_without"]["undetected"] == pytest.approx(100)
    # Sheep and car have an object each and no detection: AP 0 before and after.
    assert errors["localisation"]["mAP"] == pytest.approx(cow["AP_without"]["localisation"] / 3)
    assert errors["localisation"]["mAP_area"] == pytest.approx((50 + 50 * 2 / 3) / 3)
    assert errors["duplicate"] == {
        "count": 1, "share": 0.5, "mAP": pytest.approx(200 / 11), "mAP_area": pytest.approx(50 / 3),
    }  # fmt: skip
    assert errors["unproposed"]["count"] == 2 and errors["unproposed"]["share"] == 0.5  # the sheep and the car


def test_outranked_objects_come_right_after_the_highest_scores():
    # wrong, wrong, wrong, right, wrong, right: precision 1/4 and 2/6; then wrong, wrong, right, right: 1/3 and 2/4.
    far = [shifted(NOWHERE, 20 * i) for i in range(4)]
    cow = diagnosis_of_cows(detections_of(*far[:3], COW, far[3], SECOND))
    assert cow["AP"] == pytest.approx(100 / 3)
    assert cow["AP_without"]["outranked"] == pytest.approx(50)
    assert cow["AP_without"]["background"] == pytest.approx(100)


def plain_outcomes(dataset: Dataset, detections: list[Detections], k: int) -> list[tuple]:
    """Return (image, row, outcome, object) of the detections of class k, highest score first, found in a plain loop."""
    rows = [(i, j) for i, d in enumerate(detections) for j in np.flatnonzero(d.labels == k)]
    rows.sort(key=lambda row: -detections[row[0]].scores[row[1]])
    similar, taken, result = similar_classes(dataset.classes)[k], set(), []
    for i, j in rows:
        sample = dataset[i]
        overlap = geometry.iou(detections[i].boxes[j : j + 1], sample.boxes)[0]
        class_overlap = np.where(sample.labels == k, overlap, -1)
        best = int(class_overlap.argmax()) if len(class_overlap) else -1
        if len(class_overlap) and class_overlap[best] >= 0.5:
            if sample.difficult[best]:
                outcome = "ignored"
            else:
                outcome = "duplicate" if (i, best) in taken else "correct"
                taken.add((i, best))
        elif len(class_overlap) and class_overlap[best] >= 0.1:
            outcome = "localisation"
        elif any(value >= 0.1 and similar[label] for value, label in zip(overlap, sample.labels)):
            outcome = "similar"
        else:
            best_other = overlap.max(initial=0)
            outcome = "misclassified" if best_other >= 0.5 else "both" if best_other >= 0.1 else "background"
        result.append((i, j, outcome, best))
    return result


def random_case(seed: int) -> tuple[Dataset, list[Detections], list[np.ndarray]]:
    """Return objects, some difficult; many or few detections near them and far away; proposals of some objects."""
    rng = np.random.default_rng(seed)
    share = (1, 0.4, 0.1)[seed % 3]
    samples, detections, proposals = [], [], []
    for i in range(12):
        n = rng.integers(0, 5)
        corner = rng.integers(0, 60, (n, 2))
        boxes = np.concatenate([corner, corner + rng.integers(8, 30, (n, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 3, n)
        samples.append(Sample(f"p{i}", Path(f"p{i}.jpg"), 100, 100, boxes, labels, rng.random(n) < 0.2))
        near = np.repeat(boxes, 4, axis=0) + rng.integers(-6, 7, (4 * n, 4))
        far = np.concatenate([np.zeros((6, 2)), rng.integers(5, 90, (6, 2))], axis=1)
        every = geometry.as_boxes(np.concatenate([near, far]))
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 2)
        guessed = np.where(rng.random(4 * n) < 0.7, np.repeat(labels, 4), rng.integers(0, 3, 4 * n))
        guessed = np.concatenate([guessed, rng.integers(0, 3, 6)])
        scores = rng.permutation(len(every)) + rng.random(len(every))
        order = np.argsort(-scores)[rng.random(len(every)) < share]
        detections.append(Detections(every[order], guessed[order], scores[order].astype(np.float32), CLASSES))
        proposals.append(geometry.as_boxes(boxes[rng.random(n) < 0.6]))
    return Dataset(CLASSES, tuple(samples)), detections, proposals


def repair(dataset: Dataset, detections: list[Detections], error: str, outcomes: dict, covered: list[np.ndarray]):
    """Return the data set and detections without one kind of error."""
    boxes, scores = [d.boxes.copy() for d in detections], [d.scores.copy() for d in detections]
    keep = [np.ones(len(d), bool) for d in detections]
    difficult = [sample.difficult.copy() for sample in dataset]
    for k in range(3):
        rows = [row for row in outcomes[k] if row[2] != "ignored"]
        finders = {(i, best): place for place, (i, _, outcome, best) in enumerate(rows) if outcome == "correct"}
        objects = [(i, o) for i, s in enumerate(dataset) for o in np.flatnonzero((s.labels == k) & ~s.difficult)]
        placed = set()
        for i, j, outcome, best in rows:
            if outcome == error or (error == "false positives" and outcome != "correct"):
                keep[i][j] = False
            if outcome == error == "localisation" and (i, best) in objects and (i, best) not in {*finders, *placed}:
                placed.add((i, best))
                keep[i][j], boxes[i][j] = True, dataset[i].boxes[best]
        if error == "outranked" and len(rows) > len(objects):
            i, j = rows[len(objects)][:2]  # the first that is not among the surest
            late = [rows[place] for place in finders.values() if place >= len(objects)]
            edge = detections[i].scores[j]
            for nth, row in enumerate(late):
                scores[row[0]][row[1]] = edge + np.float32(1e-4 * (len(late) - nth))
        if error in ("undetected", "unproposed", "false negatives"):
            for i, o in objects:
                counts = error == "false negatives" or covered[i][o] == (error == "undetected")
                if (i, o) not in finders and counts:
                    difficult[i][o] = True
    samples = tuple(replace(sample, difficult=d) for sample, d in zip(dataset, difficult))
    rows = zip(boxes, detections, scores, keep)
    return Dataset(CLASSES, samples), [Detections(b[k], d.labels[k], s[k], CLASSES) for b, d, s, k in rows]


@pytest.mark.parametrize("seed", range(6))
def test_figures_without_an_error_are_those_of_repaired_detections(seed):
    dataset, detections, proposals = random_case(seed)
    result = diagnose(dataset, detections, proposals)
    measured = evaluate_voc(dataset, detections)
    assert result["mAP"] == pytest.approx(measured["mAP"]) and result["mAP_area"] == pytest.approx(measured["mAP_area"])
    outcomes = {k: plain_outcomes(dataset, detections, k) for k in range(3)}
    covered = [
        geometry.iou(sample.boxes, windows).max(axis=1, initial=0) >= 0.5 for sample, windows in zip(dataset, proposals)
    ]
    for k, name in enumerate(CLASSES):
        figures = result["classes"][name]
        highest = [row[2] for row in outcomes[k] if row[2] != "ignored"][: sum(figures["objects"].values())]
        assert figures["detections"] == {kind: highest.count(kind) for kind in ("correct", *KINDS)}
        assert sum(figures["objects"].values()) == sum(((s.labels == k) & ~s.difficult).sum() for s in dataset)
        assert figures["objects"]["found"] == figures["detections"]["correct"]
        confusions = [figures["detections"][kind] for kind in ("similar", "misclassified", "both")]
        assert sum(figures["confused_with"].values()) == sum(confusions)
    for error, row in result["errors"].items():
        repaired = evaluate_voc(*repair(dataset, detections, error, outcomes, covered))
        assert row["mAP"] == pytest.approx(repaired["mAP"]), error
        assert row["mAP_area"] == pytest.approx(repaired["mAP_area"]), error
        assert row["mAP"] >= result["mAP"] - 1e-9 and row["mAP_area"] >= result["mAP_area"] - 1e-9
        for name, value in repaired["AP"].items():
            assert result["classes"][name]["AP_without"][error] == pytest.approx(value)
    for total, row in result["totals"].items():
        repaired = evaluate_voc(*repair(dataset, detections, total, outcomes, covered))
        # A class of which no object is found has none left; its AP stays 0.
        classes = [name for name in CLASSES if sum(result["classes"][name]["objects"].values())]
        for mean, by_class in (("mAP", "AP"), ("mAP_area", "AP_area")):
            assert row[mean] == pytest.approx(np.mean([repaired[by_class][name] or 0 for name in classes])), total


def test_similar_classes_are_those_of_hoiem():
    names = ("aeroplane", "bird", "bus", "person", "chair", "sofa", "bottle", "platelets")
    similar = similar_classes(names)
    pairs = {(a, b) for a, row in zip(names, similar) for b, value in zip(names, row) if value}
    expected = {("aeroplane", "bird"), ("aeroplane", "bus"), ("bird", "person"), ("chair", "sofa")}
    assert pairs == expected | {(b, a) for a, b in expected}


def test_classes_without_known_groups_are_other_classes():
    classes = ("disc", "bar")
    sample = replace(image_of((COW, "car"), (SHEEP, "cow")), labels=np.array([0, 1]))
    detections = Detections(geometry.as_boxes([SHEEP]), np.array([0]), np.ones(1, np.float32), classes)
    result = diagnose(Dataset(classes, (sample,)), [detections], [NOTHING])
    assert "similar" not in result["errors"] and "similar" not in result["classes"]["disc"]["detections"]
    assert result["classes"]["disc"]["detections"]["misclassified"] == 1


def test_without_objects_and_without_detections():
    empty = diagnose(Dataset(CLASSES, (image_of(),)), [detections_of()], [NOTHING])
    assert empty["mAP"] is None and all(row["mAP"] is None for row in empty["errors"].values())
    blind = diagnose(Dataset(CLASSES, (FIELD,)), [detections_of()], [NOTHING])
    assert (
        blind["mAP"] == 0 and blind["errors"]["unproposed"]["mAP"] == 0 and blind["errors"]["unproposed"]["share"] == 1
    )
    json.dumps([empty, blind])


def lonely_objects(seed: int) -> tuple[Dataset, list[Detections]]:
    """Return objects far apart, with detections of all kinds on them and beside them; no class is similar to another.

    Where objects overlap, VOC's rule of matching differs from COCO's, which TIDE has.
    """
    rng, classes = np.random.default_rng(seed), ("disc", "bar", "ring")
    samples, detections = [], []
    for i in range(15):
        corner = np.array([[100 * x, 100 * y] for x in range(3) for y in range(2)])[rng.permutation(6)[: 1 + i % 6]]
        boxes = np.concatenate([corner, corner + rng.integers(20, 40, corner.shape)], axis=1).astype(np.float32)
        labels = rng.integers(0, 3, len(boxes))
        samples.append(Sample(f"p{i}", Path(f"p{i}.jpg"), 300, 200, boxes, labels, np.zeros(len(boxes), bool)))
        shift = rng.uniform(-1, 1, (4, len(boxes), 1, 2)) * rng.choice([2, 12, 40], (4, len(boxes), 1, 1))
        near = (boxes.reshape(1, -1, 2, 2) + shift).reshape(-1, 4)
        guessed = np.where(rng.random(len(near)) < 0.6, np.tile(labels, 4), rng.integers(0, 3, len(near)))
        order = rng.permutation(len(near))[: int(0.7 * len(near))]
        scores = np.sort(rng.random(len(order)))[::-1]
        detections.append(Detections(near[order], guessed[order], scores, classes))
    return Dataset(classes, tuple(samples)), detections


@pytest.mark.parametrize("seed", range(3))
def test_kinds_and_totals_are_those_of_tide(seed):
    """The real package, whose AP samples precision at 101 recalls."""
    tidecv = pytest.importorskip("tidecv", reason="TIDE's own figures: needs tidecv (docs/other-tools.md)")
    dataset, detections = lonely_objects(seed)
    truth, results = tidecv.Data("truth"), tidecv.Data("results")
    for i, (sample, entry) in enumerate(zip(dataset, detections)):
        for box, label in zip(geometry.to_xywh(sample.boxes).tolist(), sample.labels.tolist()):
            truth.add_ground_truth(i, label, box)
        for row in entry.to_coco(image_id=i):
            results.add_detection(i, row["category_id"] - 1, row["score"], row["bbox"])
    run = tidecv.TIDE().evaluate(truth, results)
    counts = {error.short_name: count for error, count in run.count_errors().items()}
    gains = {error.short_name: gain for error, gain in (run.fix_main_errors() | run.fix_special_errors()).items()}

    by_class = errors_by_class(dataset, detections, [NOTHING] * len(dataset))

    def mean_precision(error: str | None) -> float:
        """Return the mean over the classes of AP sampled at 101 recalls."""
        values = []
        for errors in by_class.values():
            correct, objects = errors.repaired(error)
            hits = np.cumsum(correct)
            recall, precision = hits / objects, hits / np.arange(1, len(hits) + 1)
            at_least = [precision[recall >= level / 100] for level in range(101)]
            values.append(np.mean([above.max(initial=0) for above in at_least]))
        return 100 * float(np.mean(values))

    names = {"Loc": "localisation", "Dupe": "duplicate", "Cls": "misclassified", "Both": "both", "Bkg": "background"}
    outcomes = np.concatenate([errors.outcome for errors in by_class.values()])
    assert {short: (outcomes == OUTCOMES.index(name)).sum() for short, name in names.items()} == {
        short: counts[short] for short in names
    }
    assert min(counts[short] for short in names) > 0
    now = mean_precision(None)
    assert now == pytest.approx(run.ap)
    # Cls and Loc are repaired in another way: TIDE gives an object to the one of the highest score of both together.
    names |= {"FalsePos": "false positives", "FalseNeg": "false negatives"}
    for short in ("Dupe", "Both", "Bkg", "FalsePos", "FalseNeg"):
        assert mean_precision(names[short]) - now == pytest.approx(gains[short]), short
