"""What the result of each stage of training depends on.

A result is keyed by all that it depends on. The key of a class's SVM or box regressor holds the images and the class's
own objects, so a class that is added to the annotations is learned alone. With ``--keep`` a result stays valid as long
as its recipe (settings and features) is the same, whatever images and objects it was learned from.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.config import keys as setting_keys
from sppdet.config import load
from sppdet.data import Dataset
from sppdet.networks import Backbone, Cut, Head, weights_digest
from sppdet.proposals import SelectiveSearch
from sppdet.training import image_svms
from sppdet.training.cached_result import Key, has_result, is_done
from sppdet.utils import SppdetError, file_digests, read_json

if TYPE_CHECKING:
    from sppdet.training.stage_inputs import StageInputs

# Settings, or their beginnings, that the results of no class depend on.
_INDEPENDENT = (
    "data.", "run.dir", "run.cache", "run.curves", "run.engine", "run.cluster", "calibration.",
    "detection.", "workers", "memory_gb", "device", "backbone.engine",
)  # fmt: skip

# Settings enter the keys under the names that they had when the first results were made: these are still valid.
_NAMES_IN_KEYS = {
    "end_to_end": {"images_per_step": "pictures_per_step", "windows_per_image": "windows_per_picture"},
    "svm": {"hard_per_image": "hard_per_picture"},
}
# Settings that the first results did not have, with the values that these had in effect.
_AS_BEFORE = {"positive_overlap": 1, "tolerance": 0.01}


class StageKeys:
    """The keys of one run's results.

    Args:
        inputs: the run's settings, images, networks and features.
        keep: whether results learned with the same settings stay valid, though from other images or objects.
    """

    def __init__(self, inputs: StageInputs, keep: bool = False):
        self.inputs, self.keep = inputs, keep
        self.config = inputs.config

    def pretrain(self) -> Key:
        """Return the key of the pretrained trunk."""
        c, train = self.config, self.inputs.train_pieces
        settings = {"pretrain": asdict(c.pretrain), "levels": c.pooling.levels}
        settings |= {"name": c.backbone.name, "precision": c.backbone.precision}
        settings |= Cut.of(c.backbone).description()
        return self._key(settings, [], [self._objects(), self._files(train)])

    def end_to_end(self, start: Head | None) -> Key:
        """Return the key of the network of the end-to-end training.

        Args:
            start: the fc layers that training begins with; None if their weights are random.
        """
        inputs = self.inputs
        features = self._features_of(inputs.initial_backbone)
        for name in ("scales", "target"):  # of the detector's maps; the training has scales of its own
            features["windows"].pop(name, None)
        # The classes' names count: joint boxes are looked up by them.
        data = [inputs.proposal_splits[0].names, self._objects(), inputs.train.classes]
        return self._key({"end_to_end": self._settings("end_to_end")}, [features, _digest(start)], data)

    def finetune(self, start: Head | None) -> Key:
        """Return the key of the fine-tuned fc layers.

        Args:
            start: the fc layers that training begins with; None if their weights are random.
        """
        settings = {"finetune": self._settings("finetune"), "norm": self.config.svm.norm}
        data = [self.inputs.split_of("finetune").names, self._objects()]
        return self._key(settings, [self._final_features, _digest(start)], data)

    def balance(self) -> Key:
        """Return the key of the factor of fc7 for features ``pool5+fc7``."""
        depends = [self._final_features, self.inputs.head_digest]
        return self._key({"balance": 1}, depends, [self.inputs.split.names])

    def of_class(self, stage: str, k: int) -> Key:
        """Return the key of what stage ``svm``, ``context``, ``bbox`` or ``calibration`` learns for class k."""
        inputs = self.inputs
        if stage == "calibration":
            return self._calibration(k)
        settings = self._settings(stage) | {"stage": stage, "norm": self.config.svm.norm}
        if stage == "bbox":
            settings["kind"] = "ridge"  # with joint boxes beside it or not
        head = inputs.head if inputs.sees_head(stage) else None
        head_key = None if head is None else [inputs.head_digest, head.layer]
        samples = inputs.train_pieces.samples
        objects = [sample.boxes[sample.labels == k].tolist() for sample in samples]
        not_looked_for = [n for n, sample in enumerate(samples) if not sample.was_looked_for([k])[0]]
        if stage in ("svm", "context") and not_looked_for:
            objects.append(not_looked_for)
        with_regions = [(n, sample) for n, sample in enumerate(samples) if len(sample.ignored)]
        ignored = [[n, sample.ignored_of(k).tolist()] for n, sample in with_regions if len(sample.ignored_of(k))]
        if stage in ("svm", "context") and ignored:
            objects.append({"ignored": ignored})
        if stage in ("svm", "context") and self.config.data.incomplete_labels:
            objects.append({"incomplete_labels": self._perhaps_missed(stage, k)})
        depends = [self._final_features, head_key, inputs.train.classes[k]]
        return self._key(settings, depends, [inputs.split_of(stage).names, objects])

    def _perhaps_missed(self, stage: str, k: int) -> list:
        """Return what the objects that the labels of class k perhaps miss depend on, beside the class's own objects.

        They are found by the SVMs' detections; objects of other classes, and difficult ones, count.
        """
        if stage == "context":
            return [self.of_class("svm", k).data]
        detection = asdict(replace(self.config.detection, context=0.0, flip=False))
        return [self._objects()[1:], self._difficult(), detection]

    def _difficult(self, k: int | None = None) -> list:
        """Return which objects of the training images, or of class k, are difficult: number and flags of each image."""
        pieces = enumerate(self.inputs.train_pieces)
        flags = ((n, sample.difficult[(sample.labels == k) | (k is None)].tolist()) for n, sample in pieces)
        return [[n, of_image] for n, of_image in flags if any(of_image)]

    def _calibration(self, k: int) -> Key:
        """Return the key of the detections that the probabilities of class k are learned from.

        With ``--keep`` they stay valid whatever the settings of detection and calibration are.
        """
        stages = [stage for stage in self.inputs.stages_with_maps() if stage in ("svm", "context", "bbox")]
        keys = [self.of_class(stage, k) for stage in stages]
        settings = [asdict(self.config.calibration), asdict(self.config.detection), asdict(self.config.bbox)]
        data = [[key.data for key in keys], settings]
        if difficult := self._difficult(k):  # such objects make a detection neither right nor wrong
            data.append(difficult)
        return self._key({"stage": "calibration"}, [key.recipe for key in keys], data)

    def is_done(self, path: Path, key: Key) -> bool:
        """Whether the result at ``path`` is valid for ``key``.

        Raises:
            SppdetError: with ``keep``, a result of other settings, which a new one would replace.
        """
        done = is_done(path, key, self.keep)
        if self.keep and not done and has_result(path):
            raise self._other_settings(path)
        return done

    def check_kept(self) -> None:
        """Check before any work that the run that is to be kept has these settings, and no class that would go.

        Raises:
            SppdetError: the settings that differ from the run's config.json, or the classes that would be lost.
        """
        if self._changes():
            raise self._other_settings(self.inputs.folder)
        model = self.inputs.folder / "model.json"
        known = read_json(model, classes=list)["classes"] if model.exists() else []
        if lost := [name for name in known if name not in self.inputs.train.classes]:
            raise SppdetError(
                f"--keep: {', '.join(lost)}: learned before, but not among the classes any more, so it would be lost; "
                "restore its annotations or data.classes, or leave --keep out"
            )

    def _other_settings(self, learned: Path) -> SppdetError:
        """Return the error for a result, or a run, of other settings."""
        return SppdetError(
            f"--keep: {learned} was learned with other settings{self._changes()}; give those of the run, or leave "
            "--keep out and learn all classes again"
        )

    def _changes(self) -> str:
        """Return the settings in which the run's config.json differs, for an error message; "" without such."""
        path = self.inputs.folder / "config.json"
        if not path.exists():
            return ""
        run = load(path)
        skipped = (*_INDEPENDENT, *self._unused())
        values = {key: attrgetter(key) for key in setting_keys() if not key.startswith(skipped)}
        changed = [f"{key}={_shown(value(run))}" for key, value in values.items() if value(run) != value(self.config)]
        return f" ({', '.join(changed)})" if changed else ""

    def _unused(self) -> list[str]:
        """Return the settings, or their beginnings, of stages that this run does not have."""
        c = self.config
        unused = [] if c.backbone.weights == "pretrain" else ["pretrain."]
        if c.end_to_end.enabled:
            return unused
        unused += [key for key in setting_keys() if key.startswith("end_to_end.") and key != "end_to_end.enabled"]
        return unused if "finetune" in self.inputs.stages_with_maps() else [*unused, "finetune."]

    def _key(self, settings: dict, depends: list, data: list) -> Key:
        """Return a key of a stage's settings, of all else that its recipe depends on, and of its images and objects."""
        return Key.of([settings, self.config.run.seed, depends], data)

    def _objects(self) -> list:
        """Return the number of classes and all objects of the training images."""
        pieces = self.inputs.train_pieces
        samples = [[sample.boxes.tolist(), sample.labels.tolist()] for sample in pieces]
        ignored = [
            [n, sample.ignored.tolist(), sample.ignored_labels.tolist()]
            for n, sample in enumerate(pieces)
            if len(sample.ignored)
        ]
        return [len(self.inputs.labels), samples, *([ignored] if ignored else [])]

    def _files(self, samples: Dataset) -> list:
        """Return the digest of each image's file, and the tiles that the images are."""
        digests = file_digests(sample.path for sample in samples)
        tiles = [sample.tile for sample in samples if sample.tile is not None]
        return [digests[sample.path] for sample in samples] + tiles

    def _settings(self, stage: str) -> dict:
        """Return the settings of a stage as its key holds them.

        ``flip`` is left out, as the names of the stage's images tell it; so are settings at the value of
        ``_AS_BEFORE``. Results that are older than these settings stay valid.
        """
        if stage == "context":
            return {name: getattr(self.config.svm, name) for name in image_svms.SETTINGS}
        names = _NAMES_IN_KEYS.get(stage, {})
        settings = {names.get(name, name): value for name, value in asdict(getattr(self.config, stage)).items()}
        if stage != "end_to_end":  # this training draws mirror images by itself
            settings.pop("flip")
        settings.pop("bank", None)  # made of the SVMs, which do not depend on it
        for name, value in _AS_BEFORE.items():
            if settings.get(name) == value:
                settings.pop(name)
        return settings

    def _features_of(self, backbone: Backbone) -> dict:
        """Return what the pooled vectors of windows depend on, apart from the images."""
        return {
            "proposals": SelectiveSearch.of(self.config.proposals).settings(),
            "backbone": backbone.settings(),
            "windows": self.inputs.pooled_features.description(),
        }

    @cached_property
    def _final_features(self) -> dict:
        """What the pooled vectors depend on, with the backbone that makes the maps."""
        return self._features_of(self.inputs.backbone)


def _digest(head: Head | None) -> str | None:
    """Return the digest of a head's weights; None for random ones."""
    return None if head is None else weights_digest(head)


def _shown(value: object) -> object:
    """Return a setting as a configuration has it: tuples as lists."""
    return list(value) if isinstance(value, tuple) else value
