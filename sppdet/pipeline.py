"""The stages of training, in order, each skipped when its result is there already.

    pretrain   backbone weights from the training objects (only for backbone.weights=pretrain)
    proposals  selective search on every picture                          -> cache/proposals
    end_to_end trunk, fc6 and fc7 learned together (where asked for)      -> RUN/stages/end_to_end.safetensors
    maps       the backbone on every picture and scale                    -> cache/maps
    finetune   fc6 and fc7 (for features fc6 or fc7, conv layers fixed)   -> RUN/stages/finetune.safetensors
    svm        per-class SVMs with hard-negative mining                   -> RUN/stages/svm/CLASS.safetensors
    context    per-class SVMs of whole pictures (where asked for)         -> RUN/stages/context/CLASS.safetensors
    bbox       per-class box regression                                   -> RUN/stages/bbox/CLASS.safetensors
    evaluate   detection on the test split                                -> RUN/metrics.json, RUN/detections

A result is keyed by everything it depends on; a class's SVM by the pictures and its own objects, so a class added to
the annotations is trained alone. With ``keep`` one with new pictures is too: what has been learned with these settings
stays, whatever pictures and objects it was learned from. RUN/stages.json records what each stage cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from sppdet import bbox_regression, context, end_to_end, finetune
from sppdet.backbone import Backbone, network_state, weights_digest
from sppdet.cli import STAGES
from sppdet.config import Config, keys, load, to_dict
from sppdet.corpus import Corpus, fill_each, fill_maps, load_split, open_corpus
from sppdet.crops import CropFeatures
from sppdet.detector import Detector
from sppdet.errors import SppdetError
from sppdet.evaluation import check_names
from sppdet.features import PyramidFeatures, WindowFeatures
from sppdet.files import file_digest, fingerprint, part, read_json, write_json
from sppdet.head import Head
from sppdet.keyed import Key, checkpoint_of, finish, forget, is_done, is_there
from sppdet.learned import Learned
from sppdet.measure import evaluate_run, read_costs, stage_line, summary
from sppdet.meter import Meter
from sppdet.mining import Miner, feature_scale
from sppdet.pretraining import pretrain
from sppdet.trunks import restore_trunk
from sppdet.versions import versions
from sppdet.warp import Crop

_FREE = ("data", "run", "detection", "workers", "memory_gb", "device")  # settings that no class's results depend on


class Pipeline:
    """One run: a configuration, its data, and the folder of its results.

    Args:
        keep: results learned with the same settings stay, though from other pictures or objects.
    """

    def __init__(self, config: Config, log: Callable[[str], None] = print, keep: bool = False):
        self.config, self.log, self.keep = config, log, keep
        if keep and (config.classifier == "softmax" or (config.bbox.enabled and config.bbox.kind == "joint")):
            raise SppdetError(
                "--keep: a softmax and joint boxes are learned for all classes at once; with classifier=svm and "
                "bbox.kind=ridge a class can be added"
            )
        self.folder = Path(config.run.dir)
        self.train = load_split(config, config.data.train_split, limit=config.data.limit_train)
        self.test = load_split(config, config.data.test_split, self.train.classes, config.data.limit_test)
        self.labels = list(range(len(self.train.classes)))
        self.learned = Learned(self.folder / "stages", self.train.classes)
        if not self.labels:
            raise SppdetError(f"{config.data.train_split}: there is no object in its annotations to learn")
        check_names(self.test, config.data.test_split)  # the results' files could not be written in the end

    def run(self, last: str = STAGES[-1], force: bool = False) -> None:
        """Every stage up to ``last``; ``force`` does ``last`` again (or, if it is the final one, all of them)."""
        self._tell_of_data()
        for stage in STAGES[: STAGES.index(last) + 1]:
            again = force and (stage == last or last == STAGES[-1])
            with Meter() as meter:
                cost = getattr(self, f"_{stage}")(again)
            costs = read_costs(self.folder)
            if cost is None:
                if costs.pop(stage, None):  # of another configuration
                    write_json(self.folder / "stages.json", costs)
                continue
            if cost.pop("computed"):
                write_json(self.folder / "stages.json", costs | {stage: meter.cost() | cost})
            if stage == last == "proposals" and "train" not in cost:
                cost |= self._recall()  # what was asked for
            self.log(stage_line(stage, read_costs(self.folder).get(stage, {}) | cost))
        if last == STAGES[-1]:
            self.log(summary(read_json(self.folder / "metrics.json")))

    def _tell_of_data(self) -> None:
        data = self.config.data
        for split, name in ((self.train, data.train_split), (self.test, data.test_split)):
            labels = np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in split)])
            counts = np.bincount(labels, minlength=len(self.labels))
            listed = ", ".join(f"{own} {count}" for own, count in zip(self.train.classes, counts))
            self.log(f"{name}: {len(split)} pictures, {len(labels)} objects: {listed}")
        if shared := len({sample.path for sample in self.train} & {sample.path for sample in self.test}):
            self.log(f"warning: {shared} pictures are in {data.train_split} and in {data.test_split}: mAP will flatter")

    # What stages read

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
        trunk = restore_trunk(self.initial.name, part(load_file(self.learned.end_to_end), "trunk."))
        return Backbone.wrap(self.initial.name, trunk, self.config.device, self.config.backbone.precision)

    @cached_property
    def initial_corpora(self) -> tuple[Corpus, Corpus]:
        """Training and test pictures with their cache, for what comes before the maps."""
        cache, search = self.config.run.cache, self.config.proposals
        splits = (self.train, self.test)
        return tuple(open_corpus(split, cache, search, self.initial, self.pooled_features) for split in splits)

    @cached_property
    def corpora(self) -> tuple[Corpus, Corpus]:
        """The same with the maps of the final backbone."""
        return tuple(corpus.with_maps_of(self.backbone, self.config.run.cache) for corpus in self.initial_corpora)

    @property
    def corpus(self) -> Corpus:
        """The training pictures."""
        return self.corpora[0]

    @cached_property
    def mirrored_corpus(self) -> Corpus:
        """The same with their mirror images."""
        return self.corpus.with_mirror_images()

    def _learning(self) -> list[str]:
        """The stages that learn from the training pictures' maps."""
        c = self.config
        stages = {
            "finetune": c.features != "pool5" and not c.end_to_end.enabled,
            "svm": c.classifier == "svm",
            "context": c.detection.context > 0,
            "bbox": c.bbox.enabled and c.bbox.kind != "joint",
        }
        return [stage for stage, wanted in stages.items() if wanted]

    def _corpus_of(self, stage: str) -> Corpus:
        """What one of them learns from."""
        section = self.config.svm if stage == "context" else getattr(self.config, stage)
        return self.mirrored_corpus if section.flip else self.corpus

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
        return feature_scale(self.corpus, features, self.config.svm.norm, run.seed, self.config.workers)

    @cached_property
    def head(self) -> Head | None:
        if self.config.features == "pool5":
            return None
        path = self.learned.end_to_end if self.config.end_to_end.enabled else self.learned.fine_tuned
        description = read_json(path.with_suffix(".json"))["head"] | {"layer": self.config.features}
        inputs, tensors = self.pooled_features.pooled_dimension, part(load_file(path), "head.")
        head = Head.restore(inputs, description, tensors, self.backbone.half_behind)
        if ranks := self.config.svd_ranks:  # what is learned behind it is learned from what it gives in detection
            head = head.truncated([*ranks, 0][:2])
        if head.beside:
            head.balance = self._balance(head)
        return head

    def _balance(self, head: Head) -> float:
        """What brings fc7 to the pooled vectors' norm. Stored, as the SVMs learned so far are right for it alone."""
        path = self.learned.balance
        key = self._key({"balance": 1}, [self._shared_key, weights_digest(head)], [self.corpus.names])
        if not self._is_done(path, key):
            alone = replace(self.pooled_features.under(head), beside=False)
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
        return self.features.beside if stage == "bbox" else self.head is not None

    def _learns_from(self, stage: str) -> tuple[WindowFeatures, float]:
        """The vectors that one of these stages learns from, and what brings them to the norm of the SVMs."""
        return (self.features, self.features_scale) if self._sees_head(stage) else (self.pooled_features, self.scale)

    # The stages. Each returns what it cost besides time and memory, with computed=False if all was there.

    def _pretrain(self, again: bool) -> dict | None:
        if self.config.backbone.weights != "pretrain":
            return None
        backbone, levels = self.config.backbone, tuple(self.config.pooling.levels)
        settings = {"pretrain": asdict(self.config.pretrain), "levels": levels}
        settings |= {"name": backbone.name, "precision": backbone.precision}
        key = self._key(settings, [], [self._objects, [file_digest(sample.path) for sample in self.train]])
        if self._is_done(self.learned.pretrained, key, again):
            return {"computed": False}
        trunk, accuracy = pretrain(
            self.train, backbone.name, backbone.precision, self.config.pretrain, levels,
            self.config.run.seed, self.config.device, self.config.workers, self.log,
        )  # fmt: skip
        finish(self.learned.pretrained, key, trunk.state_dict())
        return {"computed": True, "training_accuracy": round(accuracy, 3)}

    def _proposals(self, again: bool) -> dict:
        train, test = self.initial_corpora
        search, workers = self.config.proposals, self.config.workers
        computed = fill_each((train, test), lambda corpus: corpus.fill_proposals(search, workers, again))
        if not computed:
            return {"computed": False}
        disk = train.disk()[0] + test.disk()[0]
        return {"computed": True, "pictures": computed, "disk_mb": round(disk / 2**20, 1), **self._recall()}

    def _recall(self) -> dict:
        """Of the proposals, against the objects as they are now: seconds, on all of VOC."""
        return dict(zip(("train", "test"), (corpus.recall() for corpus in self.initial_corpora)))

    def _end_to_end(self, again: bool) -> dict | None:
        if not self.config.end_to_end.enabled:
            return None
        path, corpus = self.learned.end_to_end, self.initial_corpora[0]
        settings = {"end_to_end": asdict(self.config.end_to_end)}
        features = self._features_key(self.initial)
        for name in ("scales", "target"):  # those of the maps; training has its own
            features["windows"].pop(name, None)
        start = self._network_head(self.config.end_to_end.dropout)
        data = [corpus.names, self._objects, self.train.classes]  # by whose names its boxes are found again
        key = self._key(settings, [features, start and weights_digest(start)], data)
        if self._is_done(path, key, again):
            return {"computed": False}
        with checkpoint_of(path) as checkpoint:
            network, loss = end_to_end.train(
                corpus, self.initial, self.pooled_features, self.config.end_to_end,
                checkpoint, key.data, self.config.run.seed, self.log, start,
            )  # fmt: skip
            finish(path, key, network.state_dict(), head=network.head.description(), classes=list(self.train.classes))
        return {"computed": True, "loss": round(loss, 4)}

    def _maps(self, again: bool) -> dict:
        # What end-to-end training has learned already asks for the maps of no training picture.
        every = [self._corpus_of(stage) for stage in self._learning()]
        corpora = [*sorted(every, key=len)[-1:], self.corpora[1]]  # one with mirror images holds one without
        computed = fill_maps(corpora, self.backbone, self.config.workers, self.log, again)
        if not computed:
            return {"computed": False}
        disk = sum(corpus.disk()[1] for corpus in corpora)
        return {"computed": True, "maps": computed, "disk_mb": round(disk / 2**20, 1)}

    def _finetune(self, again: bool) -> dict | None:
        if "finetune" not in self._learning():
            return None
        corpus = self._corpus_of("finetune")
        settings = {"finetune": self._settings("finetune"), "norm": self.config.svm.norm}
        start = self._network_head(self.config.finetune.dropout)
        depends = [self._shared_key, start and weights_digest(start)]
        key = self._key(settings, depends, [corpus.names, self._objects])
        if self._is_done(self.learned.fine_tuned, key, again):
            return {"computed": False}
        with checkpoint_of(self.learned.fine_tuned) as checkpoint:
            head, loss = finetune.train(
                corpus, self.pooled_features, self.config.finetune, self.scale, self.backbone.half_behind,
                checkpoint, key.data, self.config.run.seed, self.config.workers, self.log, start,
            )  # fmt: skip
            tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
            finish(self.learned.fine_tuned, key, tensors, head=head.description())
        return {"computed": True, "loss": loss and round(loss, 4)}

    def _network_head(self, dropout: float) -> Head | None:
        """The fc layers that training begins with, where they are not random."""
        c = self.config
        if c.finetune.init == "random":
            return None
        state = network_state(c.backbone.name, c.backbone.weights)
        return Head.of_network(c.backbone.name, state, dropout)

    def _svm(self, again: bool) -> dict | None:
        c = self.config

        def learn(corpus, features, scale, missing, checkpoint):
            miner = Miner(corpus, features, missing, c.svm, scale, c.run.seed, c.workers, self.log, c.memory_gb)
            svms = miner.train(checkpoint, fingerprint([self._class_key("svm", k).data for k in missing]))
            return svms.weight, svms.bias[:, None]

        return self._learn_classes("svm", again, learn)

    def _context(self, again: bool) -> dict | None:
        c = self.config

        def learn(corpus, features, scale, missing, _):
            svms = context.train(corpus, features, missing, c.svm, scale, c.run.seed, c.workers)
            return svms.weight, svms.bias[:, None]

        return self._learn_classes("context", again, learn)

    def _bbox(self, again: bool) -> dict | None:
        c = self.config

        def learn(corpus, features, scale, missing, _):
            found = bbox_regression.train(corpus, features, missing, c.bbox, scale, c.run.seed, c.workers, c.memory_gb)
            return found.weight, found.bias

        return self._learn_classes("bbox", again, learn)

    def _learn_classes(self, stage: str, again: bool, learn: Callable) -> dict | None:
        """A stage of one result a class. ``learn`` makes weights and biases of the classes that have none yet, from the
        pictures, their windows' vectors, the vectors' scale, those classes and where it may keep a checkpoint."""
        if stage not in self._learning():
            return None
        missing = self._unfinished(stage, again)
        if missing:
            with checkpoint_of(self.learned.folder / stage) as checkpoint:
                learned = learn(self._corpus_of(stage), *self._learns_from(stage), missing, checkpoint)
                for k, *values in zip(missing, *learned):
                    tensors = dict(zip(("weight", "bias"), values))
                    finish(self.learned.of_class(stage, k), self._class_key(stage, k), tensors)
        return {"computed": bool(missing), "classes": len(missing)}

    def _unfinished(self, stage: str, again: bool) -> list[int]:
        """The classes that ``stage`` has no result for."""
        if again:
            forget(self.learned.folder / stage)  # its checkpoint

        def done(k: int) -> bool:
            return self._is_done(self.learned.of_class(stage, k), self._class_key(stage, k), again)

        missing = [k for k in self.labels if not done(k)]
        if 0 < len(missing) < len(self.labels):
            self.log(f"{stage}: learning {', '.join(self.train.classes[k] for k in missing)} alone")
        return missing

    def _evaluate(self, again: bool) -> dict:
        self.detector().save(self.folder)
        write_json(self.folder / "config.json", to_dict(self.config) | {"versions": versions()})  # of that model
        evaluate_run(self.config, self.log, again)
        return {"computed": False}  # evaluate_run has recorded what it cost

    def detector(self) -> Detector:
        """The detector that the finished stages make."""
        bbox = self.config.bbox
        return Detector(
            classes=self.train.classes,
            backbone=self.backbone,
            features=self.features,
            search=self.config.proposals,
            classifier=self.learned.softmax() if self.config.classifier == "softmax" else self.learned.svms(),
            regressors=self.learned.regressors(bbox.kind, self.features, self.head) if bbox.enabled else None,
            detection=self.config.detection,
            head=self.head,
            context=self.learned.svms("context") if "context" in self._learning() else None,
        )

    # What results depend on

    @property
    def _objects(self) -> list:
        return [len(self.labels), [[s.boxes.tolist(), s.labels.tolist()] for s in self.train]]

    def _key(self, settings: dict, depends: list, data: list) -> Key:
        return Key.of([settings, self.config.run.seed, depends], data)

    def _is_done(self, path: Path, key: Key, again: bool = False) -> bool:
        """Whether the result at ``path`` is there; it is forgotten first if it is to be made ``again``.

        Raises:
            SppdetError: with ``keep``, it is of other settings, and would be lost.
        """
        if again:
            forget(path)
        done = is_done(path, key, self.keep)
        if self.keep and not done and is_there(path):
            raise SppdetError(
                f"--keep: {path} was learned with other settings{self._changes()}; give those of the run, or leave "
                "--keep out and learn all classes again"
            )
        return done

    def _changes(self) -> str:
        """What config.json, if there is one, has otherwise: for an error's line."""
        path = self.folder / "config.json"
        if not path.exists():
            return ""
        before = load(path)
        values = {key: attrgetter(key) for key in keys() if key.split(".")[0] not in _FREE}
        changed = [f"{key}={of(before)}" for key, of in values.items() if of(before) != of(self.config)]
        return f" ({', '.join(changed)})" if changed else ""

    def _features_key(self, backbone: Backbone) -> dict:
        return {
            "proposals": self.config.proposals.settings(),
            "backbone": backbone.settings(),
            "windows": self.pooled_features.description(),
        }

    def _class_key(self, stage: str, k: int) -> Key:
        settings = self._settings(stage) | {"stage": stage, "norm": self.config.svm.norm}
        if stage == "bbox":
            settings["kind"] = "ridge"  # with joint boxes or without
        head = [self._head_digest, self.head.layer] if self._sees_head(stage) else None
        objects = [sample.boxes[sample.labels == k].tolist() for sample in self.train]
        depends = [self._shared_key, head, self.train.classes[k]]
        return self._key(settings, depends, [self._corpus_of(stage).names, objects])

    def _settings(self, stage: str) -> dict:
        """Those of a stage. Whether it learns from mirror images is told by the names of its pictures, and what does
        nothing is left out: the results of versions before it hold."""
        if stage == "context":
            return {name: getattr(self.config.svm, name) for name in context.SETTINGS}
        settings = asdict(getattr(self.config, stage))
        settings.pop("flip")
        if settings.get("positive_overlap") == 1:
            settings.pop("positive_overlap")
        return settings

    @cached_property
    def _head_digest(self) -> str:
        return weights_digest(self.head)

    @cached_property
    def _shared_key(self) -> dict:
        return self._features_key(self.backbone)
