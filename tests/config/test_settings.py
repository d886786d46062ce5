"""Settings are frozen and checked; files of earlier versions are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sppdet import config
from sppdet.config.limits import field_types, section_class
from sppdet.config.loading import keys
from sppdet.config.settings import (
    RENAMED,
    STAGES,
    ClassifierConfig,
    Config,
    DataSettings,
    DetectionSettings,
    FolderSettings,
    PretrainSettings,
    ProposalSettings,
    RegionSettings,
    ViewSettings,
)
from sppdet.utils.errors import SppdetError


def sections(kind: type) -> list[type]:
    """The settings class and the classes of all its sections."""
    inner = [section_class(annotation) for annotation in field_types(kind).values()]
    return [kind, *(section for one in inner if one for section in sections(one))]


@pytest.mark.parametrize("kind", dict.fromkeys([*sections(Config), *sections(ClassifierConfig)]))
def test_settings_cannot_be_changed(kind):
    settings = kind()
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, getattr(settings, field.name))


def test_wrong_values_cannot_be_constructed():
    with pytest.raises(SppdetError, match=r"DetectionSettings\.nms: expected 0 to 1, found 7"):
        DetectionSettings(nms=7)
    with pytest.raises(SppdetError, match=r"DetectionSettings\.nms: expected 0 to 1, found 7"):
        dataclasses.replace(DetectionSettings(), nms=7)


def test_lists_become_tuples():
    assert RegionSettings(scales=[480, 688]).scales == (480, 688)
    assert DataSettings(classes=["cat"]).classes == ("cat",)
    assert hash(PretrainSettings([224])) == hash(PretrainSettings((224,)))


def test_the_mode_that_opencv_does_not_have_is_refused():
    assert ProposalSettings(mode="balanced").engine == "native"
    with pytest.raises(SppdetError, match=r"proposals\.mode: OpenCV has no balanced; set proposals\.engine=native"):
        ProposalSettings(mode="balanced", engine="opencv")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_keys_of_earlier_versions_are_read(tmp_path, old, new):
    sections = [key.split(".")[0] for key in keys() if key.split(".")[-1] == new]
    assert sections, f"no setting has the name {new}"
    for section in sections:
        (tmp_path / "old.yaml").write_text(f"{section}: {{{old}: 7}}")
        for settings in (
            config.load(tmp_path / "old.yaml"),
            config.override(Config(), [f"{section}.{old}=7"]),
            config.from_dict({section: {old: 7}}),
        ):
            assert getattr(getattr(settings, section), new) == 7


def test_a_key_of_an_earlier_version_that_is_wrong_is_named_as_today():
    with pytest.raises(SppdetError, match=r"svm\.hard_per_image: expected 0 or more, found -1"):
        config.override(Config(), ["svm.hard_per_picture=-1"])


def test_every_stage_is_named_once():
    assert len(set(STAGES)) == len(STAGES)


@pytest.mark.parametrize(
    ("settings", "crop", "shorter_side"),
    [
        (ClassifierConfig(), 224, 256),
        (ClassifierConfig(sizes=(90, 112)), 112, 128),
        (ClassifierConfig(sizes=(224,), side=300), 224, 300),
    ],
)
def test_the_sides_of_training_images_follow_from_the_sizes(settings, crop, shorter_side):
    assert (settings.crop, settings.shorter_side) == (crop, shorter_side)


@pytest.mark.parametrize(
    ("settings", "tested"),
    [
        (ClassifierConfig(), ViewSettings("crop", 224, 256, (224, 256, 300, 360, 448, 560))),
        (ClassifierConfig(sizes=(112, 90)), ViewSettings("crop", 112, 128, (112, 128, 150, 180, 224, 280))),
        (
            ClassifierConfig(test=ViewSettings("multi", 112, scales=(120,)), side=230),
            ViewSettings("multi", 112, 230, (120,)),
        ),
        (
            ClassifierConfig(test=ViewSettings("full", side=392)),
            ViewSettings("full", 224, 392, (224, 256, 300, 360, 448, 560)),
        ),
    ],
)
def test_the_evaluation_follows_from_the_sizes_where_it_is_not_set(settings, tested):
    assert settings.tested == tested


def test_a_folder_in_the_root_goes_before_one_of_that_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    (tmp_path / "other").mkdir()
    folders = FolderSettings(root="photos")
    assert folders.place("val") == Path("photos/val")
    assert folders.place("other") == Path("other")
    assert folders.place("none") == Path("photos/none")
    assert folders.place(str(tmp_path / "val")) == tmp_path / "val"
