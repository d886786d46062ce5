"""Splits of a folder, and of the data set that a configuration names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from labelled import voc_xml, write, write_image
from PIL import Image

from sppdet.config import Config, override
from sppdet.data import large_images, splits
from sppdet.data.labelled_folder import read_folder
from sppdet.data.shapes import CLASSES
from sppdet.data.splits import divide, fold_folder, load_folds, load_split, read_dataset, split_folder
from sppdet.data.voc import read_voc
from sppdet.utils.errors import SppdetError


def config_of(**values) -> Config:
    """Return a configuration with other values: ``config_of(data__root="x")`` sets ``data.root``."""
    return override(Config(), [f"{key.replace('__', '.')}={value}" for key, value in values.items()])


def ids(data) -> list[str]:
    return [sample.id for sample in data]


def test_read_dataset_reads_trainval_by_default(shapes_root):
    data = read_dataset(shapes_root)
    assert repr(data).startswith("Dataset(12 images, 6 classes, ")
    assert ids(data) == [f"train_{i:05d}" for i in range(12)]
    np.testing.assert_array_equal(data[3].boxes, read_voc(shapes_root, "trainval")[3].boxes)


def test_read_dataset_takes_split_classes_and_limit(shapes_root):
    data = read_dataset(shapes_root, "test", classes=CLASSES[::-1], limit=2)
    assert ids(data) == ["test_00000", "test_00001"]
    assert data.classes == CLASSES[::-1]
    sorted_labels = read_dataset(shapes_root, "test", classes=CLASSES, limit=1)[0].labels
    np.testing.assert_array_equal(data[0].labels, len(CLASSES) - 1 - sorted_labels)


def test_load_split_reads_the_configured_folder(shapes_root):
    config = config_of(data__root=shapes_root, data__classes="[star,circle,cross,ring,square,triangle]")
    assert load_split(config, "test").classes == ("star", "circle", "cross", "ring", "square", "triangle")
    assert load_split(config, "test", classes=CLASSES).classes == CLASSES
    assert ids(load_split(config, "trainval", limit=2)) == ["train_00000", "train_00001"]


def test_shapes_are_drawn_in_the_cache(tmp_path, shapes_root, monkeypatch):
    drawn = []
    monkeypatch.setattr(splits, "make_shapes", lambda root: drawn.append(root) or shapes_root)
    monkeypatch.chdir(tmp_path)
    assert len(load_split(config_of(data__root="shapes", run__cache="here"), "test")) == 6
    assert drawn == [Path("here/shapes")]


def test_a_folder_with_the_name_of_the_synthetic_set_is_warned_of(tmp_path, shapes_root, monkeypatch):
    monkeypatch.setattr(splits, "make_shapes", lambda root: shapes_root)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    with pytest.warns(UserWarning, match=r"data\.root=shapes names the synthetic data set; give data\.root=\./shapes"):
        load_split(config_of(data__root="shapes"), "trainval")


def test_a_missing_folder_is_named_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SppdetError, match=rf"data\.root: there is no folder mine in {tmp_path}; give data\.root=FOLDER"
    ):
        load_split(config_of(data__root="mine"), "trainval")


def add_images(root: Path, count: int, start: int = 0) -> None:
    """Add images of cats, each fourth one with a dog instead, with XML beside them."""
    for seed in range(start, start + count):
        write_image(root / f"{seed:03d}.jpg", seed=seed)
        box = ("dog" if seed % 4 == 0 else "cat", 11, 6, 20, 15)
        write(root / f"{seed:03d}.xml", voc_xml(box, filename=f"{seed:03d}.jpg"))


def test_a_folder_without_splits_gets_one_that_later_images_do_not_change(tmp_path):
    root = tmp_path / "images"
    add_images(root, 20)
    config = config_of(data__root=root, run__cache=tmp_path / "cache")
    train, test = load_split(config, "trainval"), load_split(config, "test")
    assert (len(train), len(test)) == (16, 4) and not set(ids(train)) & set(ids(test))
    assert sorted(test.classes[label] for sample in test for label in sample.labels) == ["cat", "cat", "cat", "dog"]
    add_images(root, 20, start=20)
    more = load_split(config_of(data__root=root, run__seed=9), "test")
    assert set(ids(test)) < set(ids(more)) and len(more) == 8
    (root / "000.jpg").rename(root / "renamed.jpg")
    (root / "000.xml").rename(root / "renamed.xml")
    now = load_split(config, "test")
    assert {name.replace("renamed", "000") for name in ids(now)} == set(ids(more))


def test_images_of_one_content_are_in_one_split(tmp_path):
    add_images(tmp_path, 12)
    for seed in range(12):
        (tmp_path / f"copy{seed:03d}.jpg").write_bytes((tmp_path / f"{seed:03d}.jpg").read_bytes())
        (tmp_path / f"copy{seed:03d}.xml").write_bytes((tmp_path / f"{seed:03d}.xml").read_bytes())
    parts = split_folder(read_folder(tmp_path), 0.3)
    for images in parts.values():
        names = {image.path.stem for image in images}
        assert {name for name in names if not name.startswith("copy")} == {name[4:] for name in names if "copy" in name}


def test_a_read_only_folder_keeps_its_split_in_the_cache(tmp_path, monkeypatch):
    add_images(tmp_path / "images", 10)
    folder, stored = read_folder(tmp_path / "images"), []

    def write_json(path: Path, content: dict) -> None:
        if "cache" not in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
        stored.append(path)

    monkeypatch.setattr(splits, "write_json", write_json)
    first = split_folder(folder, cache=tmp_path / "cache")
    second = split_folder(folder, seed=99, cache=tmp_path / "cache")
    assert len(stored) == 1 and [i.id for i in first["test"]] == [i.id for i in second["test"]]


def test_a_folder_that_is_marked_read_only_is_not_written_even_by_the_superuser(tmp_path):
    add_images(tmp_path / "images", 10)
    (tmp_path / "images").chmod(0o555)
    split_folder(read_folder(tmp_path / "images"), cache=tmp_path / "cache")
    (tmp_path / "images").chmod(0o755)
    assert not (tmp_path / "images/sppdet-splits.json").exists()
    assert len(list((tmp_path / "cache/splits").iterdir())) == 1


def test_a_damaged_file_of_splits_is_named(tmp_path):
    add_images(tmp_path, 5)
    for content in ("[1]", "{", '{"test 0.2": {"a": 1}}'):
        write(tmp_path / "sppdet-splits.json", content)
        with pytest.raises(
            SppdetError, match=r"sppdet-splits\.json: holds no splits .*; restore it, or remove it to div"
        ):
            split_folder(read_folder(tmp_path))


def test_folds_share_out_every_image_and_class(tmp_path):
    add_images(tmp_path, 20)
    folds = fold_folder(read_folder(tmp_path), 5)
    assert [len(fold) for fold in folds] == [4] * 5
    assert sorted(image.id for fold in folds for image in fold) == [f"{seed:03d}" for seed in range(20)]
    assert [sum("dog" in image.names for image in fold) for fold in folds] == [1] * 5
    assert [[i.id for i in fold] for fold in fold_folder(read_folder(tmp_path), 5, seed=8)] == [
        [i.id for i in fold] for fold in folds
    ]


def test_one_image_cannot_be_divided(tmp_path):
    add_images(tmp_path, 1)
    with pytest.raises(SppdetError, match="1 different images cannot be divided into 2 parts; add images"):
        read_dataset(tmp_path)
    assert ids(read_dataset(tmp_path, "all")) == ["000"]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"train": 3, "valid": 2, "test": 1}, {"trainval": 5, "test": 1, "train": 3, "val": 2, "all": 6}),
        ({"train": 3, "valid": 2}, {"trainval": 3, "test": 2, "train": 3, "val": 2}),
        ({"train": 3, "test": 2}, {"trainval": 3, "test": 2}),
        ({"train": 5}, {"trainval": 4, "test": 1}),
        ({"photos": 3, "test": 2}, {"trainval": 3, "test": 2, "train": 3}),
        ({"train": 3, "test": 2, "new": 4}, {"trainval": 3, "test": 2, "all": 9}),
    ],
)
def test_splits_of_the_folder_are_taken_where_it_has_some(tmp_path, folders, expected):
    start = 0
    for name, count in folders.items():
        add_images(tmp_path / name, count, start)
        start += count
    assert {split: len(read_dataset(tmp_path, split)) for split in expected} == expected
    with pytest.raises(SppdetError, match="no split trian; there are: test, "):
        read_dataset(tmp_path, "trian")


def test_a_class_that_occurs_in_the_test_images_alone_says_what_to_do(tmp_path):
    for split, name in (("train", "dog"), ("test", "cat")):
        write_image(tmp_path / split / f"{name}.jpg", seed=len(split))
        write(tmp_path / split / f"{name}.xml", voc_xml((name, 2, 2, 20, 20), filename=f"{name}.jpg"))
    with pytest.raises(SppdetError, match=r"class 'cat' is none of the classes .*label it in images for training"):
        load_split(config_of(data__root=tmp_path), "test", ["dog"])


def test_a_class_that_result_files_cannot_name_is_refused_before_training(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", voc_xml(("traffic/light", 2, 2, 20, 20), filename="a.jpg"))
    with pytest.raises(SppdetError, match=r"class 'traffic/light': result files cannot have it .*; rename it"):
        load_split(config_of(data__root=tmp_path), "all")


def test_a_share_makes_a_new_split_whatever_the_folder_has(tmp_path):
    add_images(tmp_path / "train", 8)
    add_images(tmp_path / "test", 4, start=8)
    assert len(load_split(config_of(data__root=tmp_path, data__test_share=0.5), "test")) == 6


def test_lists_of_voc_that_lack_a_split_are_completed(tmp_path, shapes_root):
    root = tmp_path / "shapes"
    shutil.copytree(shapes_root, root)
    (root / "ImageSets/Main/test.txt").unlink()
    train, test = read_dataset(root, "trainval"), load_split(config_of(data__root=root), "test")
    assert len(train) == 12 and len(test) > 0


def test_skip_bad_leaves_out_images_of_voc_lists_and_of_other_folders(tmp_path, shapes_root):
    shutil.copytree(shapes_root, tmp_path / "shapes")
    (tmp_path / "shapes/Annotations/train_00003.xml").write_text("<annotation>")
    config = config_of(data__root=tmp_path / "shapes", data__skip_bad="true")
    with pytest.warns(UserWarning, match=r"images left out by data\.skip_bad: 1"):
        assert len(load_split(config, "trainval")) == 11
    add_images(tmp_path / "other", 10)
    write(tmp_path / "other/003.xml", "<annotation>")
    with pytest.raises(SppdetError, match=r"003\.xml: is not well-formed XML.*\n.*data\.skip_bad=true leaves out"):
        load_split(config_of(data__root=tmp_path / "other"), "trainval")
    with pytest.warns(UserWarning, match=r"files left out by data\.skip_bad: 1"):
        assert len(load_split(config_of(data__root=tmp_path / "other", data__skip_bad="true"), "all")) == 9


def test_images_that_are_too_large_are_cut_or_named_or_left_out(shapes_root, monkeypatch):
    pytest.importorskip("pyvips", reason="needs the extra large: pip install 'sppdet[large]'")
    samples = read_dataset(shapes_root, "trainval").samples
    areas = sorted(sample.width * sample.height for sample in samples)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", areas[-3] // 2)  # two or three are larger than twice as much
    large = [sample for sample in samples if sample.width * sample.height > areas[-3] // 2 * 2]
    for tiles in (0, 500):
        with pytest.raises(SppdetError, match=r"pixels are too many to read at once; .* data\.tiles=SIDE") as caught:
            load_split(config_of(data__root=shapes_root, data__tiles=tiles), "trainval")
        assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [str(s.path) for s in large]
    assert len(load_split(config_of(data__root=shapes_root, data__tiles=100), "trainval")) == 12
    with pytest.warns(UserWarning, match=rf"too large, left out by data\.skip_bad: {len(large)} \("):
        left = load_split(config_of(data__root=shapes_root, data__skip_bad="true"), "trainval")
    assert ids(left) == [sample.id for sample in samples if sample not in large]
    monkeypatch.setattr(large_images, "_has_vips", lambda: False)
    with pytest.raises(SppdetError, match=r"pip install 'sppdet\[large\]' to read it in parts, with --tiles or data"):
        load_split(config_of(data__root=shapes_root, data__tiles=100), "trainval")


@pytest.mark.parametrize("names", ["[star]", "[star,zebra]"])
def test_classes_that_are_ignored_are_regions_in_all_splits(shapes_root, names):
    plain, config = config_of(data__root=shapes_root), config_of(data__root=shapes_root, data__ignore_classes=names)
    if "zebra" in names:
        with pytest.raises(SppdetError, match=r"data\.ignore_classes: no box is of class 'zebra'"):
            load_split(config, "trainval")
        return
    train = load_split(config, "trainval")
    test = load_split(config, "test", train.classes)
    every, parts = load_folds(config, 3)
    assert train.classes == test.classes == every.classes == parts[0].classes and "star" not in train.classes
    for data, before in ((train, load_split(plain, "trainval")), (test, load_split(plain, "test"))):
        star = before.classes.index("star")
        for sample, full in zip(data, before):
            np.testing.assert_array_equal(sample.ignored, full.boxes[full.labels == star])
            assert [data.classes[k] for k in sample.labels] == [before.classes[k] for k in full.labels if k != star]
    assert sum(len(sample.ignored) for sample in train) > 0
    assert sum(len(sample.ignored) for part in parts for sample in part) == sum(len(s.ignored) for s in every)


def test_divide_gives_each_class_its_share_and_a_single_group_to_the_largest_part():
    groups = [{"a": 1}] * 40 + [{"b": 1, "a": 2}] * 20 + [{"c": 1}]
    chosen = divide(groups, {"train": 0.75, "test": 0.25}, seed=1)
    assert chosen[:40].count("test") + chosen[40:60].count("test") == 15
    assert chosen[40:60].count("test") == 5 and chosen[60] == "train"
    assert divide(groups, {"train": 0.75, "test": 0.25}, seed=1) == chosen
    assert divide(groups[:2], {"train": 0.9, "test": 0.1}, seed=1).count("test") == 1
    assert divide(groups, {"train": 0.75, "test": 0.25}, 1, {0: "test", 60: "test"})[60] == "test"
