"""Classes added to a trained model, and background fed back to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stored_models import files, rows

import sppdet
from sppdet.data.dataset import Dataset
from sppdet.data.splits import read_dataset
from sppdet.detection.linear_layers import LinearSVMs
from sppdet.detection.stored_model import StoredModel
from sppdet.training.adding import _of_new_classes, add_background, add_classes
from sppdet.training.bank import BANK_FILE, Bank
from sppdet.training.changing import remove_classes
from sppdet.training.new_images import without_objects
from sppdet.utils.errors import SppdetError


@pytest.fixture
def images(shapes_root) -> Dataset:
    """The training images with all of their objects."""
    return read_dataset(shapes_root, "trainval")


def test_a_training_leaves_a_bank_of_every_kind_of_window(trained):
    bank = Bank.load(trained.folder)
    assert bank.classes == trained.detector().classes
    assert 0 < len(bank) <= bank.limit == 4000
    assert ((bank.labels > 0).sum(axis=0) > 0).all(), "every class has positives"
    assert ((bank.labels < 0).all(axis=1)).any(), "background of all classes"
    assert len(bank) == len(bank.vectors.decoded(trained.detector().features))


def test_the_second_training_leaves_the_bank_as_it_is(run):
    run.train()
    before = (run.folder / BANK_FILE).stat().st_mtime_ns
    run.train()
    assert (run.folder / BANK_FILE).stat().st_mtime_ns == before


def test_the_bank_follows_the_settings_that_it_keeps(run):
    run.train()
    run.train("bbox.ridge=10")
    assert Bank.load(run.folder).bbox.ridge == 10
    run.train("svm.C=0.01", "svm.bank=0")
    assert not (run.folder / BANK_FILE).exists(), "a bank of other SVMs"


def test_a_class_that_is_removed_and_added_is_found_again_and_the_others_stay(model, images):
    before = rows(model)
    name = sppdet.load(model).classes[0]
    remove_classes(model, [name])
    others = {other: values for other, values in before.items() if other != name}
    assert rows(model) == others
    detector = add_classes(model, images, [name], workers=1)
    assert detector.classes == (*others, name)
    after = rows(model)
    new = after.pop(name)
    assert after == others
    assert new.keys() == before[name].keys()
    bank = Bank.load(model)
    assert bank.classes == detector.classes
    assert (bank.labels[:, -1] > 0).any()
    # The SVM tells objects of the class from those of the other classes.
    mine, rest = [], []
    for sample in images:
        detections = detector.predict(sample.path, threshold=None).of_class(name)
        scores = float(detections.scores.max(initial=-2))
        (mine if images.classes.index(name) in sample.labels else rest).append(scores)
    assert np.mean(mine) > np.mean(rest)


def test_another_folder_gets_the_new_model_and_the_old_one_stays(model, images, tmp_path):
    name = sppdet.load(model).classes[0]
    remove_classes(model, [name], output=tmp_path / "without")
    before = files(tmp_path / "without")
    add_classes(tmp_path / "without", images, [name], output=tmp_path / "with", workers=1)
    assert files(tmp_path / "without") == before
    assert sppdet.load(tmp_path / "with").classes[-1] == name


def test_background_lowers_the_margins_of_what_was_found_in_it(model, images):
    before = sppdet.load(model)
    unseen = images[:3]  # their objects count as false alarms
    highest = [before.predict(sample.path, threshold=None).scores.max() for sample in unseen]
    after = add_background(model, unseen, workers=1)
    assert after.classes == before.classes
    lower = [after.predict(sample.path, threshold=None).scores.max(initial=-2) for sample in unseen]
    assert np.mean(lower) < np.mean(highest)


def test_what_a_data_set_says_of_its_own_classes_does_not_make_background_less(images):
    regions = {"ignored": np.ones((1, 4), np.float32), "ignored_labels": np.zeros(1, np.int64)}
    zebras = replace(images[0], looked_for=np.array([False]), **regions)
    (sample,) = without_objects(Dataset(("zebra",), (zebras,)), ("circle", "star"))
    assert sample.was_looked_for([0, 1]).all() and not len(sample.ignored) and not len(sample.boxes)


def test_background_without_hard_negatives_changes_no_weight(model, tmp_path):
    from PIL import Image

    (tmp_path / "grey").mkdir()
    Image.new("RGB", (160, 120), (128, 128, 128)).save(tmp_path / "grey" / "grey.png")
    before = rows(model)
    detector = sppdet.load(model)
    if detector.predict(tmp_path / "grey" / "grey.png", threshold=None).scores.max(initial=-2) > -1:
        pytest.skip("the tiny model finds something in a grey image")
    add_background(model, tmp_path / "grey", workers=1)
    assert rows(model) == before


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model, images: add_classes(model, images), "has no object of a new class"),
        (lambda model, images: add_classes(model, images, ["circle"]), "has a class 'circle' already"),
        (lambda model, images: add_classes(model, images, ["zebra"]), "has no object of class 'zebra'"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(model, images, call, message):
    before = files(model)
    with pytest.raises(SppdetError, match=message) as error:
        call(model, images)
    assert "\n" not in str(error.value)
    assert files(model) == before


def test_a_model_without_its_bank_cannot_learn(model, images):
    (model / BANK_FILE).unlink()
    remove_classes(model, ["circle"])
    with pytest.raises(SppdetError, match="train with svm"):
        add_classes(model, images, ["circle"])


def test_a_damaged_bank_is_named(model, images):
    content = bytearray((model / BANK_FILE).read_bytes())
    content[-100] ^= 1
    (model / BANK_FILE).write_bytes(content)
    with pytest.raises(SppdetError, match="damaged"):
        Bank.load(model)


def test_a_bank_of_other_features_is_refused(model, images, tmp_path):
    remove_classes(model, ["circle"])
    replace(Bank.load(model), key="other").save(model / BANK_FILE)
    with pytest.raises(SppdetError, match="another network or other settings"):
        add_classes(model, images, ["circle"])


def test_an_added_class_has_no_svm_of_whole_images(model, images):
    stored = StoredModel.read(model)
    ones = np.ones_like(stored.tensors["classifier.weight"])
    detection = stored.description["detection"] | {"context": 0.3}
    tensors = stored.tensors | {"context.weight": ones, "context.bias": ones[:, 0]}
    replace(stored, tensors=tensors, description=stored.description | {"detection": detection}).write(model)
    name = stored.classes[0]
    remove_classes(model, [name])
    add_classes(model, images, [name])
    weight = StoredModel.read(model).tensors["context.weight"]
    assert (weight[:-1] == 1).all() and not weight[-1].any()
    # In the images that its probabilities are learned from, it is detected without one, too.
    detector = sppdet.load(model)
    alone = _of_new_classes(detector, [name], LinearSVMs(ones[:1], ones[:1, 0]), None)
    assert alone.classes == (name,) and alone.image_svms is None and alone.detection.context == 0


def test_classes_are_added_to_a_compact_model_in_its_precision(model, images):
    sppdet.detection.save_detector(sppdet.load(model), model, compact=True)
    before = rows(model)
    name = StoredModel.read(model).classes[0]
    remove_classes(model, [name])
    add_classes(model, images, [name])
    after = rows(model)
    assert {one: after[one] for one in before if one != name} == {one: before[one] for one in before if one != name}
    tensors = StoredModel.read(model).tensors
    assert tensors["bbox.weight"].dtype == np.int8 and tensors["classifier.weight"].dtype == np.float16
    assert sppdet.load(model).classes[-1] == name
