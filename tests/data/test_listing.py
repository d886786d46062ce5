"""Which image an annotation means, and which split a path is in."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelled import write

from sppdet.data.listing import Listing, read_text, start_of
from sppdet.utils.errors import SppdetError


def listing(*images: str) -> Listing:
    return Listing(Path("d"), tuple(Path("d", name) for name in images), ())


@pytest.mark.parametrize(
    ("name", "annotation", "image"),
    [
        ("a.jpg", "x.json", "images/a.jpg"),
        ("C:\\work\\images\\a.jpg", "x.json", "images/a.jpg"),
        ("../../etc/passwd", "x.json", None),
        ("train/b.jpg", "x.json", "train/b.jpg"),
        ("b.jpg", "test/x.json", "test/b.jpg"),
        ("", "x.json", None),
    ],
)
def test_the_best_image_of_a_name(name, annotation, image):
    images = listing("images/a.jpg", "train/b.jpg", "test/b.jpg")
    assert images.named(name, Path("d", annotation)) == (image and Path("d", image))


def test_images_that_fit_equally_well_are_named():
    with pytest.raises(SppdetError, match=r"d/x\.json: may belong to p/b\.jpg and q/b\.jpg; rename or remove one"):
        listing("p/b.jpg", "q/b.jpg").named("b.jpg", Path("d/x.json"))


def test_labels_lie_beside_images_in_a_folder_of_their_own():
    images = listing("p/images/b.jpg", "q/images/b.jpg")
    assert images.of_stem("b", Path("d/q/labels/b.txt")) == Path("d/q/images/b.jpg")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/images/a.jpg", "train"), ("images/val2017/a.jpg", "val"), ("Validation/a.xml", "val"),
        ("instances_test.json", "test"), ("images/train_01.jpg", None), ("testimony/a.jpg", None),
        ("train_labels.csv", "train"), ("a.json", None), ("obj_Validation_data/a.jpg", "val"), ("obj_data/a.jpg", None),
    ],
)  # fmt: skip
def test_the_split_that_a_path_names(path, split):
    assert listing().split_of(Path("d", path)) == split


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for name in ("a.jpg", ".b.jpg", ".git/c.jpg", "__MACOSX/d.jpg", "sub/e.JPG", "sppdet-splits.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = Listing.of(tmp_path)
    assert [path.name for path in found.images] == ["a.jpg", "e.JPG"] and found.others == ()


def test_links_to_folders_are_followed_once_each_and_not_round_in_a_circle(tmp_path):
    for name in ("else/x.jpg", "d/b/a.jpg"):
        write(tmp_path / name, "")
    root = tmp_path / "d"
    links = {"link": tmp_path / "else", "again": tmp_path / "else", "a": root / "b", "self": root, "up": tmp_path}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (tmp_path / "else/back").symlink_to(root)
    names = [str(path.relative_to(root)) for path in Listing.of(root).images]
    assert names == ["b/a.jpg", "again/x.jpg"]  # the real folder in place of links to it; one link of two


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_with_a_byte_order_mark_is_decoded(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("caf\u00e9", encoding=encoding)
    assert read_text(tmp_path / "a.txt") == start_of(tmp_path / "a.txt") == "caf\u00e9"
