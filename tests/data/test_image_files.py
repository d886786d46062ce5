"""Image files that the arguments of a command name."""

from __future__ import annotations

import pytest

from sppdet.data.image_files import find_images
from sppdet.utils.errors import SppdetError


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """A folder of images and other files, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("d/b.png", "d/a.jpg", "d/._a.jpg", "d/notes.txt", "d/e/c.PNG", "f[1].png", "none/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        (["d"], ["d/a.jpg", "d/b.png"]),  # neither hidden files nor sub-folders
        (["d/*.png"], ["d/b.png"]),
        (["d/**/*.[pP][nN][gG]"], ["d/b.png", "d/e/c.PNG"]),
        (["f[1].png"], ["f[1].png"]),  # a file that looks like a pattern
        (["d/notes.txt"], ["d/notes.txt"]),  # whatever the suffix
        (["d/e", "d", "d/e/c.PNG"], ["d/e/c.PNG", "d/a.jpg", "d/b.png"]),
        (["d/*.png", "d"], ["d/b.png", "d/a.jpg"]),  # each file once
        (["d/b.png", "./d/b.png"], ["d/b.png"]),
        ([], []),
    ],
)
def test_arguments_name_files_folders_and_patterns(arguments, images):
    assert find_images(arguments) == images


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("x.jpg", r"^x\.jpg: no such image or folder; check the path$"),
        ("x*.jpg", r"^x\*\.jpg: no image matches this pattern; check the path$"),
        ("none", r"^none: no images in this folder \(\.avif, .*\); give a folder that has some$"),
        ("", "^'': no such image or folder"),
    ],
)
def test_arguments_without_images_are_named(argument, message):
    with pytest.raises(SppdetError, match=message):
        find_images(["d", argument])
