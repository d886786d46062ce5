"""The stages of training, in order, each skipped when its result is there already.

    pretrain   backbone weights from the training objects (only for backbone.weights=pretrain)
    proposals  selective search on every image                          -> cache/proposals
    end_to_end trunk, fc6 and fc7 learned together (where asked for)      -> RUN/stages/end_to_end.safetensors
    maps       the backbone on every image and scale                    -> cache/maps
    finetune   fc6 and fc7 (for features fc6 or fc7, conv layers fixed)   -> RUN/stages/finetune.safetensors
    svm        per-class SVMs with hard-negative mining                   -> RUN/stages/svm/CLASS.safetensors
    context    per-class SVMs of whole images (where asked for)         -> RUN/stages/context/CLASS.safetensors
    bbox       per-class box regression                                   -> RUN/stages/bbox/CLASS.safetensors
    evaluate   detection on the test split                                -> RUN/metrics.json, RUN/detections

What a stage reads and what its result depends on stands in ``inputs``. RUN/stages.json records what each stage cost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sppdet.config import STAGES, Config, to_dict
from sppdet.detection import Detector, is_ensemble
from sppdet.evaluation import check_names, evaluate_run, read_costs, stage_line, summary
from sppdet.features import fill_each, fill_maps
from sppdet.networks import check_network
from sppdet.proposals import SelectiveSearch
from sppdet.training import bbox_regression, end_to_end, finetune
from sppdet.training import image_svms as context
from sppdet.training.cached_result import Key, checkpoint_of, finish, forget
from sppdet.training.mining import Miner
from sppdet.training.pretraining import pretrain
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils import (
    Checkpoint,
    Execution,
    Meter,
    SppdetError,
    fingerprint,
    read_json,
    require_writable,
    versions,
    write_json,
)


class Pipeline:
    """The stages of one run.

    Args:
        keep: results learned with the same settings stay, though from other images or objects.

    Attributes:
        inputs: what the stages read, and where they keep what they have learned.
    """

    def __init__(self, config: Config, log: Callable[[str], None] = print, keep: bool = False):
        if keep and (config.classifier == "softmax" or (config.bbox.enabled and config.bbox.kind == "joint")):
            raise SppdetError(
                "--keep: a softmax and joint boxes are learned for all classes at once; with classifier=svm and "
                "bbox.kind=ridge a class can be added"
            )
        check_network(config)
        self.config, self.log, self.inputs = config, log, StageInputs(config, keep)
        if is_ensemble(self.inputs.folder):
            raise SppdetError(
                f"{self.inputs.folder}: holds detectors combined, which training would replace; give another run.dir"
            )
        if (self.inputs.folder / "classifier.json").exists():
            raise SppdetError(f"{self.inputs.folder}: holds a classifier of images; give another run.dir")
        if keep:
            self.inputs.check_kept()
        if not self.inputs.labels:
            raise SppdetError(f"{config.data.train_split}: there is no object in its annotations to learn")
        check_names(self.inputs.test, config.data.test_split)  # the results' files could not be written in the end

    def run(self, last: str = STAGES[-1], force: bool = False) -> None:
        """Every stage up to ``last``; ``force`` does ``last`` again (or, if it is the final one, all of them)."""
        folder = self.inputs.folder
        require_writable("run.dir", folder)
        self._log_data()
        for stage in STAGES[: STAGES.index(last) + 1]:
            again = force and (stage == last or last == STAGES[-1])
            with Meter() as meter:
                cost = getattr(self, f"_{stage}")(again)
            costs = read_costs(folder)
            if cost is None:
                if costs.pop(stage, None):  # of another configuration
                    write_json(folder / "stages.json", costs)
                if stage == last:
                    self.log(f"{stage}: this configuration has no such stage")
                continue
            if cost.pop("computed"):
                write_json(folder / "stages.json", costs | {stage: meter.cost() | cost})
            if stage == last == "proposals" and "train" not in cost:
                cost |= self._recall()  # what was asked for
            self.log(stage_line(stage, read_costs(folder).get(stage, {}) | cost))
        if last == STAGES[-1]:
            self.log(summary(read_json(folder / "metrics.json")))

    def _log_data(self) -> None:
        data, train, test = self.config.data, self.inputs.train, self.inputs.test
        for split, name in ((train, data.train_split), (test, data.test_split)):
            labels = np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in split)])
            counts = np.bincount(labels, minlength=len(train.classes))
            listed = ", ".join(f"{own} {count}" for own, count in zip(train.classes, counts))
            self.log(f"{name}: {len(split)} images, {len(labels)} objects: {listed}")
        if shared := len({sample.path for sample in train} & {sample.path for sample in test}):
            self.log(f"warning: {shared} images are in {data.train_split} and in {data.test_split}: mAP will flatter")

    def _execution(self, checkpoint: Path, key: Key) -> Execution:
        """Return how a stage with this checkpoint and key is carried out."""
        c = self.config
        return Execution(c.run.seed, c.workers, c.memory_gb, Checkpoint(checkpoint, key.data))

    # The stages. Each returns what it cost besides time and memory, with computed=False if all was there.

    def _pretrain(self, again: bool) -> dict | None:
        c, path = self.config, self.inputs.learned.pretrained
        if c.backbone.weights != "pretrain":
            return None
        key = self.inputs.pretrain_key()
        if self.inputs.is_done(path, key, again):
            return {"computed": False}
        with checkpoint_of(path) as checkpoint:
            trunk, accuracy = pretrain(
                self.inputs.train, c.backbone.name, c.backbone.precision, c.pretrain, tuple(c.pooling.levels),
                c.device, self._execution(checkpoint, key),
            )  # fmt: skip
            finish(path, key, trunk.state_dict())
        return {"computed": True, "training_accuracy": round(accuracy, 3)}

    def _proposals(self, again: bool) -> dict:
        train, test = self.inputs.proposal_splits
        search, workers = SelectiveSearch.of(self.config.proposals), self.config.workers
        computed = fill_each((train, test), lambda split: split.fill_proposals(search, workers, again))
        if not computed:
            return {"computed": False}
        disk = sum(split.proposal_store.size(split.names) for split in (train, test))
        return {"computed": True, "pictures": computed, "disk_mb": round(disk / 2**20, 1), **self._recall()}

    def _recall(self) -> dict:
        """Of the proposals, against the objects as they are now: seconds, on all of VOC."""
        return dict(zip(("train", "test"), (split.recall() for split in self.inputs.proposal_splits)))

    def _end_to_end(self, again: bool) -> dict | None:
        c, given, path = self.config, self.inputs, self.inputs.learned.end_to_end
        if not c.end_to_end.enabled:
            return None
        start = given.network_head(c.end_to_end.dropout)
        key = given.end_to_end_key(start)
        if given.is_done(path, key, again):
            return {"computed": False}
        with checkpoint_of(path) as checkpoint:
            network, loss = end_to_end.train(
                given.proposal_splits[0], given.initial, given.pooled_features, c.end_to_end,
                self._execution(checkpoint, key), start,
            )  # fmt: skip
            finish(path, key, network.state_dict(), head=network.head.description(), classes=list(given.train.classes))
        return {"computed": True, "loss": round(loss, 4)}

    def _maps(self, again: bool) -> dict:
        # What end-to-end training has learned already asks for the maps of no training image.
        every = [self.inputs.split_of(stage) for stage in self.inputs.learning()]
        splits = [*sorted(every, key=len)[-1:], self.inputs.splits[1]]  # one with mirror images holds one without
        computed = fill_maps(splits, self.inputs.backbone, self.config.workers, again=again)
        if not computed:
            return {"computed": False}
        disk = sum(split.disk()[1] for split in splits)
        return {"computed": True, "maps": computed, "disk_mb": round(disk / 2**20, 1)}

    def _finetune(self, again: bool) -> dict | None:
        c, given, path = self.config, self.inputs, self.inputs.learned.fine_tuned
        if "finetune" not in given.learning():
            return None
        start = given.network_head(c.finetune.dropout)
        key = given.finetune_key(start)
        if given.is_done(path, key, again):
            return {"computed": False}
        with checkpoint_of(path) as checkpoint:
            head, loss = finetune.train(
                given.split_of("finetune"), given.pooled_features, c.finetune, given.scale / c.svm.norm,
                given.backbone.bfloat16_on_cpu, self._execution(checkpoint, key), start,
            )  # fmt: skip
            tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
            finish(path, key, tensors, head=head.description())
        return {"computed": True, "loss": loss and round(loss, 4)}

    def _svm(self, again: bool) -> dict | None:
        c = self.config

        def learn(split, features, scale, missing, checkpoint):
            miner = Miner(split, features, missing, c.svm, scale, c.run.seed, c.workers, self.log, c.memory_gb)
            svms = miner.train(checkpoint, fingerprint([self.inputs.class_key("svm", k).data for k in missing]))
            return svms.weight, svms.bias[:, None]

        return self._learn_classes("svm", again, learn)

    def _context(self, again: bool) -> dict | None:
        c = self.config

        def learn(split, features, scale, missing, _):
            svms = context.train(split, features, missing, c.svm, scale, c.run.seed, c.workers)
            return svms.weight, svms.bias[:, None]

        return self._learn_classes("context", again, learn)

    def _bbox(self, again: bool) -> dict | None:
        c = self.config

        def learn(split, features, scale, missing, _):
            found = bbox_regression.train(split, features, missing, c.bbox, scale, c.run.seed, c.workers, c.memory_gb)
            return found.weight, found.bias

        return self._learn_classes("bbox", again, learn)

    def _learn_classes(self, stage: str, again: bool, learn: Callable) -> dict | None:
        """A stage of one result a class. ``learn`` makes weights and biases of the classes that have none yet, from the
        images, their windows' vectors, the vectors' scale, those classes and where it may keep a checkpoint."""
        given = self.inputs
        if stage not in given.learning():
            return None
        missing = self._unfinished(stage, again)
        if missing:
            with checkpoint_of(given.learned.folder / stage) as checkpoint:
                learned = learn(given.split_of(stage), *given.learns_from(stage), missing, checkpoint)
                for k, *values in zip(missing, *learned):
                    tensors = dict(zip(("weight", "bias"), values))
                    finish(given.learned.of_class(stage, k), given.class_key(stage, k), tensors)
        return {"computed": bool(missing), "classes": len(missing)}

    def _unfinished(self, stage: str, again: bool) -> list[int]:
        """The classes that ``stage`` has no result for."""
        given = self.inputs
        if again:
            forget(given.learned.folder / stage)  # its checkpoint

        def done(k: int) -> bool:
            return given.is_done(given.learned.of_class(stage, k), given.class_key(stage, k), again)

        missing = [k for k in given.labels if not done(k)]
        if 0 < len(missing) < len(given.labels):
            self.log(f"{stage}: learning {', '.join(given.train.classes[k] for k in missing)} alone")
        return missing

    def _evaluate(self, again: bool) -> dict:
        folder = self.inputs.folder
        self.detector().save(folder)
        write_json(folder / "config.json", to_dict(self.config) | {"versions": versions()})  # of that model
        evaluate_run(self.config, force=again)
        return {"computed": False}  # evaluate_run has recorded what it cost

    def detector(self) -> Detector:
        """The detector that the finished stages make."""
        c, given, learned = self.config, self.inputs, self.inputs.learned
        return Detector(
            classes=given.train.classes,
            backbone=given.backbone,
            features=given.features,
            search=SelectiveSearch.of(c.proposals),
            classifier=learned.softmax() if c.classifier == "softmax" else learned.svms(),
            regressors=learned.regressors(c.bbox.kind, given.features, given.head) if c.bbox.enabled else None,
            detection=c.detection,
            head=given.head,
            image_svms=learned.svms("context") if "context" in given.learning() else None,
        )
