"""scripts/pack_detector.py: a run's detector in few bytes, with a small bank from which classes are added."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_run import TinyRun

from sppdet.data.splits import read_dataset
from sppdet.detection.saved_model import load_detector
from sppdet.training.adding import add_classes
from sppdet.training.bank import Bank
from sppdet.training.changing import remove_classes

PATH = Path(__file__).parents[2] / "scripts" / "pack_detector.py"
spec = importlib.util.spec_from_file_location("pack_detector", PATH)
pack_detector = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack_detector)


def test_a_packed_detector_detects_as_the_run_s_and_learns_classes(tmp_path, shapes_root, capfd):
    run, packed = TinyRun(tmp_path, shapes_root), tmp_path / "packed"
    run.train()
    data = ["--measure", str(shapes_root), "--calibrate", str(shapes_root), "--split", "test"]
    assert pack_detector.main([str(run.folder), str(packed), "--bank", "40", *data]) == 0
    printed = capfd.readouterr().out
    before, after = run.detector(), load_detector(packed, "cpu")
    weights, stored = before.classifier.weight, after.classifier.weight
    moved = float(re.search(r"weights of SVMs moved by (\S+) at most", printed).group(1))
    assert 0 < moved <= np.abs(weights).max() / 100 and np.abs(stored - weights).max() <= 1.01 * moved
    assert float(re.search(r"mAP (\S+),", printed).group(1)) == pytest.approx(run.json("metrics.json")["mAP"], abs=0.5)
    assert before.calibration is None and after.calibration is not None and "calibration error" in printed

    assert len(Bank.load(packed)) <= 40
    images = read_dataset(shapes_root, "trainval")
    name, *others = before.classes
    remove_classes(packed, [name])
    assert add_classes(packed, images, [name], workers=1).classes == (*others, name)
