"""Images in a folder a class: labels, and what is told about folders that are not so."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sppdet.data.folders import read_folders
from sppdet.utils.errors import SppdetError


@pytest.fixture
def root(tmp_path):
    """Two images of ``bee``, one of them deeper and one hidden; one of ``ant``."""
    for name in ("bee/b.png", "bee/deep/a.jpg", "ant/c.JPG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(path)
    (tmp_path / "bee" / "._b.png").write_bytes(b"a Mac's")
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_classes_are_the_folders_in_order(root):
    found = read_folders(root)
    assert found.classes == ("ant", "bee") and len(found) == 3
    assert [path.name for path in found.paths] == ["c.JPG", "b.png", "a.jpg"]
    np.testing.assert_array_equal(found.labels, [0, 1, 1])


def test_classes_given_fix_the_labels(root):
    found = read_folders(root, classes=("bee", "cat", "ant"))
    assert found.classes == ("bee", "cat", "ant") and found.labels.tolist() == [2, 0, 0]


def test_a_class_that_was_not_trained(root):
    with pytest.raises(SppdetError, match=r"bee: class 'bee' is none of the 2 that were trained \(nearest: bees\)"):
        read_folders(root, classes=("ant", "bees"))


def test_what_is_no_folder_of_classes(root, tmp_path):
    with pytest.raises(SppdetError, match=r"none: no such file.*lay images out as .*none/CLASS/\*\.jpg"):
        read_folders(root / "none")
    with pytest.raises(SppdetError, match=r"deep: holds no folder of a class; lay images out"):
        read_folders(root / "bee" / "deep")
    (root / "cat").mkdir()
    with pytest.raises(SppdetError, match=r"cat: no images \(\.avif, .*\); add some or remove the folder"):
        read_folders(root)


def test_images_that_cannot_be_read_are_named_together(root):
    for i in range(12):
        (root / "ant" / f"x{i:02d}.jpg").write_bytes(b"" if i else b"no image")
    with pytest.raises(SppdetError) as caught:
        read_folders(root)
    lines = str(caught.value).splitlines()
    assert "ant/x00.jpg: is no image Pillow knows" in lines[0] and "ant/x01.jpg: is empty" in lines[1]
    assert len(lines) == 11 and lines[-1] == "and 2 more"
