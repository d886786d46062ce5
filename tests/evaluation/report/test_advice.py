"""What a report recommends: each sentence appears where its figures call for it, and only there."""

from __future__ import annotations

import pytest

from sppdet.evaluation.report.advice import ClassFigures, advise

CALM = {
    "classes": [ClassFigures(name, 300, 100, ap) for name, ap in (("cat", 80.0), ("dog", 82.0), ("cow", 81.0))],
    "images": 200,
    "mean_range": (79.0, 83.0),
    "gains": {"localisation": 1.0, "background": 0.5},
    "confusions": [("dog", "cat", 9)],
    "proposal_recall": 0.98,
    "label_suspects": 0,
    "shared_images": 0,
    "best_threshold": "-0.20",
}  # fmt: skip


def test_a_good_run_is_only_told_its_threshold():
    (sentence,) = advise(**CALM)
    assert "`sppdet detect --margin -0.20`" in sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shared_images": 1}, "1 test image is also used for training: every figure here is too high."),
        ({"label_suspects": 7}, "Look at “Labels to check” first: 7 places"),
        ({"mean_range": (60.0, 80.0)}, "mAP could as well be 60 or 80. Differences of less than about 10 points"),
        ({"proposal_recall": 0.8}, "20% of the test objects have no proposal that covers them by half"),
        ({"gains": {"localisation": 4.0}}, "Badly placed boxes cost 4.0 points of mAP."),
        (
            {"gains": {"misclassified": 3.0}},
            "taken for each other cost 3.0 points of mAP (most often dog for cat 9 times).",
        ),
        (
            {"classes": [*CALM["classes"], ClassFigures("sheep", 20, 1, 100.0)]},
            "The AP of 1 class rests on fewer than 10 test objects and says little: sheep (1).",
        ),
        (
            {"classes": [*CALM["classes"], ClassFigures("sheep", 20, 30, 40.0)]},
            "Label more images of the classes that are weak and rare in training: sheep (AP 40, 20 training objects).",
        ),
    ],
)
def test_each_figure_that_calls_for_something_has_its_sentence(change, sentence):
    sentences = advise(**CALM | change)
    assert len(sentences) == 2 and sentence in sentences[0]


def test_a_class_that_is_weak_with_many_objects_is_not_called_rare():
    assert len(advise(**CALM | {"classes": [*CALM["classes"], ClassFigures("sheep", 900, 30, 40.0)]})) == 1


def test_a_detector_that_finds_nothing_gets_one_sentence():
    (sentence,) = advise(**CALM | {"best_threshold": None})
    assert sentence.startswith("No test object was found.")
