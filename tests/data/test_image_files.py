"""Image files that the arguments of a command name."""

from __future__ import annotations

import os

import pytest

from sppdet.data.image_files import find_images, passed_over
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


@pytest.mark.parametrize("pattern", ["d/**/*.PNG", "**/c.PNG", "d/**"])
def test_links_to_the_folder_itself_are_entered_once(tmp_path, pattern):
    for name in ("loop", "again", "e/up"):
        os.symlink(tmp_path / "d", tmp_path / "d" / name)
    assert "d/e/c.PNG" in find_images([pattern])


def test_links_to_other_folders_are_entered(tmp_path):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "x.jpg").touch()
    os.symlink(tmp_path / "else", tmp_path / "d" / "link")
    assert find_images(["d/**/*.jpg"]) == ["d/a.jpg", "d/link/x.jpg"]


def test_files_of_a_folder_that_are_no_images_are_counted(tmp_path):
    for name in ("a.heic", "b.HEIC", "README"):
        (tmp_path / "d" / name).touch()
    assert passed_over(["d", "d", "d/e", "f[1].png"]) == [
        "d: passed over 2 .heic, 1 .txt, 1 no suffix, 1 folder; name files, or a pattern such as 'd/**/*.jpg'"
    ]
