"""A run's evaluation as FiftyOne and pycocotools open it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sppdet import config
from sppdet.cli import evaluate
from sppdet.config.settings import Config
from sppdet.data.splits import load_split
from sppdet.detection.detections import Detections
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.devkit_files import write_devkit_results
from sppdet.evaluation.voc import evaluate_voc
from sppdet.utils.files import write_json


@pytest.fixture
def run(tmp_path, shapes_root) -> Path:
    """What a finished run leaves: every object found, by a box that is a pixel larger."""
    settings = config.override(Config(), [f"data.root={shapes_root}", f"run.dir={tmp_path / 'run'}"])
    dataset, folder = load_split(settings, "test"), tmp_path / "run"
    scores = np.random.default_rng(0).random(100)
    detections = [
        Detections(np.add(sample.boxes, [0, 0, 1, 2]), sample.labels, scores[: len(sample.labels)], dataset.classes)
        for sample in dataset
    ]
    write_devkit_results(folder / "detections", dataset, detections, "test")
    write_json(folder / "model.json", {})
    write_json(folder / "metrics.json", evaluate_voc(dataset, detections) | {"config": config.to_dict(settings)})
    return folder


def export(run: Path, capsys) -> tuple[Path, dict, list]:
    folder = run.parent / "export"
    assert evaluate.main([str(run), "--export", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: 6 images with their objects and ")
    return folder, *(json.loads((folder / name).read_text()) for name in ("labels.json", "detections.json"))


def test_the_folder_holds_images_objects_and_detections(run, capsys, shapes_root):
    folder, labels, detections = export(run, capsys)
    names = {image["id"]: image["file_name"] for image in labels["images"]}
    for name in names.values():
        assert (folder / "data" / name).read_bytes() == (shapes_root / "JPEGImages" / name).read_bytes()
    # Each detection is its object, a pixel wider and two higher.
    truths, rows = (
        sorted(entries, key=lambda row: (row["image_id"], row["category_id"], row["bbox"][:2]))
        for entries in (labels["annotations"], detections)
    )
    assert len(truths) == len(rows)
    for truth, found in zip(truths, rows):
        assert found["image_id"] == truth["image_id"] and found["category_id"] == truth["category_id"]
        np.testing.assert_allclose(np.subtract(found["bbox"], truth["bbox"]), [0, 0, 1, 2], atol=1e-3)
    assert evaluate.main([str(run), "--export", str(folder)]) == 2
    assert "exists already; give a new folder" in capsys.readouterr().err


class Samples(dict):
    """Stands for a data set of FiftyOne, which lives in MongoDB: values by field, of all samples in order."""

    def values(self, fields):
        return [self[field] for field in fields]

    def select(self, ids, ordered):
        rows = [self["id"].index(name) for name in ids]
        return Samples({field: [values[row] for row in rows] for field, values in self.items()})

    def compute_metadata(self):
        pass

    def set_values(self, field, values):
        self[field] = values
        Samples.last = self


def test_fiftyone_reads_the_folder(run, capsys):
    """Its own reader and its own import of results; only its database is missing."""
    coco = pytest.importorskip("fiftyone.utils.coco", reason="needs fiftyone: docs/other-tools.md")
    folder, labels, _ = export(run, capsys)
    importer = coco.COCODetectionDatasetImporter(
        str(folder), labels_path="labels.json", label_types="detections", include_id=True
    )
    with importer:
        images = list(importer)
    assert len(images) == 6
    boxes, samples = {}, Samples({"coco_id": [], "id": [], "metadata.width": [], "metadata.height": []})
    for path, metadata, content in images:
        assert Path(path).exists()
        values = content["coco_id"], path, metadata["width"], metadata["height"]
        for field, value in zip(samples, values):
            samples[field].append(value)
        boxes[path] = sorted((one.label, one.bounding_box) for one in content["detections"].detections)
    coco.add_coco_labels(
        samples, "predictions", str(folder / "detections.json"), labels["categories"], coco_id_field="coco_id"
    )
    last = Samples.last
    assert sum(map(len, boxes.values())) == len(labels["annotations"])
    for path, width, height, found in zip(
        last["id"], *last.values(["metadata.width", "metadata.height", "predictions"])
    ):
        rows = sorted(found.detections, key=lambda one: (one.label, one.bounding_box))
        assert len(rows) == len(boxes[path])
        for (name, truth), one in zip(boxes[path], rows):
            assert one.label == name and 0 <= one.confidence <= 1
            moved = np.subtract(one.bounding_box, truth) * [width, height, width, height]
            np.testing.assert_allclose(moved, [0, 0, 1, 2], atol=1e-3)


def test_pycocotools_counts_what_the_evaluation_counts(run, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from sppdet.evaluation.run import read_last_evaluation

    folder, _, _ = export(run, capsys)
    truth = COCO(str(folder / "labels.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(folder / "detections.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    last = read_last_evaluation(run)
    assert 100 * evaluation.stats[0] == pytest.approx(evaluate_coco(last.dataset, last.detections)["AP"])


def test_a_lost_image_leaves_no_folder(run, capsys, shapes_root, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(shapes_root, moved)
    next((moved / "JPEGImages").glob("test_*")).unlink()
    assert evaluate.main([str(run), "--export", str(tmp_path / "export"), f"data.root={moved}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "export").exists()
