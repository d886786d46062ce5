"""Train and measure several configurations on the same images, and write what came out beside the papers' figures.

``python scripts/compare.py ablation --write docs/accuracy.md`` gives the rows of the SPP-net paper's table of
detection (He et al. 2014, section 4), pooled conv features and fc layers, with and without box regression, and the
steps from there to the configs.
``python scripts/compare.py systems --write docs/systems.md`` gives SPP-net and its family: accuracy, seconds of
training and of detection, memory, disk. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppdet import config
from sppdet.cli.common import run
from sppdet.config.settings import STAGES
from sppdet.proposals.recall import recall_line
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json, write_document
from sppdet.utils.environment import machine

ROOT = Path(__file__).resolve().parents[1]
SPP, END, FAST, RCNN, BEST = (
    f"configs/voc07_{name}_squeezenet.yaml" for name in ("sppnet", "sppnet_end_to_end", "fast_rcnn", "rcnn", "best")
)
FIVE = "regions.scales=[480,576,688,864,1200]"
OBJECTS = "svm.positive_overlap=1"
# The paper's single scale, the image not asked, fc layers whole.
ONE = ("regions.scales=[688]", "detection.context=0", "svd_ranks=[]")
PLAIN = (*ONE, "finetune.flip=false", "svm.flip=false", "bbox.flip=false", OBJECTS)
RIDGE, ONE_VIEW = "bbox.kind=ridge", "detection.flip=false"
TIMED = 8  # images on which detection is timed


@dataclass(frozen=True)
class Row:
    """A configuration: its file and what is changed in it; ``paper`` is a mAP without and with box regression.

    With ``of`` it is no training but earlier rows' detectors combined: their names, and what each counts.
    """

    name: str
    config: str
    changes: tuple[str, ...] = ()
    paper: tuple[str, str] = ("", "")
    of: tuple[tuple[str, float], ...] = ()

    @property
    def folder(self) -> str:
        return "_".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())


# Beside them He et al. 2014, tables 9 and 10: ZF-5 trained on all of trainval, tested on all of test.
ABLATION = (
    Row("pool5, 1 scale", SPP, PLAIN, ("43.0", "")),
    Row("fine-tuned fc6, 1 scale", SPP, (*PLAIN, "features=fc6"), ("52.3", "")),
    Row("fine-tuned fc7, 1 scale", SPP, (*PLAIN, "features=fc7"), ("54.5", "58.0")),
    Row("pool5, 5 scales", SPP, (*PLAIN, FIVE), ("44.9", "")),
    Row("fine-tuned fc6, 5 scales", SPP, (*PLAIN, FIVE, "features=fc6"), ("53.7", "")),
    Row("fine-tuned fc7, 5 scales", SPP, (*PLAIN, FIVE, "features=fc7"), ("55.2", "59.2")),
    Row("pool5, 1 scale, mirror images learned", SPP, (*ONE, OBJECTS)),
    Row("pool5, 1 scale, windows near objects too", SPP, ONE),
    Row("fc6, mirror images and windows near objects too", SPP, (*ONE, "features=fc6")),
    Row("fc7, mirror images and windows near objects too", SPP, (*ONE, "features=fc7")),
    Row("pool5, 5 scales, windows near objects too", SPP, (*ONE, FIVE)),
    Row("pool5, 2 scales", SPP, ("detection.context=0",)),
    Row("pool5, 2 scales, the image asked too", SPP),
    Row("pool5, 2 scales, the mirrored image too", SPP, ("detection.flip=true",)),
    Row("end to end, softmax", END),
    Row("end to end, SVMs on pool5", BEST, (*PLAIN, RIDGE, ONE_VIEW, "features=pool5")),
    Row("end to end, SVMs on fc7", BEST, (*PLAIN, RIDGE, ONE_VIEW, "features=fc7")),
    Row("end to end, SVMs on both", BEST, (*PLAIN, RIDGE, ONE_VIEW)),
    Row("the same, both kinds of boxes", BEST, (*PLAIN, ONE_VIEW)),
    Row("the same, mirror images learned", BEST, (*ONE, OBJECTS, ONE_VIEW)),
    Row("the same, windows near objects too", BEST, (*ONE, ONE_VIEW)),
    Row("the same, the mirrored image too", BEST, ONE),
    Row("best at one scale, seed 1", BEST, (*ONE, "run.seed=1")),
    Row("best", BEST),
    Row("best and pool5 combined", BEST, of=(("best", 2), ("pool5, 2 scales, the image asked too", 1))),
    Row("best, seed 1", BEST, ("run.seed=1",)),
    Row("best, seed 2", BEST, ("run.seed=2",)),
)
# He et al. 2014, table 9, pool5: SPP-net with ZF-5, R-CNN with AlexNet. Girshick 2015, table 4: CaffeNet.
SYSTEMS = (
    Row("SPP-net", SPP, PLAIN, ("43.0", "")),
    Row("SPP-net end to end", END),
    Row("SPP-net, fc layers only", END, ("end_to_end.frozen_stride=16",)),
    Row("Fast R-CNN", FAST, (), ("", "57.1")),
    Row("Fast R-CNN, fc layers only", FAST, ("end_to_end.frozen_stride=16",)),
    Row("R-CNN", RCNN, ("proposals.mode=balanced", "bbox.min_overlap=0.5", "detection.vote=0.4"), ("44.2", "")),
)
# What the papers say of whole systems: other networks, twice the images, GPUs of their day.
PAPERS = """\
## The papers' figures

VOC2007, trained on the 5011 images of trainval, tested on the 4952 of test; seconds on a GPU, without the proposals.

| | network | mAP | + box regression | seconds an image | from |
|---|---|---|---|---|---|
| R-CNN, fine-tuned fc7 | AlexNet | 54.2 | 58.5 | 9.03 | He et al. 2014, tables 9 and 10 |
| SPP-net, fine-tuned fc7, 1 scale | ZF-5 | 54.5 | 58.0 | 0.142 | the same |
| SPP-net, fine-tuned fc7, 5 scales | ZF-5 | 55.2 | 59.2 | 0.382 | the same |
| R-CNN | VGG16 | | 66.0 | 47.0 | Girshick 2015, table 4 |
| SPP-net, fc layers only | VGG16 | | 63.1 | 2.3 | the same |
| Fast R-CNN | CaffeNet | | 57.1 | 0.10 | the same |
| Fast R-CNN | VGG16 | | 66.9 | 0.32 | the same |"""
# R-CNN takes 6 ms a window on two cores: with these it is most of an hour and a half.
FEW = ("data.limit_train=150", "data.limit_test=75", "proposals.max_windows=2000")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("table", choices=("ablation", "systems"))
    made.add_argument("--voc-root", default="data/VOCdevkit", help="default: %(default)s")
    made.add_argument("--weights", default="imagenet", help="SqueezeNet 1.0's; default: torchvision's download")
    made.add_argument("--cache", default="cache", help="of proposals and conv maps; default: %(default)s")
    made.add_argument("--runs", type=Path, default=Path("runs/compare"), help="a folder a row; default: %(default)s")
    made.add_argument(
        "--rows", action="append", default=[], help="the row of this name, or those whose hold it; may repeat"
    )
    made.add_argument("--all", action="store_true", help="systems: not only 150 + 75 images and 2000 windows")
    made.add_argument("--write", type=Path, help="the Markdown file to write")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="for every row, e.g. data.limit_train=500")
    return made


def measure(row: Row, options: argparse.Namespace) -> dict:
    """Every stage of one row; what its metrics.json holds, and seconds an image of its detector."""
    from sppdet.training.stage_inputs import StageInputs

    folder = options.runs / row.folder
    places = {"data.root": options.voc_root, "backbone.weights": options.weights, "run.cache": options.cache}
    few = FEW if options.table == "systems" and not options.all else ()
    changes = [f"{key}={value}" for key, value in places.items()]
    changes += [f"run.dir={folder}", *row.changes, *few, *options.overrides]
    settings = config.load(ROOT / row.config, changes)
    if row.of:
        print(f"\n{row.name}", flush=True)
        combine(row, options, folder)
    else:
        borrow(folder, options.runs)
        print(f"\n{row.name}: {row.config} {' '.join(row.changes)}", flush=True)
        started(row, ["sppdet.train", str(ROOT / row.config), *changes])
    inputs = StageInputs(settings)
    paths = [sample.path for sample in inputs.test][:TIMED]
    found = {"training_images": len(inputs.train), "detection": seconds(folder, paths)}
    return read_json(folder / "metrics.json") | found


def started(row: Row, command: list[str]) -> None:
    """In a process of its own: what an earlier row left in memory is not counted as this one's."""
    status = subprocess.run([sys.executable, "-m", *command]).returncode
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise SppdetError(f"{row.name}: {command[0]} failed; the reason stands above")


def combine(row: Row, options: argparse.Namespace, folder: Path) -> None:
    """Make a run of the rows that it is ``of``, unless it is there already, and measure it."""
    from sppdet.detection import is_ensemble_of

    folders = [options.runs / Row(name, "").folder for name, _ in row.of]
    if missing := [f"--rows '{name}'" for (name, _), run in zip(row.of, folders) if not (run / "model.json").exists()]:
        raise SppdetError(f"{row.name}: is made of other rows, which come first: {' '.join(missing)}")
    if not is_ensemble_of(folder, folders):
        shutil.rmtree(folder, ignore_errors=True)
        weights = [str(weight) for _, weight in row.of]
        started(row, ["sppdet.combine", *map(str, folders), "--weights", *weights, "--output", str(folder)])
    started(row, ["sppdet.evaluate", str(folder), f"data.root={options.voc_root}", f"run.cache={options.cache}"])


def borrow(folder: Path, runs: Path) -> None:
    """Begin a run with the stages of the newest other one: each is checked for what it depends on before it is used."""
    others = [path for path in runs.glob("*/stages") if path.parent != folder]
    if others and not (folder / "stages").exists():
        part = folder / "stages.part"  # an interrupted copy is not taken for a whole one
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(max(others, key=lambda path: path.stat().st_mtime), part)
        part.rename(folder / "stages")


def seconds(folder: Path, paths: list[Path]) -> tuple[float, ...]:
    """Median seconds an image of its proposals, of what the network makes of it (the conv map, or the crops' vectors),
    and of all that follows: pooling, classifier, boxes. The first image is looked at once before."""
    import sppdet
    from sppdet.data.images import read_image

    detector = sppdet.load(folder)
    times = []
    for path in paths[:1] + paths:
        image = read_image(path)
        start = time.perf_counter()
        proposals = detector.search(image)
        searched = time.perf_counter()
        maps, mirrored = detector.read(image, proposals), detector.read_mirror_image(image, proposals)
        read = time.perf_counter()
        detector.detect(maps, proposals, (image.shape[1], image.shape[0]), mirrored)
        times.append((searched - start, read - searched, time.perf_counter() - read))
    return tuple(np.median(times[1:], axis=0).round(3).tolist())


def accuracy(rows: list[Row], found: list[dict]) -> str:
    """11-point mAP without and with box regression, and the paper's."""
    lines = ["| | mAP | + box regression | paper | paper, + box regression |", "|---|---|---|---|---|"]
    for row, metrics in zip(rows, found):
        without = metrics["without_bbox"]["mAP"]
        lines.append(f"| {row.name} | {without:.1f} | {metrics['mAP']:.1f} | {row.paper[0]} | {row.paper[1]} |")
    return "\n".join(lines)


def spread(rows: list[Row], found: list[dict]) -> str:
    """Over the seeds of a configuration, mAP with box regression: mean and standard deviation."""
    seeds = defaultdict(list)
    for row, metrics in zip(rows, found):
        seeds[row.config, row.of, tuple(c for c in row.changes if not c.startswith("run.seed="))].append(
            (row.name, metrics["mAP"])
        )
    lines = ["| | seeds | mean | standard deviation |", "|---|---|---|---|"]
    for same in seeds.values():
        values = [value for _, value in same]
        if len(values) > 1:
            lines.append(f"| {same[0][0]} | {len(values)} | {np.mean(values):.1f} | {np.std(values, ddof=1):.1f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def per_class(rows: list[Row], found: list[dict]) -> str:
    """With box regression, as all tables from here on."""
    lines = ["| | " + " | ".join(row.name for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for name in found[0]["AP"]:
        values = [metrics["AP"][name] for metrics in found]
        lines.append(f"| {name} | " + " | ".join("-" if v is None else f"{v:.1f}" for v in values) + " |")
    return "\n".join(lines)


def costs(rows: list[Row], found: list[dict]) -> str:
    """Seconds by stage, of all images that it needs, and in training: all but the evaluation. Empty where a row took
    over an earlier one's result; the first row's proposals count for all. Disk is what the cache held of a row's
    images once the stages that ran had ended. Then seconds of detection in one image: its proposals, the network,
    and all that follows from pooling on."""
    stages = [stage for stage in STAGES if any(stage in metrics["stages"] for metrics in found)]
    heads = [*stages, "training", "peak memory, MB", "disk, MB", "an image: proposals", "network", "the rest"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row, metrics in zip(rows, found):
        taken = metrics["stages"]
        cells = [f"{taken[stage]['seconds']:.0f}" if stage in taken else "" for stage in stages]
        counted = {"proposals": found[0]["stages"].get("proposals", {"seconds": 0}), **taken}
        cells.append(f"{sum(cost['seconds'] for stage, cost in counted.items() if stage != 'evaluate'):.0f}")
        cells.append(f"{max(cost['peak_memory_mb'] for cost in taken.values()):.0f}")
        cells.append(f"{sum(cost.get('disk_mb', 0) for cost in taken.values()):.0f}")
        cells += [f"{value:.3f}" for value in metrics["detection"]]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


HEAD = """\
# {title}

Written by

    {command}

Every figure is from its run. PASCAL VOC2007, trained on {train} images and tested on {test}: not the papers' 5011
and 4952. One run a row.

{machine}

Proposals: {recall}."""


def document(options: argparse.Namespace, rows: list[Row], found: list[dict]) -> str:
    titles = {"ablation": "Accuracy: the paper's table", "systems": "The family compared"}
    head = HEAD.format(
        title=titles[options.table], command=command(options), machine=machine(),
        train=found[0]["training_images"], test=found[0]["pictures"], recall=recall_line(found[0]["proposals"]),
    )  # fmt: skip
    parts = [head]
    tables = {"Mean average precision": accuracy, "Spread": spread, "By class": per_class, "Costs": costs}
    for title, table in tables.items():
        lines = table(rows, found)
        if lines:
            parts += [f"## {title}", " ".join(table.__doc__.split()), lines]
    parts += [PAPERS] * (options.table == "systems")
    return "\n\n".join(parts) + "\n"


def command(options: argparse.Namespace) -> str:
    """How to repeat it, without the folders of this machine."""
    rows = [f"--rows '{text}'" for text in options.rows]
    given = ["--voc-root VOCDEVKIT", "--weights FILE", *rows, *["--all"] * options.all, *options.overrides]
    return " ".join(["python scripts/compare.py", options.table, *given])


def choose(table: Sequence[Row], texts: list[str]) -> list[Row]:
    """The rows of these names, in the table's order; all, if none is asked for.

    Raises:
        SppdetError: a text is no row's name, nor a part of one.
    """
    chosen = set() if texts else set(table)
    for text in texts:
        found = {row for row in table if row.name == text} or {row for row in table if text in row.name}
        if not found:
            raise SppdetError(f"--rows: no row's name holds {text!r}; they are {'; '.join(row.name for row in table)}")
        chosen |= found
    return [row for row in table if row in chosen]


def compare(options: argparse.Namespace) -> None:
    table = {"ablation": ABLATION, "systems": SYSTEMS}[options.table]
    rows = choose(table, options.rows)
    text = document(options, rows, [measure(row, options) for row in rows])
    if options.write:
        write_document(options.write, text)
    print(text)


def main(arguments: list[str] | None = None) -> int:
    return run(compare, parser().parse_intermixed_args(arguments), "interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
