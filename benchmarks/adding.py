"""A class added to a trained model from 30 images, and 20 images of background fed back; their maps are cached."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import Bench, Row, at_most
from sppdet import config
from sppdet.data.dataset import Dataset
from sppdet.data.splits import load_split
from sppdet.detection.saved_model import load_detector
from sppdet.training.adding import add_background, add_classes
from sppdet.training.bank import BANK_FILE
from sppdet.training.changing import remove_classes
from sppdet.training.pipeline import Pipeline

IMAGES, BACKGROUND, TRAINED = 30, 20, 120


def run(bench: Bench) -> list[Row]:
    """Run the benchmark on the model of ``--model``, or on one of the preset ``quick`` that is trained first."""
    settings = config.load(
        Path(__file__).parents[1] / "configs" / "voc07_quick.yaml",
        [
            f"data.root={bench.voc_root}", f"data.limit_train={TRAINED}", "data.limit_test=4", "data.train_split=train",
            f"run.cache={bench.work}", f"run.dir={bench.work}/adding",
        ],
    )  # fmt: skip
    model = Path(bench.model or settings.run.dir)
    if not (model / BANK_FILE).is_file():
        model = Path(settings.run.dir)
        Pipeline(settings).run()
    images = load_split(replace(settings, data=replace(settings.data, limit_train=None)), "train")
    name = load_detector(model).classes[-1]
    label = images.classes.index(name)
    with_class = [sample for sample in images if label in sample.labels][:IMAGES]
    new = Dataset(images.classes, tuple(with_class))
    without = Dataset(images.classes, tuple(sample for sample in images if label not in sample.labels)[:BACKGROUND])
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        remove_classes(model, [name], output=base)
        count = len(load_detector(base).classes)

        def add(number: int) -> None:
            add_classes(base, new, [name], output=Path(folder) / f"added{number}", cache=bench.work)

        def feed(number: int) -> None:
            add_background(base, without, output=Path(folder) / f"fed{number}", cache=bench.work)

        (added, processor), (fed, fed_processor) = timed(add), timed(feed)
        size = (model / BANK_FILE).stat().st_size / 1e6
    return [
        at_most(f"a class added to {count}, from {len(with_class)} images", added, 20, "s"),
        Row("of that, processor time", processor, "s"),
        at_most(f"{len(without)} images of background for {count} classes", fed, 20, "s"),
        Row("of that, processor time", fed_processor, "s"),
        at_most("the bank", size, 100, "MB"),
    ]


def timed(work: Callable[[int], object]) -> tuple[float, float]:
    """Return seconds and processor seconds of the second call: the first one computes proposals and maps."""
    work(0)
    start = time.perf_counter(), time.process_time()
    work(1)
    return time.perf_counter() - start[0], time.process_time() - start[1]
