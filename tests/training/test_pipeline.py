"""From images to metrics: the stages in order, resuming, classes learned apart, and what can go wrong."""

from __future__ import annotations

import io
import logging
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from annotations import rename_objects
from PIL import Image
from safetensors.torch import load_file
from tiny_run import TinyRun

import sppdet
from sppdet import config
from sppdet.config.settings import STAGES
from sppdet.ops.boxes import iou
from sppdet.proposals.search import SelectiveSearch
from sppdet.training import bbox_regression, train_detector
from sppdet.training.mining import Miner
from sppdet.training.stage_inputs import StageInputs
from sppdet.training.stages import Stages
from sppdet.utils.errors import SppdetError

SHAPES = ("circle", "cross", "ring", "square", "star", "triangle")
UNITS = 16  # of fc6 and fc7 in these tests
FINE_TUNED = (f"finetune.units={UNITS}", "finetune.steps=4", "finetune.batch_size=32")
END_TO_END = (
    "end_to_end.enabled=true", "end_to_end.frozen_stride=0", "end_to_end.epochs=0.3", "end_to_end.scales=[96]",
    f"end_to_end.units={UNITS}",
)  # fmt: skip
RCNN = ("regions.crop=warp", "regions.crop_size=64", "regions.context=4", "proposals.max_windows=40")


def remove_objects(annotation: Path, name: str | None = None) -> None:
    """Take all objects, or those of one class, out of an image's annotation."""
    tree = ET.parse(annotation)
    for element in tree.getroot().findall("object"):
        if name in (None, element.findtext("name")):
            tree.getroot().remove(element)
    tree.write(annotation)


def interrupt(*_, **__) -> None:
    raise KeyboardInterrupt


def test_two_layers_of_a_librarys_network_train_and_detect(run, shapes_root):
    """Each layer has its own levels and factor, end-to-end training included."""
    network = (
        "backbone.name=mobilenet_v3_small", "backbone.layers=[features.8,features.10]", "backbone.dilate=true",
        "pooling.layer_levels=[[3,1],[2]]", "pooling.layer_weights=[1,0.5]", "regions.scales=[96]",
        "bbox.enabled=false",
    )  # fmt: skip
    run.train(*network, *END_TO_END, "features=pool5+fc7")
    detector = run.detector()
    assert detector.features.pooled_dimension == 48 * 10 + 96 * 4
    image = shapes_root / "JPEGImages" / "test_00000.jpg"
    detections = detector.predict(image, threshold=None)
    assert len(detections) > 0
    np.testing.assert_array_equal(run.detector().predict(image, threshold=None).scores, detections.scores)
    run.train(*network, *END_TO_END, "features=pool5+fc7")  # all results stay valid


def test_curves_are_written_into_the_run(run):
    assert run.pipeline().stages._execution(None).curves is None
    curves = run.pipeline("run.curves=csv").stages._execution(None).curves
    assert (curves.folder, curves.form) == (run.folder / "curves", "csv")


class TestAFinishedRun:
    def test_leaves_metrics_of_the_test_images(self, trained):
        metrics = trained.json("metrics.json")
        assert tuple(metrics["AP"]) == SHAPES and metrics["pictures"] == 6
        assert metrics["mAP"] == pytest.approx(np.mean(list(metrics["AP"].values())))

    def test_leaves_the_settings_and_the_versions_of_the_packages(self, trained):
        saved = trained.json("config.json")
        assert saved["regions"]["scales"] == [160] and saved["versions"]["sppdet"] == sppdet.__version__
        assert config.load(trained.folder / "config.json") == config.load(trained.yaml)

    def test_leaves_the_cost_of_each_of_its_stages(self, trained):
        costs = trained.json("stages.json")
        assert list(costs) == ["proposals", "maps", "svm", "bbox", "evaluate"]
        assert costs["proposals"]["pictures"] == costs["maps"]["maps"] == 18
        assert costs["svm"]["classes"] == costs["bbox"]["classes"] == 6
        assert costs["proposals"]["test"] == trained.json("metrics.json")["proposals"]

    def test_leaves_proposals_and_maps_in_the_cache_and_no_temporary_files(self, trained):
        # Other tests may add maps of other settings to the same cache.
        assert len(set(trained.stored("proposals", ".npy"))) == len(set(trained.stored("maps", ".b2nd"))) == 18
        assert not list(trained.yaml.parent.rglob(".*.*"))

    def test_leaves_a_model_that_detects(self, trained, shapes_root):
        detections = trained.detector().predict(shapes_root / "JPEGImages" / "test_00000.jpg", threshold=None)
        assert detections.classes == SHAPES and len(detections) > 0

    def test_does_nothing_when_it_is_run_again(self, trained):
        def files() -> dict[str, int]:
            rewritten = ("config.json", "model.json", "model.safetensors")  # cheap, and the same bytes each time
            return {path: time for path, time in trained.times("**/*").items() if path not in rewritten}

        before, model, stored = files(), trained.model(), trained.times("../cache/**/*")
        trained.train()
        assert files() == before and trained.times("../cache/**/*") == stored
        assert trained.model() == model


class TestFromPython:
    """`sppdet.training.train_detector`."""

    @pytest.fixture
    def silent(self, monkeypatch):
        """Logging as a program finds it that has not configured it, whatever ran before this test."""
        logger = logging.getLogger("sppdet")
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logging.NOTSET)

    def test_it_returns_the_detector_that_it_saves_and_prints_nothing(self, run, trained, silent, capsys):
        detector = train_detector(run.yaml, ["detection.nms=0.4"])
        assert capsys.readouterr().out == ""
        assert run.model() != trained.model() and detector.detection.nms == 0.4
        np.testing.assert_array_equal(detector.classifier.weight, run.detector().classifier.weight)
        np.testing.assert_array_equal(detector.classifier.weight, trained.detector().classifier.weight)

    def test_settings_may_be_a_configuration(self, run, trained):
        shutil.copytree(trained.folder, run.folder)
        before = run.times()
        settings = config.load(run.yaml, ["detection.vote=0.4"])
        detector = train_detector(settings, ["detection.nms=0.4"], keep=True)
        assert (detector.detection.vote, detector.detection.nms) == (0.4, 0.4)
        assert run.times() == before


class TestStages:
    def test_training_stops_after_the_stage_that_is_asked_for(self, run):
        run.train(last="svm")
        assert len(run.times("stages/svm/*.safetensors")) == 6
        assert not (run.folder / "stages" / "bbox").exists() and not (run.folder / "metrics.json").exists()

    def test_every_stage_of_the_list_runs(self, run, monkeypatch):
        ran = []
        for stage in STAGES:
            monkeypatch.setattr(Stages, f"_{stage}", lambda self, forced, stage=stage: ran.append((stage, forced)))
        pipeline = run.pipeline()
        pipeline.run("calibration", force=True)
        assert ran == [(stage, stage == "calibration") for stage in STAGES[:-1]]

    def test_proposals_need_no_weights(self, run, log_lines):
        run.train("backbone.weights=missing.pth", "proposals.base_k=60", last="proposals")
        assert log_lines[-1].startswith("proposals") and "recall@0.5" in log_lines[-1]
        with pytest.raises(SppdetError, match=r"missing\.pth does not exist"):
            run.train("backbone.weights=missing.pth", last="maps")

    def test_missing_weights_are_told_before_the_first_stage(self, run):
        with pytest.raises(SppdetError, match=r"backbone\.weights: missing\.pth does not exist"):
            run.train("backbone.weights=missing.pth", "proposals.base_k=70")
        assert not run.folder.joinpath("stages.json").exists()

    def test_the_recall_of_stored_proposals_is_told_when_they_are_asked_for(self, run, log_lines):
        run.train(last="proposals")
        assert "recall@0.5" in log_lines[-1]

    def test_a_stage_that_the_configuration_does_not_have_is_said_to_be_none(self, run, log_lines):
        run.train(last="end_to_end")
        assert log_lines[-1] == "end_to_end: this configuration has no such stage"

    def test_images_and_objects_are_listed_and_images_of_both_splits_are_warned_of(self, run, log_lines):
        run.train("data.test_split=trainval", last="pretrain")
        counts = run.pipeline().inputs.train
        per_class = np.bincount(np.concatenate([sample.labels for sample in counts]))
        objects = ", ".join(f"{name} {count}" for name, count in zip(SHAPES, per_class))
        assert log_lines[0] == log_lines[1] == f"trainval: 12 images, {per_class.sum()} objects: {objects}"
        assert log_lines[2] == "12 images are both in trainval and in trainval: mAP will be too high"

    def test_a_changed_setting_repeats_the_stages_that_depend_on_it(self, run, trained):
        shutil.copytree(trained.folder, run.folder)
        svms, boxes = run.times("stages/svm/*"), run.times("stages/bbox/*")
        run.train("svm.C=0.02", last="bbox")
        assert not run.times("stages/svm/*").items() & svms.items()
        assert run.times("stages/bbox/*") == boxes

    @pytest.mark.parametrize(
        ("overrides", "repeated", "last"),
        [
            (["svm.flip=true"], "svm", "evaluate"),
            (["bbox.flip=true"], "bbox", "bbox"),
            (["finetune.flip=true", "features=fc6", *FINE_TUNED], "finetune", "finetune"),
        ],
    )
    def test_mirror_images_are_learned_from_where_asked_for_and_not_tested_on(
        self, tmp_path, trained, overrides, repeated, last
    ):
        run = TinyRun(tmp_path, trained.root)
        shutil.copytree(trained.cache, run.cache)
        shutil.copytree(trained.folder / "stages", run.folder / "stages")
        run.train(*overrides, last=last)
        assert not [name for name in run.stored("proposals", ".npy") if name.endswith("-mirrored")]
        mirrored = [name for name in run.stored("maps", ".b2nd") if name.endswith("-mirrored")]
        assert len(mirrored) == 12 and all(name.startswith("train") for name in mirrored)
        assert run.json("stages.json").keys() - {"maps", "evaluate"} == {repeated}  # the others were still valid

    def test_another_kind_of_pooling_is_learned_from_the_same_maps(self, run, trained):
        maps = trained.times("../cache/maps/**/*.b2nd")
        run.train("pooling.kind=align", "pooling.samples=2")
        assert trained.times("../cache/maps/**/*.b2nd") == maps
        features = run.json("model.json")["features"]
        assert (features["kind"], features["samples"]) == ("align", 2)

    def test_without_box_regression(self, run):
        run.train("bbox.enabled=false")
        assert run.detector().regressors is None
        metrics = run.json("metrics.json")
        assert metrics["without_bbox"]["AP"] == metrics["AP"]


class TestForce:
    def test_the_last_stage_is_repeated_with_the_same_result(self, run, trained):
        shutil.copytree(trained.folder, run.folder)
        before = run.times()
        contents = {path: (run.folder / path).read_bytes() for path in before}
        run.train(last="svm", force=True)
        after = run.times()
        repeated = {path for path in after if after[path] != before[path]}
        assert repeated == {path for path in before if path.startswith(("stages/svm/", "stages/windows/"))}
        assert {path: (run.folder / path).read_bytes() for path in after} == contents

    def test_without_a_stage_everything_is_repeated(self, tmp_path, shapes_root):
        run = TinyRun(tmp_path, shapes_root)
        run.train("data.limit_train=6")
        before, model = run.times("../**/*"), run.model()
        run.train("data.limit_train=6", force=True)
        unchanged = {Path(path).name for path, time in run.times("../**/*").items() if time == before[path]}
        assert unchanged == {"settings.json", "tiny.yaml", "bank.safetensors"}  # a bank depends on the SVMs alone
        assert run.model() == model

    def test_an_interrupted_repetition_resumes_without_force(self, run, trained, monkeypatch):
        shutil.copytree(trained.folder, run.folder)
        before = run.times("stages/svm/*.safetensors")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Miner, "train", interrupt)
            run.train(last="svm", force=True)
        assert run.times("stages/svm/*.safetensors") == before  # still there, but not valid any more
        run.train(last="svm")
        assert not run.times("stages/svm/*.safetensors").items() & before.items()


class TestInterruption:
    def test_a_run_that_is_interrupted_in_every_stage_ends_at_the_same_model(
        self, tmp_path, trained, shapes_root, monkeypatch
    ):
        run = TinyRun(tmp_path, shapes_root)
        search, calls = SelectiveSearch.__call__, []

        def until_the_fifth(self, image):
            calls.append(1)
            if len(calls) == 3 + 5:  # three calls compile, measure the speed, and compile what is compiled
                raise KeyboardInterrupt
            return search(self, image)

        for owner, name, replacement in (
            (SelectiveSearch, "__call__", until_the_fifth), (Miner, "train", interrupt),
            (bbox_regression, "train", interrupt),
        ):  # fmt: skip
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(owner, name, replacement)
                run.train()
            assert not (run.folder / "model.json").exists()
            if owner is SelectiveSearch:
                assert len(run.stored("proposals", ".npy")) == 4
        svms = run.times("stages/svm/*")
        run.train()
        assert run.times("stages/svm/*") == svms
        assert run.model() == trained.model()

    def test_a_broken_image_is_named_before_work_begins(self, tmp_path, copied_data):
        run = TinyRun(tmp_path, copied_data)
        image = copied_data / "JPEGImages" / "train_00003.jpg"
        content = image.read_bytes()
        half = io.BytesIO()
        Image.open(image).save(half, "PNG")
        image.write_bytes(half.getvalue()[: len(half.getvalue()) // 2])  # a JPEG would be decoded as far as it goes
        with pytest.raises(SppdetError, match=r"train_00003\.jpg"):
            run.train(last="proposals")
        assert run.stored("proposals", ".npy") == []
        image.write_bytes(content)
        run.train(last="proposals")
        assert len(run.stored("proposals", ".npy")) == 18


class TestAddedClasses:
    """A class that is added to the annotations is learned alone."""

    @pytest.mark.parametrize("system", [(), RCNN], ids=["SPP-net", "R-CNN"])
    def test_the_other_classes_are_left_alone(self, tmp_path, trained, copied_data, shapes_root, system):
        run = TinyRun(tmp_path, copied_data, trained.cache)
        for annotation in (copied_data / "Annotations").iterdir():
            remove_objects(annotation, "ring")
        run.train(*system, last="bbox")
        before = run.times()
        assert {Path(path).stem for path in before} == set(SHAPES) - {"ring"}
        shutil.copytree(shapes_root / "Annotations", copied_data / "Annotations", dirs_exist_ok=True)
        run.train(*system)
        after = run.times()
        assert {path: after[path] for path in before} == before
        assert {Path(path).stem for path in after.keys() - before.keys()} == {"ring"}
        if system:  # as if all classes had been trained together
            together = TinyRun(tmp_path / "together", shapes_root, trained.cache)
            together.train(*system)
            assert run.model() == together.model()
        else:
            assert run.model() == trained.model()

    def test_with_new_images_the_other_classes_stay_only_if_they_are_kept(
        self, tmp_path, trained, copied_data, log_lines
    ):
        listed = copied_data / "ImageSets" / "Main" / "trainval.txt"
        every = listed.read_text()
        *_, new = every.split()
        listed.write_text(every.replace(new, ""))
        run = TinyRun(tmp_path, copied_data, trained.cache)
        run.train(last="bbox")
        before = run.times("stages/*/*.safetensors")

        listed.write_text(every)
        rename_objects(copied_data / "Annotations" / f"{new}.xml", "comet")
        run.train(keep=True)
        kept = run.times("stages/*/*.safetensors")
        assert {Path(path).name for path in kept.keys() - before.keys()} == {"comet.safetensors"}
        assert {path: kept[path] for path in before} == before
        assert "svm: learning only comet" in log_lines
        assert "comet" in run.detector().classes

        run.train(last="bbox")  # without keep the others learn from the new image, too
        last = run.times("stages/*/*.safetensors")
        assert {Path(path).stem for path in last if last[path] == kept[path]} == {"comet"}
        # The class that was added is what it would have been with all images there from the beginning.
        other = TinyRun(tmp_path / "other", copied_data, trained.cache)
        other.train(last="svm")
        name = "stages/svm/comet.safetensors"
        assert (other.folder / name).read_bytes() == (run.folder / name).read_bytes()

    def test_svms_of_whole_images_are_learned_and_kept_per_class(self, tmp_path, trained, copied_data):
        run = TinyRun(tmp_path, copied_data, trained.cache)
        shutil.copytree(trained.folder / "stages", run.folder / "stages")
        run.train("detection.context=0.3", last="context")
        of_images = run.times("stages/context/*")
        assert len(of_images) == 12  # two files per class
        costs = run.json("stages.json")
        assert costs["context"]["classes"] == 6 and "svm" not in costs  # the windows' SVMs are still valid

        rename_objects(copied_data / "Annotations" / "train_00000.xml", "comet")
        run.train("detection.context=0.3", keep=True)
        now = run.times("stages/context/*")
        assert {path: now[path] for path in of_images} == of_images
        assert {Path(path).stem for path in now.keys() - of_images.keys()} == {"comet"}
        assert len(run.detector().classes) == 7

    @pytest.mark.parametrize("layers", [["classifier=softmax", "bbox.kind=joint"], ["bbox.kind=joint"]])
    def test_layers_that_are_learned_for_all_classes_at_once_cannot_be_kept(self, run, layers):
        with pytest.raises(SppdetError, match="--keep: a softmax and joint boxes are learned for all classes at once"):
            run.pipeline("features=fc7", *END_TO_END, *layers, keep=True)
        assert not run.folder.exists()

    def test_a_class_that_was_learned_is_not_lost_by_keeping(self, tmp_path, trained, copied_data):
        run = TinyRun(tmp_path, copied_data, trained.cache)
        shutil.copytree(trained.folder, run.folder)
        for annotation in (copied_data / "Annotations").iterdir():
            remove_objects(annotation, "ring")
        model = run.model()
        with pytest.raises(SppdetError, match="--keep: ring: learned before, but not among the classes any more"):
            run.train(keep=True)
        assert run.model() == model

    def test_a_kept_run_has_the_same_settings(self, tmp_path, trained):
        shutil.copytree(trained.folder, tmp_path / "run")
        run = TinyRun(tmp_path, trained.root)  # with an empty cache
        before = run.times("**/*")
        with pytest.raises(SppdetError, match=r"run was learned with other settings \(regions\.scales=\[160\]\)"):
            run.train("regions.scales=[96]", keep=True)
        assert run.times("**/*") == before and not run.cache.exists()


class TestFcLayers:
    def test_every_stage_on_the_way_to_fine_tuned_features(self, run, log_lines):
        overrides = [
            "backbone.weights=pretrain", "pretrain.sizes=[48]", "pretrain.epochs=1", "pretrain.batch_size=16",
            "features=fc6", *FINE_TUNED,
        ]  # fmt: skip
        run.train(*overrides)
        assert list(run.json("stages.json")) == ["pretrain", "maps", "finetune", "svm", "bbox", "evaluate"]
        assert run.detector().features.dimension == UNITS
        before, model = run.times(), run.model()
        run.train(*overrides)
        assert run.times() == before and run.model() == model

        # fc6 and fc7 are trained together, so fc7 is there already; its SVMs are not.
        run.train(*overrides, "features=fc7", last="bbox")
        changed = {Path(path).parent.name for path, time in run.times().items() if before.get(path, time) != time}
        assert changed == {"svm", "windows"}

    def test_the_scale_of_their_input_does_not_depend_on_the_norm_of_the_svms(self, run):
        scales = []
        for norm in (20, 10):
            run.train("features=fc6", *FINE_TUNED, "finetune.steps=1", f"svm.norm={norm}", last="finetune")
            scales.append(run.json("stages/finetune.json")["head"]["scale"])
        assert scales[0] == pytest.approx(scales[1]) and scales[0] != 1


@pytest.fixture(scope="module")
def trained_end_to_end(tmp_path_factory, trained) -> TinyRun:
    """A run with the stages up to the maps done, after end-to-end training."""
    run = TinyRun(tmp_path_factory.mktemp("end_to_end"), trained.root, trained.cache)
    run.train(*END_TO_END, last="maps")
    return run


class TestEndToEnd:
    """One training of trunk and fc layers serves every choice of features, classifier and boxes."""

    @pytest.fixture
    def run(self, tmp_path, trained_end_to_end, monkeypatch) -> TinyRun:
        """A run after the training, which must not be repeated."""
        shutil.copytree(trained_end_to_end.folder, tmp_path / "run")
        monkeypatch.setattr("sppdet.training.end_to_end.train", interrupt)
        return TinyRun(tmp_path, trained_end_to_end.root, trained_end_to_end.cache)

    @pytest.fixture
    def learned(self, trained_end_to_end) -> dict[str, torch.Tensor]:
        """The tensors of the training."""
        return load_file(trained_end_to_end.folder / "stages" / "end_to_end.safetensors")

    def test_the_detector_has_the_trained_trunk(self, run, learned):
        run.train(*END_TO_END)
        trunk = run.detector().backbone.trunk.state_dict()
        assert all(torch.equal(value, learned[f"trunk.{name}"]) for name, value in trunk.items())
        assert run.json("stages/end_to_end.json")["classes"] == list(SHAPES)

    def test_features_of_another_layer_and_another_scale_of_the_detector(self, run):
        run.train(*END_TO_END, "features=fc7", "regions.scales=[128]", last="bbox")
        assert run.pipeline(*END_TO_END, "features=fc7", "regions.scales=[128]").detector().features.dimension == UNITS
        assert "finetune" not in run.json("stages.json")

    def test_svms_and_boxes_on_pooled_vectors_and_fc7_side_by_side(self, run):
        run.train(*END_TO_END, "features=pool5+fc7")
        detector = run.detector()
        dimension = detector.features.pooled_dimension + UNITS
        assert detector.classifier.weight.shape == (6, dimension)
        assert detector.regressors.of_head and detector.regressors.weight.shape == (6, 4, dimension)
        balance = load_file(run.folder / "stages" / "balance.safetensors")["balance"].item()
        assert detector.head.balance == balance != 1

        # With fc layers of lower rank SVMs are learned again, from the vectors of these layers.
        svms = run.times("stages/svm/*.safetensors")
        run.train(*END_TO_END, "features=pool5+fc7", "svd_ranks=[4,8]", last="bbox")
        assert not run.times("stages/svm/*.safetensors").items() & svms.items()

    def test_joint_boxes_beside_svms_move_by_fc7_alone(self, run, learned):
        run.train(*END_TO_END, "features=pool5+fc7", "bbox.kind=joint")
        detector, moving = run.detector(), learned["move.weight"].numpy()
        pooled = detector.features.pooled_dimension
        weight = detector.regressors.weight.reshape(len(moving), -1)
        assert detector.regressors.of_head and not weight[:, :pooled].any()
        np.testing.assert_allclose(weight[:, pooled:] * detector.head.balance, moving, rtol=1e-5)

    def test_the_layers_that_were_trained_replace_svms_and_ridge_regression(self, run, learned):
        fast_rcnn = [*END_TO_END, "features=fc7", "classifier=softmax", "bbox.kind=joint"]
        run.train(*fast_rcnn, "regions.scales=[112]")
        detector = run.detector()
        np.testing.assert_array_equal(detector.classifier.weight, learned["classify.weight"])
        np.testing.assert_array_equal(detector.regressors.weight.reshape(-1, UNITS), learned["move.weight"])
        assert detector.regressors.of_head
        assert run.json("stages.json")["maps"]["maps"] == 6  # no stage learns from maps: the test images' are enough

        run.train(*fast_rcnn, "regions.scales=[112]", "svd_ranks=[4,8]")
        head = run.detector().head
        assert head.ranks == (4, 8) and head.fc6[0].out_features == 4

    def test_a_class_is_added_above_the_network_that_was_trained_for_the_others(self, run, copied_data, learned):
        run = TinyRun(run.yaml.parent, copied_data, run.cache)
        side_by_side = [*END_TO_END, "features=pool5+fc7"]
        run.train(*side_by_side, last="bbox")
        before = run.times("stages/**/*.safetensors")
        rename_objects(copied_data / "Annotations" / "train_00000.xml", "comet")
        run.train(*side_by_side, last="bbox", keep=True)
        after = run.times("stages/**/*.safetensors")
        assert {Path(path).name for path in after.keys() - before.keys()} == {"comet.safetensors"}
        assert {path: after[path] for path in before} == before  # the network, the balance, the other classes

        # Boxes of the classes that the network knows are moved by both; those of the new class by ridge regression.
        pipeline = run.pipeline(*side_by_side, "bbox.kind=ridge+joint", keep=True)
        pipeline.run("bbox")
        detector = pipeline.detector()
        assert run.times("stages/**/*.safetensors") == after
        joint = dict(zip(SHAPES, learned["move.weight"].numpy().reshape(-1, 4, UNITS) / detector.head.balance))
        for name, weight in zip(detector.classes, detector.regressors.weight):
            of_pooled = load_file(run.folder / "stages" / "bbox" / f"{name}.safetensors")["weight"].numpy()
            expected = np.pad(of_pooled, [(0, 0), (0, UNITS)])
            if name != "comet":
                expected = (expected + np.pad(joint[name], [(0, 0), (of_pooled.shape[1], 0)])) / 2
            np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def rcnn(tmp_path_factory, trained) -> TinyRun:
    """A finished run of R-CNN with a cache of its own."""
    run = TinyRun(tmp_path_factory.mktemp("rcnn"), trained.root)
    run.train(*RCNN)
    return run


class TestRCNN:
    """Crops in place of feature maps, through the same stages."""

    def test_vectors_of_proposals_and_of_objects_are_stored_once(self, rcnn):
        stored = rcnn.stored("crops", ".rows")
        assert len(stored) == 36  # 18 images: their proposals, and their objects
        before, model = rcnn.times(), rcnn.model()
        rcnn.train(*RCNN)
        assert rcnn.times() == before and rcnn.model() == model
        assert rcnn.stored("crops", ".rows") == stored

    def test_the_detector_detects_in_an_image_what_it_detects_from_the_cache(self, rcnn, shapes_root):
        results = rcnn.json("detections/coco_results.json")
        stored = sorted((result["score"] for result in results if result["image_id"] == 1), reverse=True)
        detections = rcnn.detector().predict(shapes_root / "JPEGImages" / "test_00000.jpg", threshold=None)
        assert len(detections) > 0
        # Vectors are float16 in both, and the last bits depend on the crops that go through the network together.
        np.testing.assert_allclose(detections.scores[:5], stored[:5], atol=1e-2)

    def test_a_saved_copy_detects_the_same(self, rcnn, tmp_path, shapes_root):
        detector, image = rcnn.detector(), shapes_root / "JPEGImages" / "test_00000.jpg"
        detector.save(tmp_path / "copy")
        first, second = detector.predict(image), sppdet.load(tmp_path / "copy", device="cpu").predict(image)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        np.testing.assert_array_equal(first.scores, second.scores)

    def test_the_whole_network_is_fine_tuned(self, run):
        run.train(
            *RCNN, *END_TO_END, "end_to_end.box_weight=0", "end_to_end.background=0", "end_to_end.images_per_step=4",
            "end_to_end.windows_per_image=8", "features=fc7", "proposals.max_windows=20",
        )  # fmt: skip
        learned = load_file(run.folder / "stages" / "end_to_end.safetensors")
        detector = run.detector()
        assert detector.features.dimension == UNITS and detector.features.crop.size == 64
        trunk = detector.backbone.trunk.state_dict()
        assert all(torch.equal(value, learned[f"trunk.{name}"]) for name, value in trunk.items())


@pytest.mark.parametrize(
    ("name", "dimension"), [("squeezenet", 512 * 50), ("resnet50", 1024 * 50), ("vgg16", 512 * 50)]
)
def test_features_of_the_recipes_of_networks(name, dimension, shapes_root, tmp_path):
    recipe = Path(__file__).parents[2] / "configs" / f"voc07_sppnet_{name}.yaml"
    overrides = [f"data.root={shapes_root}", "backbone.weights=random", "device=cpu", f"run.dir={tmp_path}"]
    assert StageInputs(config.load(recipe, overrides)).pooled_features.dimension == dimension


def test_the_recipe_of_a_network_with_batch_norm_runs(tmp_path, shapes_root):
    recipe = Path(__file__).parents[2] / "configs" / "voc07_sppnet_resnet50.yaml"
    overrides = [
        f"data.root={shapes_root}", "data.limit_train=3", "data.limit_test=1", "backbone.weights=random",
        "regions.scales=[96]", "regions.target=48", "proposals.max_side=100", "svm.random_negatives=30",
        "svm.max_negatives=30", "bbox.max_windows=20", "device=cpu", "workers=1",
        f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    detector = train_detector(recipe, overrides)
    assert detector.features.dimension == 1024 * 50
    assert not any(layer.training for layer in detector.backbone.trunk.modules())  # batch norm keeps its statistics


class TestUnusualData:
    def test_a_class_without_training_objects_is_named_and_never_detected(self, run, log_lines, shapes_root):
        # As in a split that data.limit_train cuts short: the other classes are trained all the same.
        run.train(f"data.classes=[hexagon,{','.join(SHAPES)}]", "detection.min_margin=-9")
        assert "no training objects of hexagon: it will never be detected" in log_lines
        detections = run.detector().predict(shapes_root / "JPEGImages" / "test_00000.jpg", threshold=None)
        names = {detection["label"] for detection in detections.to_list()}
        assert "star" in names and "hexagon" not in names

    def test_images_without_objects_or_proposals(self, tmp_path, copied_data):
        run = TinyRun(tmp_path, copied_data)
        for name in ("train_00001", "test_00001"):
            remove_objects(copied_data / "Annotations" / f"{name}.xml")
        box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>15</xmax><ymax>15</ymax></bndbox>"
        star = f"<object><name>star</name>{box}</object>"
        # Images that are smaller than the smallest proposal, proposals.min_size.
        for name, objects in (("train_00002", star), ("test_00002", star), ("test_00003", "")):
            Image.new("RGB", (18, 18)).save(copied_data / "JPEGImages" / f"{name}.jpg")
            (copied_data / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        pipeline = run.pipeline()
        pipeline.run()
        counts = {
            sample.id: len(split.proposals(i))
            for split in pipeline.inputs.proposal_splits
            for i, sample in enumerate(split.dataset)
        }
        assert {name for name, count in counts.items() if not count} == {"train_00002", "test_00002", "test_00003"}
        detected = {result["image_id"] for result in run.json("detections/coco_results.json")}
        assert run.json("metrics.json")["pictures"] == 6 and detected == {1, 2, 5, 6}

    def test_a_split_without_any_object_is_refused(self, tmp_path, copied_data):
        for path in (copied_data / "Annotations").iterdir():
            remove_objects(path)
        with pytest.raises(SppdetError, match="trainval: its annotations have no object to learn"):
            TinyRun(tmp_path, copied_data).pipeline()

    def test_names_that_the_files_of_results_cannot_hold_are_refused_first(self, tmp_path, copied_data):
        for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
            (copied_data / folder / f"test_00001.{suffix}").rename(copied_data / folder / f"my photo.{suffix}")
        listed = copied_data / "ImageSets" / "Main" / "test.txt"
        listed.write_text(listed.read_text().replace("test_00001", "my photo"))
        run = TinyRun(tmp_path, copied_data)
        with pytest.raises(SppdetError, match="image 'my photo': white space would break"):
            run.train()
        assert not run.folder.exists()


class TestFolders:
    def test_a_folder_that_cannot_be_written_is_named_before_any_work(self, run, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SppdetError, match=r"run\.dir: .*file/run cannot be written"):
            run.train(f"run.dir={tmp_path / 'file' / 'run'}")

    def test_a_classifier_of_images_is_not_replaced(self, run):
        run.folder.mkdir()
        (run.folder / "classifier.json").write_text("{}")
        with pytest.raises(SppdetError, match=r"holds a classifier of images; give another run\.dir"):
            run.pipeline()


class TestCalibration:
    FOLDS = "calibration.folds=3"

    def test_adds_probabilities_and_leaves_the_rest_of_a_model(self, run, shapes_root):
        """As for a run of an earlier version, whose SVMs did not keep their windows."""
        run.train()
        before, tensors = run.json("model.json"), (run.folder / "model.safetensors").read_bytes()
        metrics = run.json("metrics.json")
        shutil.rmtree(run.folder / "stages" / "windows")
        assert run.pipeline(self.FOLDS).waiting() == ["calibration", "evaluate"]
        run.train(self.FOLDS)
        after = run.json("model.json")
        assert len(after["calibration"]["classes"]) == 6
        assert after | {"calibration": None} == before
        assert (run.folder / "model.safetensors").read_bytes() == tensors
        assert run.json("metrics.json")["AP"] == metrics["AP"] and "calibration" in run.json("metrics.json")
        image = shapes_root / "JPEGImages" / "test_00000.jpg"
        detections = run.detector().predict(image, threshold=None)
        assert ((detections.probabilities > 0) & (detections.probabilities < 1)).all()
        for k in np.unique(detections.labels):  # the probabilities of a class order its detections as margins do
            of_class = detections[detections.labels == k]
            assert (np.diff(of_class.probabilities[np.argsort(of_class.scores)]) >= 0).all()
        assert run.detector().predict(image, threshold=0.2).probabilities.min(initial=1) >= 0.2
        with pytest.raises(SppdetError, match=r"-0\.5 is no probability"):
            run.detector().predict(image, threshold=-0.5)

    def test_windows_that_are_kept_take_the_place_of_mining(self, run, monkeypatch):
        run.train(self.FOLDS, last="bbox")
        monkeypatch.setattr(Miner, "collect_windows", interrupt)
        run.train(self.FOLDS, last="calibration")
        assert run.pipeline(self.FOLDS).waiting() == ["evaluate"]

    def test_a_forced_stage_is_repeated_and_gives_the_same(self, run):
        run.train(self.FOLDS)
        model = run.model()
        run.train(self.FOLDS, last="calibration", force=True)
        run.train(self.FOLDS)
        assert run.model() == model


class TestIncompleteLabels:
    MODE = "data.incomplete_labels=true"

    def test_what_is_perhaps_missed_is_listed_and_ignored_by_later_stages(self, run, trained, log_lines):
        settings = self.MODE, "detection.context=0.3", "calibration.folds=2", "svm.bank=100"
        run.train(*settings)
        entries = run.json("perhaps_missed.json")["perhaps_missed"]
        margins = [entry["margin"] for entry in entries]
        assert entries and margins == sorted(margins, reverse=True)
        pipeline = run.pipeline(*settings)
        train = pipeline.inputs.train
        for entry in entries:
            sample = next(sample for sample in train if sample.id == entry["image"])
            objects = sample.boxes[sample.labels == train.classes.index(entry["class"])]
            assert (iou(np.array([entry["box"]]), objects) < 0.3).all()
        ignoring = pipeline.stages._ignoring_perhaps_missed(pipeline.inputs.split).dataset
        assert sum(len(sample.ignored) for sample in ignoring) == len(entries)
        assert f"{len(entries)} objects perhaps without a label" in "".join(log_lines)
        assert run.model() != trained.model()
        times = run.times()
        run.train(*settings)
        assert run.times() == times

    def test_without_the_mode_the_list_goes_and_the_model_is_that_of_other_runs(self, run, trained):
        run.train(self.MODE)
        assert (run.folder / "perhaps_missed.json").exists()
        run.train()
        assert run.model() == trained.model()
        assert not (run.folder / "perhaps_missed.json").exists()
