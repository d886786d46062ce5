"""The names of the files that images are drawn into; `test_detect.py` has what must not be overwritten."""

from __future__ import annotations

import os

from sppdet.cli.drawings import output_paths


def test_equal_stems_are_numbered_around_names_that_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = ["p/a.jpg", "q/a.png", "a-2.jpg", "p/A.tif", "b.jpg"]  # `A` is `a` on some file systems
    for name in images:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.name for path in output_paths(images, tmp_path / "new")]
    assert names == ["a.jpg", "a-3.jpg", "a-2.jpg", "A-4.jpg", "b.jpg"]


def test_long_names_are_shortened(tmp_path):
    a, b = (output_paths([f"{'ü' * 120}{letter}.png"], tmp_path)[0] for letter in "ab")
    assert a != b and len(os.fsencode(a.name)) <= 210
