"""The plot of a diagnosis: bars of the right colour and length."""

from __future__ import annotations

import numpy as np
from evaluation_data import ELSEWHERE, HERE, THERE, dataset_of, detections_of, image_of
from PIL import Image, ImageColor

from sppdet.evaluation.diagnosis import diagnose
from sppdet.evaluation.diagnosis_plot import _BAR, _COLOURS, _GAP, _NAMES, _ROW, _TOP, _WIDTH, draw_diagnosis

NOTHING = np.zeros((0, 4), np.float32)
CLASSES = ("car", "cow", "sheep")


def bar_colours(plot: Image.Image, panel: int, row: int) -> dict[str, int]:
    """Count the pixels of each colour in the middle of a row's bar."""
    left = _GAP + panel * (_NAMES + _WIDTH + _GAP) + _NAMES
    middle = _TOP + row * _ROW + _ROW // 2
    pixels = [plot.getpixel((x, middle)) for x in range(left, left + _WIDTH)]
    names = {ImageColor.getrgb(colour): name for name, colour in _COLOURS.items() if name not in ("found", "outranked")}
    names[ImageColor.getrgb(_COLOURS["outranked"])] = "outranked"
    return {names[pixel]: pixels.count(pixel) for pixel in dict.fromkeys(pixels)}


def test_bars_are_divided_as_the_counts_are():
    dataset = dataset_of(image_of("a", (HERE, 1), (THERE, 1), (ELSEWHERE, 2)), classes=CLASSES)
    detections = detections_of((HERE, 1, 3.0), (ELSEWHERE, 1, 2.0), (THERE, 1, 1.0))
    plot = draw_diagnosis(diagnose(dataset, [detections], [NOTHING]))
    # Rows: cow, then sheep; a car has no object. Of the cow's two detections one is right, one on a sheep.
    for panel, halves in ((1, {"correct", "similar"}), (2, {"correct", "outranked"})):  # found is drawn as correct
        counts = bar_colours(plot, panel, 0)
        assert set(counts) == halves
        assert all(abs(count - _WIDTH / 2) <= 1 for count in counts.values())
    assert set(bar_colours(plot, 2, 1)) == {"unproposed"}


def test_without_objects_the_plot_has_titles_alone():
    plot = draw_diagnosis(diagnose(dataset_of(image_of("a"), classes=CLASSES), [detections_of()], [NOTHING]))
    assert np.asarray(plot)[_TOP - _BAR :].min() == 255
