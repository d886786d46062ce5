"""scripts/integrations: the examples, run against the SDKs of the tools where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from sppdet.detection.detections import Detections

CLASSES = ("cat", "dog")
CONFIG = """<View><Image name="photo" value="$picture"/><RectangleLabels name="boxes" toName="photo">
<Label value="cat"/><Label value="dog"/></RectangleLabels></View>"""


class Finder:
    """Reports a dog, and a cat of low confidence, in every image, as a detector."""

    classes = CLASSES

    def predict(self, image, threshold="auto"):
        found = Detections([[10, 20, 45, 61], [3, 5, 17, 8]], [1, 0], [0.7, -0.9], CLASSES, [0.9, 0.1])
        return found[:1] if threshold == "auto" else found


def example(name: str) -> ModuleType:
    """Import an example with `Finder` as its detector."""
    path = Path(__file__).parents[2] / "scripts" / "integrations" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cvat_gets_rectangles_with_the_labels_of_the_task(monkeypatch):
    pytest.importorskip("cvat_sdk", reason="needs cvat-sdk: docs/other-tools.md")
    from cvat_sdk import models
    from cvat_sdk.auto_annotation import driver

    module = example("cvat_function")
    monkeypatch.setattr(module.sppdet, "load", lambda run: Finder())
    function = module.create("runs/x")
    image = SimpleNamespace(load_image=lambda: Image.new("RGB", (100, 200)))
    labels = [
        models.Label(name=name, id=number, type="any", attributes=[], sublabels=[])
        for name, number in (("dog", 70), ("cat", 80))
    ]
    task = SimpleNamespace(labels=labels, samples=[SimpleNamespace(frame_index=3, frame_name="a.jpg", media=image)])
    monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: task)  # what a server would send
    client = MagicMock()
    upload = client.tasks.api.partial_update_annotations

    def shapes(threshold: float | None) -> list[tuple]:
        driver.annotate_task(client, 1, function, conf_threshold=threshold)
        uploaded = upload.call_args.kwargs["patched_labeled_data_request"].shapes
        return [(shape.frame, shape.label_id, shape.type.value, list(shape.points)) for shape in uploaded]

    dog, cat = (3, 70, "rectangle", [10, 20, 45, 61]), (3, 80, "rectangle", [3, 5, 17, 8])
    assert shapes(None) == [dog] and shapes(0.05) == [dog, cat] and shapes(0.95) == []


def test_label_studio_accepts_the_predictions(tmp_path, monkeypatch):
    pytest.importorskip("label_studio_ml.model", reason="needs label-studio-ml: docs/other-tools.md")
    module = example("label_studio_backend")
    monkeypatch.setattr(module, "detector", Finder)
    Image.fromarray(np.zeros((200, 100, 3), np.uint8)).save(tmp_path / "a.png")
    backend = module.Backend(label_config=CONFIG)
    monkeypatch.setattr(backend, "get_local_path", lambda url: str(tmp_path / Path(url).name))  # else a server is asked
    (prediction,) = backend.predict([{"id": 1, "data": {"picture": "/data/upload/1/a.png"}}])
    (result,) = prediction["result"]
    assert (result["from_name"], result["to_name"]) == ("boxes", "photo")
    assert result["value"]["rectanglelabels"] == ["dog"]
    assert [result["value"][name] for name in ("x", "y", "width", "height")] == pytest.approx([10, 10, 35, 20.5])
    assert prediction["score"] == pytest.approx(0.9)

    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="needs label-studio-sdk")
    assert interface.LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
    with pytest.raises(ValueError, match="has no RectangleLabels"):
        module.Backend(label_config='<View><Image name="a" value="$b"/></View>').predict([])
