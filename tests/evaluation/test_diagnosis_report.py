"""The tables of a diagnosis."""

from __future__ import annotations

import numpy as np
from evaluation_data import ELSEWHERE, HERE, THERE, dataset_of, detections_of, image_of

from sppdet.evaluation.diagnosis import diagnose
from sppdet.evaluation.diagnosis_report import report_markdown, report_text

NOTHING = np.zeros((0, 4), np.float32)
CLASSES = ("car", "cow", "sheep")


def test_the_report_has_the_figures_of_the_diagnosis():
    dataset = dataset_of(image_of("a", (HERE, 1), (THERE, 1), (ELSEWHERE, 2)), classes=CLASSES)
    detections = detections_of((HERE, 1, 3.0), (ELSEWHERE, 1, 2.0), (THERE, 1, 1.0))
    lines = report_markdown(diagnose(dataset, [detections], [NOTHING])).splitlines()
    # Cows: right, on a sheep, right: AP (6 + 5 * 2/3) / 11, and 1 without the confusion.
    assert lines[0].startswith("1 images, mAP 42.4 (11-point, IoU 0.5)")
    (row,) = [line for line in lines if line.startswith("| similar |")]
    assert "| 50.0% of detections | 50.0 | +7.6 |" in row
    assert "| cow | 84.8 | 1 | 0 | 0 | 1 | 0 | 0 | 0 | sheep 1 |" in lines
    assert "| cow | 2 | 1 | 1 | 0 | 0 |" in lines
    assert "| cow | +0.0 | +0.0 | +15.2 | +0.0 | +0.0 | +0.0 | +0.0 | +0.0 | +0.0 |" in lines
    # Of three objects the sheep alone is found by nothing; its class stays at 0.
    assert "| false positives | all wrong detections |  | 50.0 | +7.6 |  |" in lines
    assert "| false negatives | all objects that no detection finds |  | 42.4 | +0.0 |  |" in lines


def test_a_class_without_objects_has_no_figures():
    report = report_markdown(diagnose(dataset_of(image_of("a"), classes=CLASSES), [detections_of()], [NOTHING]))
    assert report.startswith("1 images, mAP - (11-point")
    assert "| cow | - | 0 | 0 | 0 | 0 | 0 | 0 | 0 |  |" in report.splitlines()


def test_classes_without_similar_ones_have_no_such_column():
    dataset = dataset_of(image_of("a", (HERE, 0)), classes=("disc", "bar"))
    assert "similar" not in report_markdown(diagnose(dataset, [detections_of()], [NOTHING]))


def test_the_text_has_the_dearest_error_first():
    dataset = dataset_of(image_of("a", (HERE, 1), (THERE, 1), (ELSEWHERE, 2)), classes=CLASSES)
    detections = detections_of((HERE, 1, 3.0), (ELSEWHERE, 1, 2.0), (THERE, 1, 1.0))
    lines = report_text(diagnose(dataset, [detections], [NOTHING])).splitlines()
    assert lines[0] == "1 images, mAP 42.4 (11-point, IoU 0.5)"
    assert lines[3].split()[:2] == ["similar", "+7.6"]
    assert "50.0% of detections better features" in lines[3]
    assert "false positives    +7.6  all wrong detections" in lines


def test_the_text_without_objects():
    text = report_text(diagnose(dataset_of(image_of("a"), classes=CLASSES), [detections_of()], [NOTHING]))
    assert text.startswith("1 images, mAP - (11-point")
