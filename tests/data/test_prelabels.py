"""Detections as annotations: read back by our readers in every format, and never over a person's work."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled import objects_of, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.data.prelabels import FORMATS, RECORD, AnnotationFolder, Prelabelled
from sppdet.utils.errors import SppdetError

CLASSES = ("cat", "dog")
BOXES = {"a": [[2, 3, 20, 15.5], [10, 0, 40, 30]], "b": []}
NAMES = {"a": ["dog", "cat"], "b": []}


def labelled(folder, stems=("a", "b")) -> list[Prelabelled]:
    """Return images of 40 x 30 pixels in a folder, with what was found in them."""
    images = []
    for number, stem in enumerate(stems):
        path = folder / f"{stem}.jpg"
        path.exists() or write_image(path, seed=number)
        boxes = np.array(BOXES[stem], np.float32).reshape(-1, 4)
        images.append(Prelabelled(path, (40, 30), NAMES[stem], boxes, [0.9, 0.6][: len(boxes)]))
    return images


def accept_predictions(folder) -> None:
    """Do what Label Studio does when a person accepts every prediction."""
    (path,) = folder.glob("labels-*.json")
    tasks = json.loads(path.read_text())
    path.write_text(json.dumps([task | {"annotations": task["predictions"]} for task in tasks]))


@pytest.mark.parametrize("form", FORMATS)
def test_our_readers_find_the_boxes_that_were_written(tmp_path, form):
    images = labelled(tmp_path)
    AnnotationFolder(tmp_path, form).write(images, CLASSES)
    if form == "label-studio":
        accept_predictions(tmp_path)
    expected = {stem: [(name, *map(float, box)) for name, box in zip(NAMES[stem], BOXES[stem])] for stem in BOXES}
    assert objects_of(read_folder(tmp_path)) == expected  # b has an empty annotation, it is not without one


@pytest.mark.parametrize("form", ["voc", "yolo", "coco"])
def test_supervision_reads_the_boxes_that_were_written(tmp_path, form):
    supervision = pytest.importorskip("supervision", reason="needs supervision: docs/other-tools.md")
    folder = tmp_path / "images"
    images = labelled(folder)
    where = AnnotationFolder(folder, form).write(images, CLASSES)
    if form == "voc":
        data = supervision.DetectionDataset.from_pascal_voc(str(folder), str(folder))
    elif form == "coco":
        data = supervision.DetectionDataset.from_coco(str(folder), str(where))
    else:
        settings = write(tmp_path / "data.yaml", "names: [cat, dog]\n")
        data = supervision.DetectionDataset.from_yolo(str(folder), str(folder), str(settings))
    found = {path.rsplit("/", 1)[-1]: detections for path, _, detections in data}
    np.testing.assert_allclose(found["a.jpg"].xyxy, BOXES["a"], atol=1e-3)
    assert [data.classes[k] for k in found["a.jpg"].class_id] == NAMES["a"] and len(found["b.jpg"]) == 0


def test_label_studio_accepts_the_predictions_and_exports_their_boxes(tmp_path):
    """Its own check of predictions, and its own export to COCO of the predictions once they are accepted."""
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="needs label-studio-sdk")
    from label_studio_sdk.converter import Converter

    path = AnnotationFolder(tmp_path, "label-studio").write(labelled(tmp_path), CLASSES)
    labels = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    config = (
        f'<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{labels}'
        "</RectangleLabels></View>"
    )
    tasks = json.loads(path.read_text())
    for number, task in enumerate(tasks):
        (prediction,) = task["predictions"]
        assert interface.LabelInterface(config).validate_prediction(prediction, return_errors=True) == []
        task |= {"id": number, "annotations": [prediction | {"id": number, "completed_by": 1}]}
    path.write_text(json.dumps(tasks))
    converter = Converter(config, str(tmp_path), download_resources=False)
    converter.convert_to_coco(str(path), str(tmp_path / "export"), is_dir=False)
    exported = json.loads((tmp_path / "export" / "result.json").read_text())
    names = {category["id"]: category["name"] for category in exported["categories"]}
    rows = [(names[row["category_id"]], row["bbox"]) for row in exported["annotations"]]
    assert [name for name, _ in rows] == NAMES["a"]
    np.testing.assert_allclose([box for _, box in rows], [[2, 3, 18, 12.5], [10, 0, 30, 30]], atol=1e-3)


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_files_of_others_and_changed_files_are_left_alone(tmp_path, form):
    images = labelled(tmp_path)
    paths = [image.path for image in images]
    AnnotationFolder(tmp_path, form).write(images[:1], CLASSES)
    suffix = {"voc": ".xml", "yolo": ".txt"}[form]
    write(tmp_path / f"b{suffix}", "a person's")
    assert AnnotationFolder(tmp_path, form).without_annotation(paths) == paths[:1]  # unchanged since it was written
    write(tmp_path / f"a{suffix}", "corrected")
    assert AnnotationFolder(tmp_path, form).without_annotation(paths) == []
    assert AnnotationFolder(tmp_path, form, overwrite=True).without_annotation(paths) == paths


@pytest.mark.parametrize("form", FORMATS)
def test_files_of_an_interrupted_command_do_not_count_as_a_persons(tmp_path, monkeypatch, form):
    """Killed before the last file is in place, it leaves new and old ones; all are written again."""
    images = labelled(tmp_path)
    paths = [image.path for image in images]
    AnnotationFolder(tmp_path, form).write(images, CLASSES)
    changed = [replace(image, names=["cat"] * 2, boxes=np.ones((2, 4)), scores=[0.5] * 2) for image in images]

    def killed(source, target, replace_file=os.replace):
        if Path(target).parent == tmp_path and Path(target).name.startswith(("b.", "labels-")):
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        AnnotationFolder(tmp_path, form).write(changed, CLASSES)
    assert AnnotationFolder(tmp_path, form).without_annotation(paths) == paths
    where = AnnotationFolder(tmp_path, form).write(changed, CLASSES)
    assert where in (tmp_path, *tmp_path.glob("labels-*.json")) and len([*tmp_path.glob("labels-*")]) <= 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [RECORD]


def test_a_corrected_file_of_all_images_stays_and_its_images_are_left_alone(tmp_path):
    images = labelled(tmp_path)
    paths = [image.path for image in images]
    first = AnnotationFolder(tmp_path, "coco").write(images[:1], CLASSES)
    assert AnnotationFolder(tmp_path, "coco").without_annotation(paths) == paths  # nobody has changed it
    content = first.read_text()
    first.write_text(content + " ")
    folder = AnnotationFolder(tmp_path, "coco")
    assert folder.without_annotation(paths) == paths[1:]
    assert folder.write(images[1:], CLASSES).name == "labels-coco-2.json"
    assert first.read_text() == content + " "
    assert len(read_folder(tmp_path).images) == 2


def test_tools_folders_are_used_where_they_exist(tmp_path):
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "VOC" / "Annotations").mkdir(parents=True)
    assert AnnotationFolder(tmp_path / "images" / "train", "yolo").folder == tmp_path / "labels" / "train"
    assert AnnotationFolder(tmp_path / "VOC" / "JPEGImages", "voc").folder == tmp_path / "VOC" / "Annotations"
    assert AnnotationFolder(tmp_path / "JPEGImages", "voc").folder == tmp_path / "JPEGImages"


@pytest.mark.parametrize("file", ["classes.txt", "data.yaml"])
def test_yolo_s_numbers_are_those_of_the_names_that_the_folder_has(tmp_path, file):
    write(tmp_path / file, "bird\ndog\ncat\n" if file == "classes.txt" else "names: [bird, dog, cat]\n")
    folder = tmp_path / "photos"
    AnnotationFolder(folder, "yolo").write(labelled(folder), CLASSES)
    assert [line.split()[0] for line in (folder / "a.txt").read_text().splitlines()] == ["1", "2"]
    assert not (folder / "classes.txt").exists()


def test_a_class_that_yolo_s_names_lack_is_an_error_and_nothing_is_written(tmp_path):
    write(tmp_path / "classes.txt", "cat\n")
    with pytest.raises(SppdetError, match=r"classes\.txt: has no class dog"):
        AnnotationFolder(tmp_path, "yolo").write(labelled(tmp_path), CLASSES)
    assert not (tmp_path / "a.txt").exists()


def test_classes_without_names_keep_their_numbers_and_get_no_list(tmp_path):
    write(tmp_path / "a.txt", "2 0.5 0.5 0.2 0.2\n")
    (image,) = labelled(tmp_path, ["b"])
    image = replace(image, names=["class 10", "class 2"], boxes=np.array(BOXES["a"], np.float32), scores=[0.9, 0.6])
    AnnotationFolder(tmp_path, "yolo").write([image], ["class 0", "class 10", "class 2"])
    assert [line.split()[0] for line in (tmp_path / "b.txt").read_text().splitlines()] == ["10", "2"]
    assert not (tmp_path / "classes.txt").exists()


@pytest.mark.parametrize("labels", [".", "labels"])
def test_a_person_s_labels_without_names_get_none_that_may_be_wrong(tmp_path, labels):
    images = tmp_path / ("images" if labels == "labels" else ".")
    found = labelled(images)
    write(tmp_path / labels / "b.txt", "2 0.5 0.5 0.2 0.2\n")
    with pytest.raises(SppdetError, match=r"b\.txt: nothing names its classes; write .*classes\.txt, a name per line"):
        AnnotationFolder(images, "yolo").write(found[:1], CLASSES)
    write(tmp_path / labels / "classes.txt", "bird\ncat\ndog\n")
    AnnotationFolder(images, "yolo").write(found[:1], CLASSES)
    assert [line[0] for line in (tmp_path / labels / "a.txt").read_text().splitlines()] == ["2", "1"]


def test_images_that_would_share_an_annotation_are_refused(tmp_path):
    with pytest.raises(SppdetError, match=r"a\.jpg and a\.png: share a\.xml; rename one"):
        AnnotationFolder(tmp_path, "voc").without_annotation([tmp_path / "a.jpg", tmp_path / "a.png"])


def test_a_damaged_record_is_named(tmp_path):
    write(tmp_path / RECORD, "[")
    with pytest.raises(SppdetError, match=RECORD):
        AnnotationFolder(tmp_path, "voc")


def test_another_format_is_refused(tmp_path):
    with pytest.raises(SppdetError, match="'csv' is none of voc, yolo, coco, label-studio"):
        AnnotationFolder(tmp_path, "csv")
