"""The stages of training, in order; a stage whose result is still valid is skipped.

    pretrain    trunk from nothing, on the training objects (backbone.weights=pretrain) stages/pretrain.safetensors
    proposals   selective search on every image                                         cache/proposals
    end_to_end  trunk, fc6 and fc7 together (end_to_end.enabled)                        stages/end_to_end.safetensors
    maps        the backbone on every image and scale                                   cache/maps
    finetune    fc6 and fc7 on fixed conv layers (features with fc6 or fc7)             stages/finetune.safetensors
    svm         per-class SVMs with hard-negative mining                                stages/svm/CLASS.safetensors
    context     per-class SVMs of whole images (detection.context)                      stages/context/CLASS.safetensors
    bbox        per-class box regression                                                stages/bbox/CLASS.safetensors
    calibration detections in images that the SVMs have not seen               stages/calibration/CLASS.safetensors
    evaluate    detection on the test split                                             metrics.json, detections

All but the cache is written in the run's folder, where stages.json records what each stage cost.

`sppdet.training.stages` does the work of each; `sppdet.training.stage_inputs` holds what they read, and
`sppdet.training.stage_keys` what their results depend on.
"""

from __future__ import annotations

import logging
import shlex

import numpy as np

from sppdet.config import STAGES, Config
from sppdet.data import Dataset
from sppdet.detection import Detector, is_ensemble
from sppdet.evaluation import (
    check_names,
    forget_cost,
    read_costs,
    read_metrics,
    record_cost,
    stage_line,
    summary,
)
from sppdet.networks import check_network
from sppdet.training.estimates import estimate, log_plan, measure_speed, missing_maps
from sppdet.training.stage_inputs import StageInputs
from sppdet.training.stages import Stages
from sppdet.training.training_sizes import advice
from sppdet.utils import (
    Curves,
    Meter,
    Progress,
    SppdetError,
    active,
    counted,
    require_writable,
)

logger = logging.getLogger(__name__)

_TRAINS_NETWORK = {"pretrain", "end_to_end", "finetune"}
_CLASSES = 30  # named with their number of objects; the others are counted


class Pipeline:
    """The stages of one run.

    Args:
        config: all settings.
        keep: whether results learned with the same settings stay valid, though from other images or objects.
        data: training and test images; by default those that ``config.data`` names.
        name: of this run among several, in front of the names of its stages; such a run logs nothing of its stages, and
            writes no report.

    Attributes:
        inputs: what the stages read, and the files and keys of their results.
        stages: does the work of each stage.

    Raises:
        SppdetError: settings that cannot work, images or annotations that cannot be read, a folder of another kind of
            run, or, with ``keep``, a run of other settings. Nothing has been written then.
    """

    def __init__(self, config: Config, keep: bool = False, data: tuple[Dataset, Dataset] | None = None, name: str = ""):
        if keep and (config.classifier == "softmax" or (config.bbox.enabled and config.bbox.kind == "joint")):
            raise SppdetError(
                "--keep: a softmax and joint boxes are learned for all classes at once; with classifier=svm and "
                "bbox.kind=ridge a class can be added"
            )
        check_network(config)
        self.config, self.name, self.inputs = config, name, StageInputs(config, keep, data)
        self.stages = Stages(config, self.inputs, name)
        self._files, self._keys = self.inputs.files, self.inputs.keys
        folder = self.inputs.folder
        Curves.of(folder, config.run.curves)  # now: a missing package would be noticed after hours
        if is_ensemble(folder):
            raise SppdetError(
                f"{folder}: holds an ensemble of detectors, which training would replace; give another run.dir"
            )
        if (folder / "classifier.json").exists():
            raise SppdetError(f"{folder}: holds a classifier of images; give another run.dir")
        if keep:
            self._keys.check_kept()
        if not self.inputs.labels:
            raise SppdetError(
                f"{config.data.train_split}: its annotations have no object to learn; give another data.train_split"
            )
        check_names(self.inputs.test, config.data.test_split)  # now: at the end all results would be lost

    def run(self, last: str = STAGES[-1], force: bool = False) -> None:
        """Run every stage up to ``last`` whose result is not valid any more; log what will run, and the result.

        Args:
            last: one of `sppdet.config.STAGES`.
            force: run stage ``last`` even if its result is valid; with the final stage, run all stages again.

        Raises:
            SppdetError: a stage cannot do its work.
        """
        self.prepare(last)
        self.log_data()
        stages = self.waiting(last, force)
        if stages:
            speed = measure_speed(self.inputs) if self._can_measure(stages) else None
            estimates = estimate(self.inputs, stages, speed, force)
            log_plan(stages, estimates, self.config.workers)
            with Progress(estimates):
                self.run_stages(last, force)
        else:
            self.run_stages(last, force)
        if last == STAGES[-1]:
            self.log_result(read_metrics(self.inputs.folder))

    def prepare(self, last: str = STAGES[-1]) -> None:
        """Check that the network can be made and the run's folder written, before the work of hours.

        Raises:
            SppdetError: weights that are missing or do not fit, a missing device, or a folder that cannot be written.
        """
        if STAGES.index(last) > STAGES.index("proposals") and self.config.backbone.weights != "pretrain":
            _ = self.inputs.initial_backbone
        require_writable("run.dir", self.inputs.folder)

    def waiting(self, last: str = STAGES[-1], force: bool = False) -> list[str]:
        """Return the stages up to ``last`` that have something to do, in order.

        A stage that learns from the results of another one that is waiting counts as waiting, too.
        """
        stages: list[str] = []
        for stage in STAGES[: STAGES.index(last) + 1]:
            if not self._has(stage):
                continue
            forced = force and last in (stage, STAGES[-1])
            unknown = (stage != "proposals" and _TRAINS_NETWORK & {*stages}) or (stage == "evaluate" and stages)
            if forced or unknown or not self._is_valid(stage, stages):
                stages.append(stage)
        return stages

    def _has(self, stage: str) -> bool:
        """Whether this run has a stage."""
        if stage == "pretrain":
            return self.config.backbone.weights == "pretrain"
        if stage == "end_to_end":
            return self.config.end_to_end.enabled
        return stage in ("proposals", "maps", "evaluate", *self.inputs.stages_with_maps())

    def _is_valid(self, stage: str, waiting: list[str]) -> bool:
        """Whether a stage has nothing to do, as none of those before it trains a network."""
        c, inputs, keys, files = self.config, self.inputs, self._keys, self._files
        if stage == "pretrain":
            return keys.is_done(files.pretrained, keys.pretrain())
        if stage == "proposals":
            return not any(split.proposal_store.missing(split.names) for split in inputs.proposal_splits)
        if stage == "end_to_end":
            return keys.is_done(files.end_to_end, keys.end_to_end(inputs.network_head(c.end_to_end.dropout)))
        if stage == "maps":  # those of R-CNN's crops depend on the proposals
            return not (c.regions.crop != "none" and waiting) and not missing_maps(inputs)[0]
        if stage == "finetune":
            return keys.is_done(files.fine_tuned, keys.finetune(inputs.network_head(c.finetune.dropout)))
        if stage == "evaluate":
            return (inputs.folder / "metrics.json").exists()
        if c.features == "pool5+fc7" and waiting:  # fc7's factor is measured on maps that are not there yet
            return False
        return all(keys.is_done(files.of_class(stage, k), keys.of_class(stage, k)) for k in inputs.labels)

    def _can_measure(self, stages: list[str]) -> bool:
        """Whether the time of these stages can be told from a second of this machine."""
        c = self.config
        simple = c.regions.crop == "none" and c.features == "pool5"
        return simple and not _TRAINS_NETWORK & {*stages} and len(stages) > 1

    def run_stages(self, last: str = STAGES[-1], force: bool = False, first: str = STAGES[0]) -> None:
        """Run the stages from ``first`` on as `run` does, within the progress that is active."""
        folder, progress = self.inputs.folder, active()
        for stage in STAGES[STAGES.index(first) : STAGES.index(last) + 1]:
            if progress and self._has(stage):
                progress.begin(self.name + stage)
            with Meter() as meter:
                outcome = self.stages.run(stage, force and last in (stage, STAGES[-1]))
            if progress and self._has(stage):
                progress.end()
            if outcome is None:
                forget_cost(folder, stage)  # that of an earlier configuration
                if stage == last:
                    logger.info("%s: this configuration has no such stage", stage)
                continue
            cost = outcome.cost
            if outcome.computed and not outcome.recorded:
                record_cost(folder, stage, meter.cost() | cost)
            elif stage == last == "proposals":
                cost = self.stages.recall()  # the user asked for the proposals: tell how good they are
            if not self.name:
                logger.info(stage_line(stage, read_costs(folder).get(stage, {}) | cost, outcome.computed))
            if outcome.computed and stage in _TRAINS_NETWORK:
                self._estimate_rest(last)

    def _estimate_rest(self, last: str) -> None:
        """Estimate the stages after the training of a network, which alone tells how long the maps take."""
        stages, progress = self.waiting(last), active()
        if progress and self._can_measure(stages):
            progress.add(estimate(self.inputs, stages, measure_speed(self.inputs)))

    def detector(self) -> Detector:
        """Return the detector that the results of the stages make."""
        return self.stages.detector()

    def log_result(self, metrics: dict) -> None:
        """Log the content of metrics.json, where the model is, and what to do next."""
        folder = self.inputs.folder
        logger.info(summary(metrics))
        logger.info("the model is in %s; what to do next:", folder)
        quoted = shlex.quote(str(folder))
        logger.info("  sppdet detect PHOTO.jpg --model %s", quoted)
        logger.info("  sppdet evaluate %s --diagnose    which errors cost how much", quoted)

    def log_data(self) -> None:
        """Log the number of images and of objects per class of both splits, and images that are in both."""
        data, train, test = self.config.data, self.inputs.train, self.inputs.test
        for split, name in ((train, data.train_split), (test, data.test_split))[: 1 if test is train else 2]:
            labels = np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in split)])
            counts = np.bincount(labels, minlength=len(train.classes))
            shown = [f"{class_name} {count}" for class_name, count in zip(train.classes[:_CLASSES], counts)]
            more = len(counts) - len(shown)
            per_class = ", ".join([*shown, *([f"and {more} more classes"] if more else [])])
            images, objects = counted(len(split), "image"), counted(len(labels), "object")
            logger.info("%s: %s, %s: %s", name, images, objects, per_class)
        if remark := advice(train, self.inputs.tiles):
            logger.info(remark)
        shared = 0 if test is train else len({sample.path for sample in train} & {sample.path for sample in test})
        if shared:
            logger.warning(
                "%d images are both in %s and in %s: mAP will be too high",
                shared, data.train_split, data.test_split,
            )  # fmt: skip
