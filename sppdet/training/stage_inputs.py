"""What the stages of training read, and what their results depend on.

A result is keyed by everything it depends on; a class's SVM by the images and its own objects, so a class added to
the annotations is trained alone. With ``keep`` one with new images is too: what has been learned with these settings
stays, whatever images and objects it was learned from.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

from safetensors.torch import load_file

from sppdet.config import Config, keys, load
from sppdet.data import load_split
from sppdet.features import (
    CachedSplit,
    Crop,
    CropFeatures,
    FeatureSplit,
    PyramidFeatures,
    WindowFeatures,
    add_features,
    open_proposals,
)
from sppdet.networks import Backbone, Head, network_state, restore_trunk, weights_digest
from sppdet.proposals import SelectiveSearch
from sppdet.training import image_svms as context
from sppdet.training.cached_result import Key, finish, forget, is_done, is_there
from sppdet.training.mining import feature_scale
from sppdet.training.stage_files import StageFiles
from sppdet.utils import SppdetError, entries_under, file_digest, read_json

# Settings that no class's results depend on, or that begin so.
_FREE = ("data.", "run.dir", "run.cache", "detection.", "workers", "memory_gb", "device")


class StageInputs:
    """One run's images, networks and features, each made when it is first asked for, and the keys of its results.

    Args:
        keep: results learned with the same settings stay, though from other images or objects.

    Attributes:
        train, test: the images and their objects.
        labels: the classes' numbers.
        learned: the files of what the stages have learned.
    """

    def __init__(self, config: Config, keep: bool = False):
        self.config, self.keep = config, keep
        self.train = load_split(config, config.data.train_split, limit=config.data.limit_train)
        self.test = load_split(config, config.data.test_split, self.train.classes, config.data.limit_test)
        self.labels = list(range(len(self.train.classes)))
        self.folder = Path(config.run.dir)
        self.learned = StageFiles(self.folder / "stages", self.train.classes)

    @cached_property
    def initial(self) -> Backbone:
        """The backbone as it is before end-to-end training."""
        settings = self.config.backbone
        weights = str(self.learned.pretrained) if settings.weights == "pretrain" else settings.weights
        return Backbone.create(settings.name, weights, self.config.device, settings.precision, self.config.run.seed)

    @cached_property
    def backbone(self) -> Backbone:
        """What makes the maps."""
        if not self.config.end_to_end.enabled:
            return self.initial
        trunk = restore_trunk(self.initial.name, entries_under(load_file(self.learned.end_to_end), "trunk."))
        return Backbone.wrap(self.initial.name, trunk, self.config.device, self.config.backbone.precision)

    @cached_property
    def proposal_splits(self) -> tuple[CachedSplit, CachedSplit]:
        """Training and test images with their cache, for what comes before the maps."""
        cache, search = self.config.run.cache, SelectiveSearch.of(self.config.proposals)
        return open_proposals(self.train, cache, search), open_proposals(self.test, cache, search)

    @cached_property
    def splits(self) -> tuple[FeatureSplit, FeatureSplit]:
        """The same with the maps of the final backbone."""
        cache, (train, test) = self.config.run.cache, self.proposal_splits
        backbone, features = self.backbone, self.pooled_features
        return add_features(train, cache, backbone, features), add_features(test, cache, backbone, features)

    @property
    def split(self) -> FeatureSplit:
        """The training images."""
        return self.splits[0]

    @cached_property
    def mirrored_split(self) -> FeatureSplit:
        """The same with their mirror images."""
        return self.split.with_mirror_images()

    def learning(self) -> list[str]:
        """The stages that learn from the training images' maps."""
        c = self.config
        stages = {
            "finetune": c.features != "pool5" and not c.end_to_end.enabled,
            "svm": c.classifier == "svm",
            "context": c.detection.context > 0,
            "bbox": c.bbox.enabled and c.bbox.kind != "joint",
        }
        return [stage for stage, wanted in stages.items() if wanted]

    def split_of(self, stage: str) -> FeatureSplit:
        """What one of them learns from."""
        section = self.config.svm if stage == "context" else getattr(self.config, stage)
        return self.mirrored_split if section.flip else self.split

    @cached_property
    def pooled_features(self) -> WindowFeatures:
        regions, pooling = self.config.regions, self.config.pooling
        if regions.crop != "none":
            crop = Crop(regions.crop, regions.crop_size, regions.context)
            return CropFeatures(channels=self.initial.channels, crop=crop, levels=tuple(pooling.levels))
        return PyramidFeatures.create(self.initial, regions, pooling)

    @cached_property
    def scale(self) -> float:
        """What brings pooled vectors to the norm of the SVMs."""
        return self._scale(self.pooled_features)

    def _scale(self, features: WindowFeatures) -> float:
        run = self.config.run
        return feature_scale(self.split, features, self.config.svm.norm, run.seed, self.config.workers)

    @cached_property
    def head(self) -> Head | None:
        if self.config.features == "pool5":
            return None
        path = self.learned.end_to_end if self.config.end_to_end.enabled else self.learned.fine_tuned
        description = read_json(path.with_suffix(".json"))["head"] | {"layer": self.config.features}
        inputs, tensors = self.pooled_features.pooled_dimension, entries_under(load_file(path), "head.")
        head = Head.restore(inputs, description, tensors, self.backbone.bfloat16_on_cpu)
        if ranks := self.config.svd_ranks:  # what is learned behind it is learned from what it gives in detection
            head = head.truncated([*ranks, 0][:2])
        if head.concat_pooled:
            head.balance = self._balance(head)
        return head

    def _balance(self, head: Head) -> float:
        """What brings fc7 to the pooled vectors' norm. Stored, as the SVMs learned so far are right for it alone."""
        path = self.learned.balance
        key = self._key({"balance": 1}, [self._shared_key, weights_digest(head)], [self.split.names])
        if not self.is_done(path, key):
            alone = replace(self.pooled_features.under(head), concat_pooled=False)
            finish(path, key, {"balance": self._scale(alone) / self.scale})
        return float(load_file(path)["balance"])

    @cached_property
    def features(self) -> WindowFeatures:
        """What the SVMs see."""
        return self.pooled_features if self.head is None else self.pooled_features.under(self.head)

    @cached_property
    def features_scale(self) -> float:
        """What brings vectors with the head's to the norm of the SVMs."""
        return self._scale(self.features)

    def _sees_head(self, stage: str) -> bool:
        """Whether ``svm``, ``context`` or ``bbox`` learns from the head's vectors. Box regression is of the pooled
        ones, as in the originals, but where the SVMs see both, so does it, and one product serves them."""
        return self.features.concat_pooled if stage == "bbox" else self.head is not None

    def learns_from(self, stage: str) -> tuple[WindowFeatures, float]:
        """The vectors that one of these stages learns from, and what brings them to the norm of the SVMs."""
        return (self.features, self.features_scale) if self._sees_head(stage) else (self.pooled_features, self.scale)

    def network_head(self, dropout: float) -> Head | None:
        """The fc layers that training begins with, where they are not random."""
        c = self.config
        if c.finetune.init == "random":
            return None
        state = network_state(c.backbone.name, c.backbone.weights)
        return Head.of_network(c.backbone.name, state, dropout)

    # What results depend on

    def is_done(self, path: Path, key: Key, again: bool = False) -> bool:
        """Whether the result at ``path`` is there; it is forgotten first if it is to be made ``again``.

        Raises:
            SppdetError: with ``keep``, it is of other settings, and would be lost.
        """
        if again:
            forget(path)
        done = is_done(path, key, self.keep)
        if self.keep and not done and is_there(path):
            raise self._other_settings(path)
        return done

    def check_kept(self) -> None:
        """Before any work: are the settings those of the run that is to be kept?

        Raises:
            SppdetError: naming those that are not.
        """
        if self._changes():
            raise self._other_settings(self.folder)

    def _other_settings(self, what: Path) -> SppdetError:
        return SppdetError(
            f"--keep: {what} was learned with other settings{self._changes()}; give those of the run, or leave "
            "--keep out and learn all classes again"
        )

    def _changes(self) -> str:
        """What config.json, if there is one, has otherwise: for an error's line."""
        path = self.folder / "config.json"
        if not path.exists():
            return ""
        before = load(path)

        def shown(value):
            return list(value) if isinstance(value, tuple) else value

        skipped = (*_FREE, *self._idle())
        values = {key: attrgetter(key) for key in keys() if not key.startswith(skipped)}
        changed = [f"{key}={shown(of(before))}" for key, of in values.items() if of(before) != of(self.config)]
        return f" ({', '.join(changed)})" if changed else ""

    def _idle(self) -> list[str]:
        """How the settings of stages begin that this run does not have."""
        c = self.config
        idle = [] if c.backbone.weights == "pretrain" else ["pretrain."]
        if c.end_to_end.enabled:
            return idle
        idle += [key for key in keys() if key.startswith("end_to_end.") and key != "end_to_end.enabled"]
        return idle if "finetune" in self.learning() else [*idle, "finetune."]

    def pretrain_key(self) -> Key:
        c = self.config
        settings = {"pretrain": asdict(c.pretrain), "levels": tuple(c.pooling.levels)}
        settings |= {"name": c.backbone.name, "precision": c.backbone.precision}
        return self._key(settings, [], [self._objects, [file_digest(sample.path) for sample in self.train]])

    def end_to_end_key(self, start: Head | None) -> Key:
        """Of a training whose fc layers begin as ``start``."""
        features = self._features_key(self.initial)
        for name in ("scales", "target"):  # those of the maps; training has its own
            features["windows"].pop(name, None)
        data = [self.proposal_splits[0].names, self._objects, self.train.classes]  # by whose names its boxes are found
        return self._key({"end_to_end": asdict(self.config.end_to_end)}, [features, _digest(start)], data)

    def finetune_key(self, start: Head | None) -> Key:
        """Likewise."""
        settings = {"finetune": self._settings("finetune"), "norm": self.config.svm.norm}
        return self._key(settings, [self._shared_key, _digest(start)], [self.split_of("finetune").names, self._objects])

    def class_key(self, stage: str, k: int) -> Key:
        """Of what ``svm``, ``context`` or ``bbox`` learns for class k."""
        settings = self._settings(stage) | {"stage": stage, "norm": self.config.svm.norm}
        if stage == "bbox":
            settings["kind"] = "ridge"  # with joint boxes or without
        head = [self._head_digest, self.head.layer] if self._sees_head(stage) else None
        objects = [sample.boxes[sample.labels == k].tolist() for sample in self.train]
        depends = [self._shared_key, head, self.train.classes[k]]
        return self._key(settings, depends, [self.split_of(stage).names, objects])

    def _key(self, settings: dict, depends: list, data: list) -> Key:
        return Key.of([settings, self.config.run.seed, depends], data)

    @property
    def _objects(self) -> list:
        return [len(self.labels), [[s.boxes.tolist(), s.labels.tolist()] for s in self.train]]

    def _settings(self, stage: str) -> dict:
        """Those of a stage. Whether it learns from mirror images is told by the names of its images, and what does
        nothing is left out: the results of versions before it hold."""
        if stage == "context":
            return {name: getattr(self.config.svm, name) for name in context.SETTINGS}
        settings = asdict(getattr(self.config, stage))
        settings.pop("flip")
        if settings.get("positive_overlap") == 1:
            settings.pop("positive_overlap")
        return settings

    def _features_key(self, backbone: Backbone) -> dict:
        return {
            "proposals": SelectiveSearch.of(self.config.proposals).settings(),
            "backbone": backbone.settings(),
            "windows": self.pooled_features.description(),
        }

    @cached_property
    def _shared_key(self) -> dict:
        return self._features_key(self.backbone)

    @cached_property
    def _head_digest(self) -> str | None:
        return _digest(self.head)


def _digest(head: Head | None) -> str | None:
    return None if head is None else weights_digest(head)
