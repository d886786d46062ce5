"""The work of each stage of training: from what it reads to its result in a file, and what it cost.

`sppdet.training.pipeline` lists the stages and runs them in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sppdet.config import Config, to_dict
from sppdet.data import in_whole_image
from sppdet.detection import Detector, LinearSVMs
from sppdet.evaluation import (
    PERHAPS_MISSED,
    evaluate_run,
)
from sppdet.features import FeatureSplit, WindowFeatures, fill_each, fill_maps
from sppdet.networks import Cut, rank, wait_for_ranks
from sppdet.proposals import SelectiveSearch
from sppdet.training import bbox_regression, end_to_end, finetune, image_svms
from sppdet.training.bank import BANK_FILE, Bank, bank_origin, choose_windows, store_vectors, vectors_key
from sppdet.training.cached_result import Key, checkpoint_of, invalidate, is_done, write_result
from sppdet.training.calibration import fit_calibration, of_classes
from sppdet.training.estimates import map_splits
from sppdet.training.held_out import briefly, calibration_folds, hold_out, join_folds, of_files
from sppdet.training.locations import ClassWindows
from sppdet.training.mining import Miner
from sppdet.training.perhaps_missed import PerhapsMissed, all_folds, find_perhaps_missed, ignore_perhaps_missed
from sppdet.training.pretraining import pretrain
from sppdet.training.stage_inputs import StageInputs
from sppdet.training.training_sizes import trained_on
from sppdet.utils import (
    Checkpoint,
    Curves,
    Execution,
    atomic_write,
    counted,
    fingerprint,
    free_memory_gb,
    versions,
    write_json,
)

logger = logging.getLogger(__name__)

# Trains the classes of one stage: (images, features, scale of their vectors, classes, execution) -> the arrays of each
# class, by name.
TrainClasses = Callable[[FeatureSplit, WindowFeatures, float, list[int], Execution], list[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Outcome:
    """What a stage did.

    Attributes:
        computed: whether anything had to be computed.
        cost: what it cost besides time and memory, for stages.json.
        recorded: whether the cost is in stages.json already.
    """

    computed: bool
    cost: dict[str, Any] = field(default_factory=dict)
    recorded: bool = False


_SKIPPED = Outcome(computed=False)


class Stages:
    """The work of each stage of one run, and the detector that their results make.

    Args:
        config: all settings.
        inputs: what the stages read, and the files and keys of their results.
        name: of this run among several, see `sppdet.training.pipeline.Pipeline`.
    """

    def __init__(self, config: Config, inputs: StageInputs, name: str = ""):
        self.config, self.inputs, self.name = config, inputs, name
        self._files, self._keys = inputs.files, inputs.keys

    def run(self, stage: str, forced: bool) -> Outcome | None:
        """Run a stage unless its result is valid.

        Args:
            stage: one of `sppdet.config.STAGES`.
            forced: run it in any case.

        Returns:
            What was done; None if this run has no such stage.

        Raises:
            SppdetError: the stage cannot do its work.
        """
        stages: dict[str, Callable[[bool], Outcome | None]] = {
            "pretrain": self._pretrain,
            "proposals": self._proposals,
            "end_to_end": self._end_to_end,
            "maps": self._maps,
            "finetune": self._finetune,
            "svm": self._svm,
            "context": self._context,
            "bbox": self._bbox,
            "calibration": self._calibration,
            "evaluate": self._evaluate,
        }
        return stages[stage](forced)

    def detector(self) -> Detector:
        """Return the detector that the results of the stages make."""
        inputs, files = self.inputs, self._files
        calibrated = "calibration" in inputs.stages_with_maps()
        calibration = fit_calibration([files.held_out(k) for k in inputs.labels]) if calibrated else None
        return replace(self._without_calibration(), calibration=calibration)

    def _without_calibration(self) -> Detector:
        c, inputs, files = self.config, self.inputs, self._files
        return Detector(
            classes=inputs.train.classes,
            backbone=inputs.backbone,
            features=inputs.features,
            search=SelectiveSearch.of(c.proposals),
            classifier=files.softmax() if c.classifier == "softmax" else files.svms(),
            regressors=files.regressors(c.bbox.kind, inputs.features, inputs.head) if c.bbox.enabled else None,
            detection=c.detection,
            head=inputs.head,
            image_svms=files.svms("context") if "context" in inputs.stages_with_maps() else None,
            trained_on=trained_on(inputs.train_pieces, inputs.tiles),
        )

    def save(self) -> None:
        """Save the detector and its settings in the run's folder."""
        self.detector().save(self.inputs.folder)
        write_json(self.inputs.folder / "config.json", to_dict(self.config) | {"versions": versions()})

    def _execution(self, checkpoint: Checkpoint) -> Execution:
        """Return how a stage is carried out."""
        c = self.config
        least = Execution().memory_gb
        # After fc layers the last bits depend on which windows are computed together, so not on the memory of the day.
        automatic = max(least, free_memory_gb() / 3) if c.features == "pool5" else least
        curves = Curves.of(self.inputs.folder, c.run.curves)
        return Execution(c.run.seed, c.workers, c.memory_gb or automatic, checkpoint, curves)

    def _pretrain(self, forced: bool) -> Outcome | None:
        c, path = self.config, self._files.pretrained
        if c.backbone.weights != "pretrain":
            return None
        key = self._keys.pretrain()

        def train(execution: Execution) -> dict[str, Any]:
            trunk, accuracy = pretrain(
                self.inputs.train_pieces, c.backbone.name, c.backbone.precision, c.pretrain, c.pooling.levels, c.device,
                execution, Cut.of(c.backbone),
            )  # fmt: skip
            write_result(path, key, trunk.state_dict())
            return {"training_accuracy": round(accuracy, 3)}

        return self._train_network(path, key, forced, train)

    def _proposals(self, forced: bool) -> Outcome:
        search, workers = SelectiveSearch.of(self.config.proposals), self.config.workers
        splits = self.inputs.proposal_splits
        computed = fill_each(splits, lambda split: split.fill_proposals(search, workers, forced))
        if not computed:
            return _SKIPPED
        disk = sum(split.proposal_store.size(split.names) for split in splits)
        return Outcome(True, {"pictures": computed, "disk_mb": _megabytes(disk), **self.recall()})

    def recall(self) -> dict[str, dict[str, float | None]]:
        """Compute the recall of the proposals of both splits, which takes seconds on all of VOC."""
        train, test = self.inputs.proposal_splits
        return {"train": train.recall(self.config.workers), "test": test.recall(self.config.workers)}

    def _end_to_end(self, forced: bool) -> Outcome | None:
        c, inputs, path = self.config, self.inputs, self._files.end_to_end
        if not c.end_to_end.enabled:
            return None
        start = inputs.network_head(c.end_to_end.dropout)
        key = self._keys.end_to_end(start)

        def train(execution: Execution) -> dict[str, Any]:
            network, loss = end_to_end.train(
                inputs.proposal_splits[0], inputs.initial_backbone, inputs.pooled_features, c.end_to_end, execution,
                start,
            )  # fmt: skip
            if rank() == 0:
                classes = list(inputs.train.classes)
                write_result(path, key, network.state_dict(), head=network.head.description(), classes=classes)
            wait_for_ranks()  # before the checkpoint is deleted
            return {"loss": round(loss, 4)}

        return self._train_network(path, key, forced, train)

    def _maps(self, forced: bool) -> Outcome:
        splits = map_splits(self.inputs)
        computed = fill_maps(splits, self.inputs.backbone, self.config.workers, again=forced)
        if not computed:
            return _SKIPPED
        disk = sum(split.disk()[1] for split in splits)
        return Outcome(True, {"maps": computed, "disk_mb": _megabytes(disk)})

    def _finetune(self, forced: bool) -> Outcome | None:
        c, inputs, path = self.config, self.inputs, self._files.fine_tuned
        if "finetune" not in inputs.stages_with_maps():
            return None
        start = inputs.network_head(c.finetune.dropout)
        key = self._keys.finetune(start)

        def train(execution: Execution) -> dict[str, Any]:
            backbone, features = inputs.backbone, inputs.pooled_features
            half = backbone.half if features.device else backbone.bfloat16_on_cpu
            head, loss = finetune.train(
                inputs.split_of("finetune"), features, c.finetune, inputs.scale / c.svm.norm, half, execution, start,
            )  # fmt: skip
            tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
            write_result(path, key, tensors, head=head.description())
            return {"loss": None if loss is None else round(loss, 4)}

        return self._train_network(path, key, forced, train)

    def _train_network(
        self, path: Path, key: Key, forced: bool, train: Callable[[Execution], dict[str, Any]]
    ) -> Outcome:
        """Run a stage that trains by gradient unless its result is valid; ``train`` writes it and returns the cost."""
        if forced:
            invalidate(path)
        if self._keys.is_done(path, key):
            return _SKIPPED
        with checkpoint_of(path, key.data) as checkpoint:
            return Outcome(True, train(self._execution(checkpoint)))

    def _svm(self, forced: bool) -> Outcome | None:
        def train(
            split: FeatureSplit, features: WindowFeatures, scale: float, classes: list[int], execution: Execution
        ) -> list[dict[str, np.ndarray]]:
            miner = Miner(split, features, classes, self.config.svm, scale, execution)
            svms = miner.train()
            if self.config.data.incomplete_labels:
                svms = self._relearn(miner, svms)
            for number, k in enumerate(classes):
                windows = miner.windows(number).tensors()
                write_result(self._files.of_class("windows", k), self._keys.of_class("svm", k), windows)
            return _by_class(svms.weight, svms.bias[:, None])

        outcome = self._train_classes("svm", forced, train)
        if outcome is not None:
            self.keep_bank()
        if not self.name:
            self._list_perhaps_missed()
        return outcome

    def _relearn(self, miner: Miner, svms: LinearSVMs) -> LinearSVMs:
        """Find what the labels perhaps miss, store it, and return the SVMs of a miner's classes that ignore it."""
        c, inputs, images = self.config, self.inputs, len(self.inputs.train_pieces)
        detector = Detector(
            classes=tuple(inputs.train.classes[k] for k in miner.labels), backbone=inputs.backbone,
            features=miner.features, search=SelectiveSearch.of(c.proposals), classifier=svms, regressors=None,
            detection=replace(c.detection, context=0.0, flip=False), head=inputs.head,
        )  # fmt: skip
        windows = [miner.windows(number) for number in range(len(miner.labels))]
        folds = hold_out(
            miner.split, detector, windows, briefly(miner.problem),
            of_files(inputs.train_pieces.samples, partial(all_folds, seed=c.run.seed)), miner.execution,
        )  # fmt: skip
        perhaps_missed = find_perhaps_missed(folds, miner.labels, c.svm.negative_overlap)
        for k, of_class in zip(miner.labels, perhaps_missed):
            key = self._keys.of_class("svm", k)
            write_result(self._files.of_class("perhaps_missed", k), key, of_class.tensors())
        return miner.relearn(ignore_perhaps_missed(miner.split, images, miner.labels, perhaps_missed))

    def _ignoring_perhaps_missed(self, split: FeatureSplit) -> FeatureSplit:
        """Return the images of a stage after the SVMs; what their labels perhaps miss is ignored."""
        inputs = self.inputs
        if not self.config.data.incomplete_labels:
            return split
        perhaps_missed = [self._perhaps_missed(k) for k in inputs.labels]
        return ignore_perhaps_missed(split, len(inputs.train_pieces), inputs.labels, perhaps_missed)

    def _perhaps_missed(self, k: int) -> PerhapsMissed:
        """Return what the labels of class k perhaps miss; nothing for a class that was kept and learned without it."""
        found = is_done(self._files.of_class("perhaps_missed", k), self._keys.of_class("svm", k), False)
        return self._files.perhaps_missed(k) if found else PerhapsMissed.none()

    def _list_perhaps_missed(self) -> None:
        """Write what the labels perhaps miss for a person to look at, the surest first; remove an earlier list."""
        inputs, path = self.inputs, self.inputs.folder / PERHAPS_MISSED
        if not self.config.data.incomplete_labels:
            path.unlink(missing_ok=True)
            return
        rows = [(k, *row) for k in inputs.labels for row in self._perhaps_missed(k).rows()]
        rows.sort(key=lambda row: -row[-1])
        entries = []
        for k, i, box, margin in rows:
            image, box = in_whole_image(inputs.train_pieces[i], box)
            entries.append({"image": image, "class": inputs.train.classes[k], "box": box, "margin": margin})
        write_json(path, {"perhaps_missed": entries}, sealed=True)
        logger.info("%s perhaps without a label: %s lists them", counted(len(entries), "object"), path)

    def keep_bank(self) -> None:
        """Write the bank of the trained SVMs, unless it is there."""
        c, inputs = self.config, self.inputs
        keys = [self._keys.of_class("svm", k).data for k in inputs.labels]
        origin = fingerprint([inputs.train.classes, keys, c.svm.bank, asdict(c.bbox), asdict(c.calibration)])
        if self.name or bank_origin(inputs.folder) == origin:
            return
        (inputs.folder / BANK_FILE).unlink(missing_ok=True)  # of other SVMs
        if not c.svm.bank:
            return
        split = self._ignoring_perhaps_missed(inputs.split_of("svm"))
        execution, svms = Execution(c.run.seed, c.workers), self._files.svms()
        features, scale = inputs.learns_from("svm")
        miner = Miner(split, features, inputs.labels, c.svm, scale, execution)
        locations, labels = choose_windows(split, svms, miner, c.svm.bank, execution.seed)
        if not len(locations):
            return
        bank = Bank(
            inputs.train.classes, store_vectors(split, features, locations, execution), labels, c.svm.bank,
            vectors_key(inputs.backbone, features, SelectiveSearch.of(c.proposals), inputs.head),
            (scale, inputs.learns_from("bbox")[1]), c.svm, c.bbox, c.calibration, c.run.seed, origin,
        )  # fmt: skip
        atomic_write(inputs.folder / BANK_FILE, bank.save)

    def _context(self, forced: bool) -> Outcome | None:
        def train(
            split: FeatureSplit, features: WindowFeatures, scale: float, classes: list[int], execution: Execution
        ) -> list[dict[str, np.ndarray]]:
            split = self._ignoring_perhaps_missed(split)
            svms = image_svms.train(split, features, classes, self.config.svm, scale, execution)
            return _by_class(svms.weight, svms.bias[:, None])

        return self._train_classes("context", forced, train)

    def _bbox(self, forced: bool) -> Outcome | None:
        def train(
            split: FeatureSplit, features: WindowFeatures, scale: float, classes: list[int], execution: Execution
        ) -> list[dict[str, np.ndarray]]:
            regressors = bbox_regression.train(split, features, classes, self.config.bbox, scale, execution)
            return _by_class(regressors.weight, regressors.bias)

        return self._train_classes("bbox", forced, train)

    def _calibration(self, forced: bool) -> Outcome | None:
        def train(
            split: FeatureSplit, features: WindowFeatures, scale: float, classes: list[int], execution: Execution
        ) -> list[dict[str, np.ndarray]]:
            split, samples = self._ignoring_perhaps_missed(split), self.inputs.train_pieces.samples
            miner = Miner(split, features, classes, self.config.svm, scale, execution)
            detector = of_classes(self._without_calibration(), classes)
            folds = hold_out(
                split, detector, self._windows(miner, detector), briefly(miner.problem),
                calibration_folds(samples, self.config.calibration, execution.seed), execution,
            )  # fmt: skip
            return [of_class.tensors() for of_class in join_folds(folds, classes)]

        return self._train_classes("calibration", forced, train)

    def _windows(self, miner: Miner, detector: Detector) -> list[ClassWindows]:
        """Return the windows that the SVMs were fitted to; for SVMs of earlier versions they are collected anew.

        Args:
            miner: of these classes; its cache is not used yet.
            detector: of these classes.
        """
        files, keys = self._files, self._keys
        if all(is_done(files.of_class("windows", k), keys.of_class("svm", k), False) for k in miner.labels):
            return [files.windows(k) for k in miner.labels]
        assert isinstance(detector.classifier, LinearSVMs)
        miner.collect_windows(detector.classifier)
        return [miner.windows(number) for number in range(len(miner.labels))]

    def _train_classes(self, stage: str, forced: bool, train: TrainClasses) -> Outcome | None:
        """Run a stage with one result per class: train the classes whose result is missing or not valid."""
        inputs, names = self.inputs, self.inputs.train.classes
        if stage not in inputs.stages_with_maps():
            return None
        paths = [self._files.of_class(stage, k) for k in inputs.labels]
        keys = [self._keys.of_class(stage, k) for k in inputs.labels]
        folder = self._files.folder / stage
        if forced:
            for path in (folder, *paths):  # the checkpoint of the stage is named after the folder
                invalidate(path)
        missing = [k for k in inputs.labels if not self._keys.is_done(paths[k], keys[k])]
        if not missing:
            if (
                self._keys.keep
                and stage == "svm"
                and not all(is_done(path, key, False) for path, key in zip(paths, keys))
            ):
                logger.warning(
                    "--keep: there is no new class, so that nothing is learned from new or changed images; leave "
                    "--keep out to learn from them"
                )
            return _SKIPPED
        if len(missing) < len(names):
            logger.info("%s: learning only %s", stage, ", ".join(names[k] for k in missing))
        features, scale = inputs.learns_from(stage)
        with checkpoint_of(folder, fingerprint([keys[k].data for k in missing])) as checkpoint:
            results = train(inputs.split_of(stage), features, scale, missing, self._execution(checkpoint))
            for k, arrays in zip(missing, results):
                write_result(paths[k], keys[k], arrays)
        return Outcome(True, {"classes": len(missing)})

    def _evaluate(self, forced: bool) -> Outcome:
        path = self.inputs.folder / "metrics.json"
        before = path.stat().st_mtime_ns if path.exists() else None
        self.save()
        evaluate_run(self.config, force=forced, dataset=self.inputs.test, report=not self.name)
        return Outcome(path.stat().st_mtime_ns != before, recorded=True)


def _by_class(weights: np.ndarray, biases: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return the weights and biases of each class as the arrays of its result."""
    return [{"weight": weight, "bias": bias} for weight, bias in zip(weights, biases)]


def _megabytes(count: int) -> float:
    """Return bytes as megabytes, rounded for stages.json."""
    return round(count / 2**20, 1)
