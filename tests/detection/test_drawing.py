"""Drawing: frames inside their boxes, labels inside the image, and odd boxes, names and images."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from sppdet.detection import drawing
from sppdet.detection.detections import Detections
from sppdet.detection.drawing import class_colour, draw_detections, text_colour


def detected(*rows, classes=("cat", "dog")):
    """Return detections from (box, label, score) rows."""
    boxes, labels, scores = zip(*rows) if rows else ([], [], [])
    return Detections(boxes, labels, scores, classes)


def grey(width, height):
    return np.full((height, width, 3), 128, np.uint8)


def has_colour(image, label):
    """Return ``(H, W)`` bool: the pixels with the colour of a class."""
    return (image == class_colour(label)).all(axis=2)


def has_ink(image, label):
    """Return ``(H, W)`` bool: the letters in a grey image with one detection; their edges are blends."""
    return ~has_colour(image, label) & (image != 128).any(axis=2)


def test_no_detections_leave_the_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    drawn = draw_detections(image, detected())
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image and drawn.flags.writeable


def test_the_image_itself_is_left_as_it_is():
    image = grey(100, 80)
    drawn = draw_detections(image, detected(((10, 40, 60, 70), 0, 0.5)))
    assert (image == 128).all()
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (drawn != 128).any()


def test_a_frame_is_the_outermost_ring_of_pixels_of_its_box():
    # 100 x 100: lines of one pixel. The lower half of the box is clear of its label.
    drawn = draw_detections(grey(100, 100), detected(((20, 30, 70, 90), 1, 0.5)))
    frame = has_colour(drawn, 1)
    assert frame[60:90, 20].all() and frame[60:90, 69].all() and frame[89, 20:70].all()
    assert (drawn[60:89, 21:69] == 128).all()
    assert (drawn[30:, :20] == 128).all() and (drawn[90:] == 128).all()


def test_a_label_lies_above_its_box_in_the_colour_of_the_class():
    drawn = draw_detections(grey(200, 100), detected(((20, 50, 190, 90), 1, 0.5)))
    above = has_colour(drawn, 1)[:50]
    assert above[49, 20] and above.sum() > 200
    assert has_ink(drawn, 1)[:50].any() and not has_ink(drawn, 1)[50:].any()


@pytest.mark.parametrize("box", [(0, 0, 300, 200), (299, 0, 300, 200), (0, 199, 300, 200), (280, 180, 300, 200)])
def test_a_label_stays_inside_the_image(box):
    """No letter is cut: there are as many pixels of letters as in the middle of the image."""

    def ink(box):
        drawn = draw_detections(grey(300, 200), detected((box, 0, 0.5)))
        return has_ink(drawn, 0).sum()

    assert ink(box) == ink((100, 100, 101, 101)) > 0


def test_lines_and_letters_grow_with_the_image():
    def thickness(width, height):
        box = (0.2 * width, 0.3 * height, 0.8 * width, 0.9 * height)
        drawn = has_colour(draw_detections(grey(width, height), detected((box, 0, 0.5))), 0)
        return drawn[int(0.8 * height), : width // 2].sum()

    assert [thickness(100, 100), thickness(500, 500), thickness(1000, 1000)] == [1, 2, 5]


def test_the_best_detection_is_on_top():
    drawn = draw_detections(grey(100, 100), detected(((20, 30, 70, 90), 1, 0.9), ((20, 30, 70, 90), 0, 0.1)))
    assert has_colour(drawn, 1)[60:90, 20].all()


def test_labels_of_equal_boxes_do_not_hide_each_other():
    box = (20, 60, 180, 160)
    one = has_colour(draw_detections(grey(200, 200), detected((box, 0, 0.1))), 0)
    both = draw_detections(grey(200, 200), detected((box, 1, 0.9), (box, 0, 0.1)))
    # The frame of class 1 covers that of class 0, which leaves the background of its label.
    frame = 2 * (160 + 100) - 4
    assert has_colour(both, 0).sum() > 0.8 * (one.sum() - frame) > 0


@pytest.mark.parametrize("name", ["", "日本語", "🐶", "a\nb\x00c", "\ud800", "עברית", "é" * 500])
def test_any_class_name_can_be_drawn(name):
    drawn = draw_detections(grey(120, 90), detected(((20, 40, 70, 80), 0, 0.5), classes=(name,)))
    assert has_colour(drawn, 0)[70, 20]


def test_a_long_name_is_shortened_and_the_score_stays():
    # The same letters fill the image's width whether the name is long or very long.
    row = ((20, 40, 70, 80), 0, 0.5)
    long, longer = (draw_detections(grey(120, 90), detected(row, classes=("w" * n,))) for n in (60, 90))
    np.testing.assert_array_equal(long, longer)
    other = draw_detections(grey(120, 90), detected(((20, 40, 70, 80), 0, 0.9), classes=("w" * 60,)))
    assert (long != other).any()


def test_classes_without_names_are_numbered():
    row = ((20, 40, 70, 80), 1, 0.5)
    np.testing.assert_array_equal(
        draw_detections(grey(120, 90), detected(row, classes=())),
        draw_detections(grey(120, 90), detected(row, classes=("0", "1"))),
    )


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 500), (2, 3)])
def test_images_smaller_than_a_label(size):
    width, height = size
    drawn = draw_detections(grey(width, height), detected(((0, 0, width, height), 0, 0.5)))
    assert drawn.shape == (height, width, 3) and (drawn != 128).any()


@pytest.mark.parametrize("box", [(10, 10, 10, 10), (-50, -50, 400, 400), (99.6, 0, 99.8, 100), (30, 30, 31, 90)])
def test_odd_boxes(box):
    drawn = draw_detections(grey(100, 100), detected((box, 0, 0.5)))
    assert has_colour(drawn, 0).any()


def test_a_thin_box_stays_thin():
    """Lines are five pixels wide in an image of 1000 x 1000, this box is two."""
    drawn = has_colour(draw_detections(grey(1000, 1000), detected(((500, 300, 502, 900), 0, 0.5))), 0)
    assert drawn[600].sum() == 2


def test_twenty_classes_have_colours_that_can_be_told_apart():
    colours = np.array([class_colour(label) for label in range(20)], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert distances[~np.eye(20, dtype=bool)].min() > 40


def test_text_can_be_read_on_every_colour():
    def luminance(rgb):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for label in range(300):
        low, high = sorted([luminance(class_colour(label)), luminance(text_colour(class_colour(label)))])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_without_labels_frames_alone_are_drawn():
    drawn = draw_detections(grey(200, 100), detected(((20, 50, 190, 90), 1, 0.5)), labels=False)
    assert (drawn[:50] == 128).all() and has_colour(drawn, 1)[60:90, 20].all()


def test_a_label_avoids_other_objects():
    # Above the lower box lies the upper one, of a lower score: the label goes below.
    boxes = [((20, 60, 100, 100), 1, 0.9), ((20, 20, 100, 58), 0, 0.1)]
    drawn = draw_detections(grey(200, 200), detected(*boxes))
    assert has_colour(drawn, 1)[101:115, 20:60].sum() > 200


def test_labels_of_small_objects_are_small():
    def height(side):
        box = (300, 300, 300 + side, 300 + side)
        return has_colour(draw_detections(grey(1000, 1000), detected((box, 0, 0.5))), 0)[:300].any(axis=1).sum()

    assert height(30) < height(300) / 2


def test_the_first_classes_have_hues_that_are_far_apart():
    hues = np.sort([360 * colorsys.rgb_to_hsv(*np.array(class_colour(label)) / 255)[0] for label in range(8)])
    assert np.diff(hues, append=hues[0] + 360).min() > 20


class TestLettersOfOtherScripts:
    """A label never shows the empty box of a letter that the font lacks."""

    @pytest.fixture(autouse=True)
    def nothing_remembered(self):
        for function in (drawing._font_file, drawing._in_ascii):
            function.cache_clear()
        yield
        for function in (drawing._font_file, drawing._in_ascii):
            function.cache_clear()

    @pytest.mark.parametrize("name", ["собака", "γάτα", "قط", "猫", "straße"])
    def test_different_names_look_different(self, name):
        """Of two names of as many letters, the empty boxes would be equal."""
        other = "".join(chr(ord(letter) + 1) for letter in name)
        drawn = [
            draw_detections(grey(200, 60), detected(([20, 20, 90, 50], 0, 0.5), classes=(n,))) for n in (name, other)
        ]
        assert (drawn[0] != drawn[1]).any()

    def test_without_a_font_the_label_is_ascii_and_that_is_said_once(self, monkeypatch, caplog):
        monkeypatch.setattr(drawing, "_font_files", tuple)
        for _ in range(2):
            assert drawing._drawable("猫") == "\\u732b" and drawing._drawable("Ősz") == "Osz"
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "no font of this machine draws '猫'", "no font of this machine draws 'Ősz'"
        ]  # fmt: skip
        assert drawing._drawable("cat…") == "cat…"
