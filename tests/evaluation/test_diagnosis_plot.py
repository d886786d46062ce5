"""The plot of a diagnosis: bars of the right length and order."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_data import ELSEWHERE, HERE, THERE, dataset_of, detections_of, image_of

from sppdet.evaluation.diagnosis import diagnose
from sppdet.evaluation.diagnosis_plot import _shortened, draw_diagnosis

NOTHING = np.zeros((0, 4), np.float32)
CLASSES = ("car", "cow", "sheep")


def bars(axes):
    """Return, by outcome, the length of the bar of each class."""
    return {bar.get_label(): [patch.get_width() for patch in bar] for bar in axes.containers}


@pytest.fixture
def plot():
    dataset = dataset_of(image_of("a", (HERE, 1), (THERE, 1), (ELSEWHERE, 2)), classes=CLASSES)
    detections = detections_of((HERE, 1, 3.0), (ELSEWHERE, 1, 2.0), (THERE, 1, 1.0))
    return draw_diagnosis(diagnose(dataset, [detections], [NOTHING]))


def test_bars_are_divided_as_the_counts_are(plot):
    # Rows: cow, then sheep; a car has no object. Of the cow's two detections one is right, one on a sheep.
    _, detections, objects = plot.axes
    assert [text.get_text() for text in objects.get_yticklabels()] == ["cow (2)", "sheep (1)"]
    assert {name: lengths for name, lengths in bars(detections).items() if any(lengths)} == {
        "correct": [50, 0],
        "similar": [50, 0],
    }
    assert {name: lengths for name, lengths in bars(objects).items() if any(lengths)} == {
        "found": [50, 0],
        "outranked": [50, 0],
        "unproposed": [0, 100],
    }


def test_gains_are_written_beside_their_bars(plot):
    gains = plot.axes[0]
    (bar,) = gains.containers
    names = [text.get_text() for text in gains.get_yticklabels()]
    assert bar[names.index("similar")].get_width() == pytest.approx(50 - 42.4, abs=0.05)
    assert "+7.6  (50% of detections)" in [text.get_text() for text in gains.texts]


def test_the_first_row_is_on_top_and_the_grid_behind_the_bars(plot):
    assert all(axes.yaxis_inverted() and axes.get_axisbelow() is True for axes in plot.axes)


def test_without_objects_the_plot_has_titles_alone(tmp_path):
    plot = draw_diagnosis(diagnose(dataset_of(image_of("a"), classes=CLASSES), [detections_of()], [NOTHING]))
    assert not any(axes.axison or axes.patches for axes in plot.axes)
    plot.savefig(tmp_path / "empty.png")


def test_names_are_no_formulas(tmp_path):
    dataset = dataset_of(image_of("a", (HERE, 1)), classes=("car", r"$\frac$"))
    draw_diagnosis(diagnose(dataset, [detections_of((HERE, 1, 3.0))], [NOTHING])).savefig(tmp_path / "plot.png")


def test_long_names_are_shortened():
    assert _shortened("x" * 20) == "x" * 20
    assert len(_shortened("x" * 21)) == 20
