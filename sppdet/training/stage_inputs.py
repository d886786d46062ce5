"""What the stages of training read: images, networks and window features."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from sppdet.config import Config
from sppdet.data import Dataset, Tiles, load_split, tile_dataset
from sppdet.features import (
    CachedSplit,
    CropFeatures,
    FeatureSplit,
    PyramidFeatures,
    WindowFeatures,
    add_features,
    open_proposals,
)
from sppdet.networks import Backbone, Cut, Head, network_state, precision_of_fixed, restore_trunk, weights_digest
from sppdet.proposals import SelectiveSearch
from sppdet.training.cached_result import read_result, write_result
from sppdet.training.stage_files import StageFiles
from sppdet.training.stage_keys import StageKeys
from sppdet.training.vector_norm import feature_scale
from sppdet.utils import Execution, entries_under, errors_naming, fingerprint, read_json


class StageInputs:
    """The images, networks and features of one run.

    The images are read at once; networks and features are made when they are first asked for, so that a stage works
    without files that it does not need.

    Args:
        config: all settings.
        keep: whether results learned with the same settings stay valid, though from other images or objects.
        data: training and test images; by default those that ``config.data`` names.

    Attributes:
        train: the training images and their objects.
        test: the test images and their objects.
        tiles: how large images are cut (``data.tiles``); None: not at all.
        train_pieces: what is learned from: the training images, or their tiles.
        test_pieces: the test images, or their tiles.
        labels: the numbers of the K classes, 0 to K - 1.
        folder: the run's folder.
        files: the files of what the stages have learned.
        keys: what the stages' results depend on.

    Raises:
        SppdetError: the images or their annotations cannot be read.
    """

    def __init__(self, config: Config, keep: bool = False, data: tuple[Dataset, Dataset] | None = None):
        self.config = config
        self.train, self.test = data or _load(config)
        self.tiles = Tiles.of(config.data)
        self.train_pieces, self.test_pieces = (tile_dataset(images, self.tiles) for images in (self.train, self.test))
        self.labels = list(range(len(self.train.classes)))
        self.folder = Path(config.run.dir)
        self.files = StageFiles(self.folder / "stages", self.train.classes)
        self.keys = StageKeys(self, keep)

    # Networks

    @cached_property
    def initial_backbone(self) -> Backbone:
        """The backbone before end-to-end training."""
        settings = self.config.backbone
        weights = str(self.files.pretrained) if settings.weights == "pretrain" else settings.weights
        precision, engine = settings.precision, settings.engine
        if self.config.end_to_end.enabled:  # neither ONNX Runtime nor 8-bit integers can be trained
            precision, engine = "auto" if precision == "int8" else precision, "torch"
        device, seed = self.config.device, self.config.run.seed
        return Backbone.create(settings.name, weights, device, precision, seed, Cut.of(settings), engine)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone that makes the feature maps: after end-to-end training, where the run has it."""
        if not self.config.end_to_end.enabled:
            return self.initial_backbone
        cut, device, settings = self.initial_backbone.cut, self.config.device, self.config.backbone
        name, engine = settings.name, settings.engine
        trunk = restore_trunk(name, entries_under(read_result(self.files.end_to_end), "trunk."), cut)
        precision = precision_of_fixed(name, settings.weights, device, settings.precision, engine)
        return Backbone.wrap(name, trunk, device, precision, cut, engine)

    @cached_property
    def _whole_head(self) -> Head | None:
        """The trained fc layers before they are truncated; None for features ``pool5``."""
        if self.config.features == "pool5":
            return None
        path = self.files.end_to_end if self.config.end_to_end.enabled else self.files.fine_tuned
        note = path.with_suffix(".json")
        description = read_json(note, head=dict)["head"] | {"layer": self.config.features}
        inputs, tensors = self.pooled_features.pooled_dimension, entries_under(read_result(path), "head.")
        with errors_naming(note, "remove it, and the same command learns the layers again"):
            return Head.restore(inputs, description, tensors, self.backbone.bfloat16_on_cpu)

    @cached_property
    def head(self) -> Head | None:
        """The trained fc layers that the classifier sees; None for features ``pool5``.

        Truncated to ``svd_ranks`` at once: SVMs and boxes are learned from the vectors that detection will compute.
        """
        head = self._whole_head
        if head is None:
            return None
        if ranks := self.config.svd_ranks:
            head = head.truncated([*ranks, 0][:2])
        if head.concat_pooled:
            head.balance = self._balance(head)
        return head

    @cached_property
    def head_digest(self) -> str | None:
        """The digest of the trained fc layers and their ranks; None without a head.

        Not of the truncated layers, whose last bits depend on the machine and its number of threads.
        """
        if self._whole_head is None:
            return None
        digest, ranks = weights_digest(self._whole_head), self.config.svd_ranks
        return fingerprint([digest, ranks]) if ranks else digest

    def network_head(self, dropout: float) -> Head | None:
        """Return the network's own fc layers, which training begins with; None where it begins with random weights."""
        c = self.config
        if c.finetune.init == "random":
            return None
        state = network_state(c.backbone.name, c.backbone.weights)
        return Head.of_network(c.backbone.name, state, dropout)

    # Images with what the cache holds of them

    @cached_property
    def proposal_splits(self) -> tuple[CachedSplit, CachedSplit]:
        """Training and test images with their proposals; no network is needed."""
        cache, search = self.config.run.cache, SelectiveSearch.of(self.config.proposals)
        return open_proposals(self.train_pieces, cache, search), open_proposals(self.test_pieces, cache, search)

    @cached_property
    def splits(self) -> tuple[FeatureSplit, FeatureSplit]:
        """Training and test images with their proposals and feature maps."""
        cache, backbone, features = self.config.run.cache, self.backbone, self.pooled_features
        train, test = self.proposal_splits
        return add_features(train, cache, backbone, features), add_features(test, cache, backbone, features)

    @property
    def split(self) -> FeatureSplit:
        """The training images with their proposals and feature maps."""
        return self.splits[0]

    @cached_property
    def mirrored_split(self) -> FeatureSplit:
        """The training images and their mirror images, with proposals and feature maps."""
        return self.split.with_mirror_images()

    def stages_with_maps(self) -> list[str]:
        """Return the stages of this run that learn from the feature maps of the training images."""
        c = self.config
        stages = {
            "finetune": c.features != "pool5" and not c.end_to_end.enabled,
            "svm": c.classifier == "svm",
            "context": c.detection.context > 0,
            "bbox": c.bbox.enabled and c.bbox.kind != "joint",
            "calibration": c.classifier == "svm" and c.calibration.folds > 0,
        }
        return [stage for stage, enabled in stages.items() if enabled]

    def split_of(self, stage: str) -> FeatureSplit:
        """Return the training images of one of `stages_with_maps`, with mirror images if it learns from them."""
        flip = {"finetune": self.config.finetune.flip, "bbox": self.config.bbox.flip}.get(stage, self.config.svm.flip)
        return self.mirrored_split if flip else self.split

    # Features

    @cached_property
    def pooled_features(self) -> WindowFeatures:
        """The pooled vectors of windows."""
        regions = self.config.regions
        kind = PyramidFeatures if regions.crop == "none" else CropFeatures
        return kind.create(self.initial_backbone, regions, self.config.pooling)

    @cached_property
    def features(self) -> WindowFeatures:
        """The vectors that the classifier sees: pooled, of the head, or both."""
        return self.pooled_features if self.head is None else self.pooled_features.under(self.head)

    @cached_property
    def scale(self) -> float:
        """The factor that brings pooled vectors to the norm of the SVMs, ``svm.norm``."""
        return self._scale(self.pooled_features)

    @cached_property
    def features_scale(self) -> float:
        """The factor that brings the vectors that the classifier sees to the norm of the SVMs."""
        return self._scale(self.features)

    def sees_head(self, stage: str) -> bool:
        """Whether stage ``svm``, ``context``, ``bbox`` or ``calibration`` learns from the vectors of the head.

        Box regression learns from pooled vectors alone, as in the original programs: fc7 knows the training images so
        well that a regression from it fits others less (docs/experiments/backbones.md).
        """
        return self.head is not None and stage != "bbox"

    def learns_from(self, stage: str) -> tuple[WindowFeatures, float]:
        """Return the features that stage ``svm``, ``context`` or ``bbox`` learns from, and their scale."""
        return (self.features, self.features_scale) if self.sees_head(stage) else (self.pooled_features, self.scale)

    def _scale(self, features: WindowFeatures) -> float:
        """Compute the factor that brings the vectors of ``features`` to the norm of the SVMs."""
        c = self.config
        return feature_scale(self.split, features, c.svm.norm, Execution(c.run.seed, c.workers))

    def _balance(self, head: Head) -> float:
        """Return the factor that scales fc7 to the norm of the pooled vectors.

        Saved, because trained SVMs are valid only with it.
        """
        path, key = self.files.balance, self.keys.balance()
        if not self.keys.is_done(path, key):
            fc7 = replace(self.pooled_features.under(head), concat_pooled=False)
            write_result(path, key, {"balance": self._scale(fc7) / self.scale})
        return float(read_result(path)["balance"])


def _load(config: Config) -> tuple[Dataset, Dataset]:
    """Read the training and the test images that a configuration names."""
    train = load_split(config, config.data.train_split, limit=config.data.limit_train)
    return train, load_split(config, config.data.test_split, train.classes, config.data.limit_test)
