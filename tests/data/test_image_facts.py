"""Facts about image files: size, orientation, whether they are whole."""

from __future__ import annotations

import pytest
from labelled import write_image
from PIL import Image

from sppdet.data.image_facts import ImageFacts, image_facts
from sppdet.data.problems import Problem


def test_facts_of_a_whole_image(tmp_path):
    path, problems = write_image(tmp_path / "a.jpg"), []
    facts = image_facts(path, problems, decode=True, digest=True)
    assert facts == ImageFacts((40, 30), 1, False, facts.digest) and len(facts.digest) == 16 and problems == []


def test_data_behind_the_end_of_a_jpeg_is_no_damage(tmp_path):
    path, problems = write_image(tmp_path / "a.jpg"), []
    path.write_bytes(path.read_bytes() + b"\0" * 10000)
    assert image_facts(path, problems) == ImageFacts((40, 30)) and problems == []


@pytest.mark.parametrize(
    ("suffix", "kind", "fatal"), [(".jpg", "truncated", False), (".png", "unreadable image", True)]
)
def test_files_that_are_cut_off(tmp_path, suffix, kind, fatal):
    path = write_image(tmp_path / f"a{suffix}", size=(40, 160))
    path.write_bytes(path.read_bytes()[:-300])
    problems: list[Problem] = []
    facts = image_facts(path, problems)
    assert [(problem.kind, problem.fatal) for problem in problems] == [(kind, fatal)]
    assert (facts is None) == fatal and (fatal or facts.truncated)


def test_damage_in_the_middle_is_found_by_decoding(tmp_path):
    path = write_image(tmp_path / "a.png", size=(100, 100))
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)
    path.write_bytes(content)
    problems: list[Problem] = []
    assert image_facts(path, problems) is not None and problems == []
    assert image_facts(path, problems, decode=True) is None and problems[0].kind == "unreadable image"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_with_more_pixels_than_are_read_at_once(tmp_path, monkeypatch, suffix):
    """They are whole, cut off, or damaged in the middle, which decoding finds."""
    pytest.importorskip("pyvips", reason="needs the extra large: pip install 'sppdet[large]'")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path, problems = write_image(tmp_path / f"a{suffix}", size=(100, 100)), []
    content = path.read_bytes()
    facts = image_facts(path, problems, decode=True, digest=True)
    assert facts == ImageFacts((100, 100), 1, False, facts.digest) and problems == []
    path.write_bytes(content[:-300])
    assert image_facts(path, problems) is None
    assert problems[0].message == f"{path}: is cut off at the end; copy it again" and problems[0].fatal
    if suffix == ".png":
        path.write_bytes(content[:5000] + bytes(100) + content[5100:])
        assert image_facts(path, problems) is not None and len(problems) == 1
        assert image_facts(path, problems, decode=True) is None and "cannot be read" in problems[1].message
