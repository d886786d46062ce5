"""Images in one folder per class: labels, and errors about folders of another layout."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sppdet.data.folders import read_folders
from sppdet.utils.errors import SppdetError


@pytest.fixture
def root(tmp_path):
    """Two images of ``bee``, one of them in a sub-folder; one of ``ant``; and files that are no images."""
    for name in ("bee/b.png", "bee/deep/a.jpg", "ant/c.JPG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(path)
    (tmp_path / "bee" / "._b.png").write_bytes(b"macOS")
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_classes_are_the_folders_sorted(root):
    images = read_folders(root)
    assert images.classes == ("ant", "bee") and len(images) == 3
    assert [path.name for path in images.paths] == ["c.JPG", "b.png", "a.jpg"]
    assert images.labels.dtype == np.int64 and images.labels.tolist() == [0, 1, 1]
    assert repr(images) == "LabelledImages(3 images, 2 classes)"


def test_classes_that_the_caller_names_fix_the_labels(root):
    images = read_folders(root, classes=("bee", "cat", "ant"))
    assert images.classes == ("bee", "cat", "ant") and images.labels.tolist() == [2, 0, 0]


def test_a_folder_of_another_class_is_refused(root):
    with pytest.raises(SppdetError, match=r"bee: class 'bee' is none of the 2 that were trained \(nearest: bees\)"):
        read_folders(root, classes=("ant", "bees"))


def test_folders_without_classes_or_images_are_refused(root):
    with pytest.raises(SppdetError, match=r"none: no such file.*lay images out as .*none/CLASS/\*\.jpg"):
        read_folders(root / "none")
    with pytest.raises(SppdetError, match=r"deep: holds no folder of a class; lay images out"):
        read_folders(root / "bee" / "deep")
    (root / "cat").mkdir()
    with pytest.raises(SppdetError, match=r"cat: no images \(\.avif, .*\); add some or remove the folder"):
        read_folders(root)


def test_unreadable_images_are_named_together(root):
    for i in range(12):
        (root / "ant" / f"x{i:02d}.jpg").write_bytes(b"" if i else b"no image")
    with pytest.raises(SppdetError) as caught:
        read_folders(root)
    lines = str(caught.value).splitlines()
    assert "ant/x00.jpg: is no image Pillow knows" in lines[0] and "ant/x01.jpg: is empty" in lines[1]
    assert len(lines) == 11 and lines[-1] == "and 2 more"


def test_truncated_images_are_all_named_at_once(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise.save(tmp_path / name)
    for name in ("a/2.jpg", "b/4.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 3])
    with pytest.raises(SppdetError) as caught:
        read_folders(tmp_path, workers=1)
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(tmp_path / "a" / "2.jpg"), str(tmp_path / "b" / "4.png")
    ]  # fmt: skip


def test_links_to_folders_are_followed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (5, 4)).save(elsewhere / "d.jpg")
    (root / "ant/more").symlink_to(elsewhere)
    (root / "ant/circle").symlink_to(root / "ant")
    assert [path.name for path in read_folders(root).paths] == ["c.JPG", "d.jpg", "b.png", "a.jpg"]
