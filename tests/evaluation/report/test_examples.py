"""Which detections and objects a report shows: one case of each kind in a made-up data set."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_data import ELSEWHERE, HERE, THERE, dataset_of, detections_of, image_of

from sppdet.evaluation.diagnosis import errors_by_class
from sppdet.evaluation.report.examples import choose_examples, perhaps_missed
from sppdet.evaluation.report.figures import count_at_thresholds


def groups_of(dataset, detections) -> dict[str, list[tuple[str, str, str]]]:
    """Return from the title of a group to (image, focus, text) of its examples."""
    errors = errors_by_class(dataset, detections, [sample.boxes for sample in dataset])
    suspects, mistakes = choose_examples(dataset, detections, errors, count_at_thresholds(dataset, detections))
    return {
        group.title: [(dataset[e.image].id, e.focus.text, e.text) for e in group.examples]
        for group in (*suspects, *mistakes)
    }


# Eight cats and two dogs that are found tell what a usual score is.
KNOWN = [image_of(f"known {i}", (HERE, 0), (THERE, 1)) for i in range(8)]
FOUND = [detections_of((HERE, 0, 1.0 + i / 100), (THERE, 1, 1.0 + i / 100)) for i in range(8)]
UNLABELLED = "Perhaps an object without a label"
WRONG_CLASS = "Perhaps the wrong class"
UNTOUCHED = "Labels without a detection"


@pytest.mark.parametrize(
    ("image", "detections", "title", "example"),
    [
        (image_of("x"), [(HERE, 0, 2.0)], UNLABELLED, ("cat 2.00", "no label there (IoU below 0.1)")),
        (image_of("x", (HERE, 1)), [(HERE, 0, 2.0)], WRONG_CLASS, ("dog", "detected as cat 2.00")),
        (image_of("x", (HERE, 0)), [], UNTOUCHED, ("cat", "no detection")),
        (image_of("x", ((0, 0, 4, 4), 0)), [], "Missed objects", ("cat", "no detection")),
        (
            image_of("x", (HERE, 0)), [(HERE, 0, 2.0), ((0, 0, 10, 4), 0, 1.5)], "Surest false alarms",
            ("cat 1.50", "badly placed on cat (IoU 0.40)"),
        ),
        (
            image_of("x", (HERE, 0)), [(HERE, 0, 2.0), ((0, 0, 10, 9), 0, 1.5)], "Surest false alarms",
            ("cat 1.50", "a second box on cat (IoU 0.90)"),
        ),
        (
            image_of("x", (HERE, 0)), [(HERE, 0, 2.0), ((0, 0, 10, 9), 1, 1.5)], "Surest false alarms",
            ("dog 1.50", "on cat (IoU 0.90)"),
        ),
    ],
)  # fmt: skip
def test_each_kind_of_contradiction_is_shown_once(image, detections, title, example):
    groups = groups_of(dataset_of(*KNOWN, image), [*FOUND, detections_of(*detections)])
    assert groups.pop(title) == [("x", *example)]
    assert not any(groups.values())


def test_a_box_around_a_group_is_no_missing_label():
    group = image_of("x", *(((x, 0, x + 2, 2), 0) for x in range(0, 40, 10)))
    groups = groups_of(dataset_of(*KNOWN, group), [*FOUND, detections_of(((0, 0, 40, 40), 0, 2.0))])
    assert groups[UNLABELLED] == [] and groups["Surest false alarms"][0][:2] == ("x", "cat 2.00")


def test_difficult_objects_are_never_missed():
    groups = groups_of(dataset_of(*KNOWN, image_of("x", (ELSEWHERE, 0, True))), [*FOUND, detections_of()])
    assert not any(groups.values())


def test_one_class_does_not_take_the_whole_group():
    boxes = [(x, 100, x + 10, 110) for x in range(0, 400, 20)]
    rows = [(box, int(i >= 18), 5.0 - i / 10) for i, box in enumerate(boxes)]
    dataset = dataset_of(*KNOWN, image_of("x"), classes=("cat", "dog", *"abcd"))
    shown = groups_of(dataset, [*FOUND, detections_of(*rows)])[UNLABELLED]
    assert [name for _, name, _ in shown] == [f"cat {5 - i / 10:.2f}" for i in range(4)] + ["dog 3.20", "dog 3.10"]


def test_without_detections_or_objects_there_is_nothing_to_show():
    assert not any(groups_of(dataset_of(image_of("x")), [detections_of()]).values())
    assert np.all([len(v) == 0 for v in groups_of(dataset_of(), []).values()])


def test_what_the_labels_of_training_images_perhaps_miss_comes_as_it_was_listed():
    dataset = dataset_of(image_of("a", (HERE, 0)), image_of("b"))
    entries = [{"image": "b", "class": "dog", "box": [*ELSEWHERE], "margin": 1.5}]
    entries += [{"image": "a", "class": "cat", "box": [*THERE], "margin": 1.0}] * 20
    entries += [{"image": "gone", "class": "dog", "box": [*THERE], "margin": 0.9}]
    group = perhaps_missed(dataset, entries)
    assert group.count == 22 and len(group.examples) == 12
    first, second = group.examples[:2]
    assert (first.image, first.focus.text, first.focus.box.tolist()) == (1, "dog 1.50", [*ELSEWHERE])
    assert (second.image, second.focus.text, [other.text for other in second.others]) == (0, "cat 1.00", ["cat"])
