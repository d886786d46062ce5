"""Descriptions of models with values that cannot be: refused with the file's name."""

from __future__ import annotations

import pytest
from detectors import random_detector

from sppdet.detection.saved_model import load_detector
from sppdet.networks.trunk_output import Cut
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json, write_json


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("features", "map_type", "uint4", "map_type: expected one of float16, uint8, uint6, found 'uint4'"),
        ("features", "layer_levels", [[3, 1], [10**9]], "layer_levels: expected one or more positive whole numbers"),
        ("features", "layer_levels", [[3, 1]], "layer_levels has 1 entries for 2 layers"),
        ("features", "layer_weights", [1, -1], "layer_weights: expected more than 0, found -1"),
        ("features", "layer_weights", [1, 1, 1], "layer_weights has 3 entries for 2 layers"),
        ("features", "scales", "688", "scales: expected int, found '688'"),
        ("features", "crop", {"kind": "warp", "size": 10**6}, "regions.crop_size: expected 64 to 10000"),
        ("backbone", "layers", [1.5, None], "layers: expected str, found None"),
        ("backbone", "dilate", "yes", "dilate: expected bool, found 'yes'"),
    ],
)
def test_layers_and_pyramids_of_a_damaged_description_are_refused(tmp_path, section, key, value, message):
    pyramids = {"layer_levels": ((3, 1), (2,)), "layer_weights": (1.0, 0.5), "map_type": "uint8"}
    random_detector(cut=Cut(("features.11", "features.14")), **pyramids).save(tmp_path)
    assert load_detector(tmp_path, "cpu").features.map_type == "uint8"
    description = read_json(tmp_path / "model.json")
    description[section][key] = value
    write_json(tmp_path / "model.json", description)
    with pytest.raises(SppdetError, match=message) as caught:
        load_detector(tmp_path, "cpu")
    assert str(caught.value).startswith(f"{tmp_path / 'model.json'}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [[], ["red", "red"], ["red", 3]])
def test_names_of_classes_are_different_texts(tmp_path, names):
    random_detector().save(tmp_path)
    description = read_json(tmp_path / "model.json")
    write_json(tmp_path / "model.json", description | {"classes": names})
    with pytest.raises(SppdetError, match=r"model\.json: 'classes' are not a list of different names"):
        load_detector(tmp_path)


def test_weights_fit_the_classes(tmp_path):
    random_detector().save(tmp_path)
    description = read_json(tmp_path / "model.json")
    write_json(tmp_path / "model.json", description | {"classes": [*description["classes"], "one more"]})
    with pytest.raises(SppdetError, match=r"model\.json: the weights '\w+' are .* but classes and features need"):
        load_detector(tmp_path)
