"""Train and evaluate several configurations on the same images, and write their figures beside the papers'.

``python scripts/compare.py ablation --write docs/experiments/accuracy.md`` has the rows of the SPP-net paper's table of
detection (He et al. 2014, section 4): pooled conv features and fc layers, with and without box regression, and the
steps from there to the configs.
``python scripts/compare.py systems --write docs/experiments/systems.md`` compares SPP-net with its family on the
network of the preset ``quick``: accuracy, seconds of training and of detection, memory, disk. ``systems-squeezenet``
does the same with SqueezeNet. Finished stages are not computed again.
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
from sppdet.utils.environment import machine
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json, write_document

ROOT = Path(__file__).resolve().parents[1]
SPP, END, FAST, RCNN, BEST = (
    f"configs/voc07_{name}_squeezenet.yaml" for name in ("sppnet", "sppnet_end_to_end", "fast_rcnn", "rcnn", "best")
)
FIVE = "regions.scales=[480,576,688,864,1200]"
OBJECTS = "svm.positive_overlap=1"
# The paper's single scale, without image context, with fc layers that are not factorised.
ONE = ("regions.scales=[688]", "detection.context=0", "svd_ranks=[]")
PLAIN = (*ONE, "finetune.flip=false", "svm.flip=false", "bbox.flip=false", OBJECTS)
RIDGE, ONE_VIEW = "bbox.kind=ridge", "detection.flip=false"
TIMED = 8  # images on which detection is timed


@dataclass(frozen=True)
class Row:
    """A configuration to compare.

    Attributes:
        name: shown in the tables; the run's folder is made of it.
        config: the YAML file, relative to the repository.
        changes: ``key=value`` overrides.
        paper: the paper's mAP without and with box regression, as text.
        of: for an ensemble, which is not trained: names and weights of the rows whose detectors it averages.
    """

    name: str
    config: str
    changes: tuple[str, ...] = ()
    paper: tuple[str, str] = ("", "")
    of: tuple[tuple[str, float], ...] = ()

    @property
    def folder(self) -> str:
        """The name in lower case, with underscores."""
        return "_".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())


# The paper's figures: He et al. 2014, tables 9 and 10, ZF-5 trained on all of trainval and tested on all of test.
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
    Row("pool5, 2 scales, image context", SPP),
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
    Row("best and pool5 combined", BEST, of=(("best", 2), ("pool5, 2 scales, image context", 1))),
    Row("best, seed 1", BEST, ("run.seed=1",)),
    Row("best, seed 2", BEST, ("run.seed=2",)),
)
QUICK = "configs/voc07_quick.yaml"
LITE = (
    "backbone.name=efficientnet_lite0", "backbone.layers=[_blocks.10,_blocks.14,_blocks.15]",
    "pooling.layer_weights=[0.6,0.6,1]",
)  # fmt: skip
CONV, FC = (f"end_to_end.frozen_stride={stride}" for stride in (8, 16))  # the layers beyond this stride are trained
CROPS = ("proposals.mode=balanced", "bbox.min_overlap=0.5", "detection.vote=0.4")
# The papers' figures: He et al. 2014, table 9, pool5 (SPP-net with ZF-5, R-CNN with AlexNet); Girshick 2015, table 4
# (CaffeNet).
SYSTEMS = (
    Row("SPP-net", QUICK, ("detection.context=0",), ("43.0", "")),
    Row("SPP-net end to end", END, (*LITE, CONV)),
    Row("SPP-net, fc layers only", END, (*LITE, FC)),
    Row("Fast R-CNN", FAST, (*LITE, CONV), ("", "57.1")),
    Row("Fast R-CNN, fc layers only", FAST, (*LITE, FC)),
    Row("R-CNN", RCNN, (*LITE, "regions.crop_size=224", *CROPS), ("44.2", "")),
)
SYSTEMS_SQUEEZENET = (
    Row("SPP-net", SPP, PLAIN, ("43.0", "")),
    Row("SPP-net end to end", END),
    Row("SPP-net, fc layers only", END, (FC,)),
    Row("Fast R-CNN", FAST, (), ("", "57.1")),
    Row("Fast R-CNN, fc layers only", FAST, (FC,)),
    Row("R-CNN", RCNN, CROPS, ("44.2", "")),
)
# Figures of whole systems in the papers: other networks, twice the images, GPUs of their time.
PAPERS = """\
## The papers' figures

VOC2007, trained on the 5011 images of trainval, tested on the 4952 of test; seconds on a GPU, without proposals.

| | network | mAP | + box regression | seconds per image | source |
|---|---|---|---|---|---|
| R-CNN, fine-tuned fc7 | AlexNet | 54.2 | 58.5 | 9.03 | He et al. 2014, tables 9 and 10 |
| SPP-net, fine-tuned fc7, 1 scale | ZF-5 | 54.5 | 58.0 | 0.142 | He et al. 2014, tables 9 and 10 |
| SPP-net, fine-tuned fc7, 5 scales | ZF-5 | 55.2 | 59.2 | 0.382 | He et al. 2014, tables 9 and 10 |
| R-CNN | VGG16 | | 66.0 | 47.0 | Girshick 2015, table 4 |
| SPP-net, fc layers only | VGG16 | | 63.1 | 2.3 | Girshick 2015, table 4 |
| Fast R-CNN | CaffeNet | | 57.1 | 0.10 | Girshick 2015, table 4 |
| Fast R-CNN | VGG16 | | 66.9 | 0.32 | Girshick 2015, table 4 |"""


@dataclass(frozen=True)
class Table:
    """A document's rows.

    Attributes:
        title: of the document.
        rows: what is compared.
        windows: proposals per image of 150 + 75 images, unless all are asked for; 0: all images and proposals.
        squeezenet: whether the rows have SqueezeNet, whose weights are given.
        papers: whether the papers' figures follow.
    """

    title: str
    rows: Sequence[Row]
    windows: int = 0
    squeezenet: bool = True
    papers: bool = True

    @property
    def limits(self) -> tuple[str, ...]:
        """The settings that leave few images."""
        few = ("data.limit_train=150", "data.limit_test=75", f"proposals.max_windows={self.windows}")
        return few if self.windows else ()


# R-CNN takes 6 ms per window on two cores with SqueezeNet: even on these few images most of the time is R-CNN's.
TABLES = {
    "ablation": Table("Accuracy: the paper's table", ABLATION, papers=False),
    "systems": Table("The family compared", SYSTEMS, windows=1000, squeezenet=False),
    "systems-squeezenet": Table("The family compared, with SqueezeNet", SYSTEMS_SQUEEZENET, windows=2000),
}


def parser() -> argparse.ArgumentParser:
    """Make the parser of the script's arguments."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("table", choices=[*TABLES])
    arguments.add_argument("--voc-root", default="data/VOCdevkit", help="default: %(default)s")
    arguments.add_argument(
        "--weights",
        default="imagenet",
        help="weights of SqueezeNet 1.0, for the tables that have it; default: torchvision's",
    )
    arguments.add_argument("--cache", default="cache", help="cache of proposals and feature maps; default: %(default)s")
    arguments.add_argument(
        "--runs", type=Path, default=Path("runs/compare"), help="where each row has a folder; default: %(default)s"
    )
    arguments.add_argument(
        "--rows",
        action="append",
        default=[],
        help="the row of this name, or else the rows whose name contains it; may be repeated",
    )
    arguments.add_argument(
        "--all",
        action="store_true",
        help="systems: all images and proposals, not only 150 + 75 images and 1000 or 2000 windows",
    )
    arguments.add_argument("--write", type=Path, help="the Markdown file to write")
    arguments.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings for every row, such as data.limit_train=500"
    )
    return arguments


def measure(row: Row, options: argparse.Namespace) -> dict:
    """Train and evaluate one row.

    Returns:
        The content of metrics.json, ``training_images`` (their number) and ``detection`` (see `time_detection`).
    """
    from sppdet.training.stage_inputs import StageInputs

    folder = options.runs / row.folder
    locations = {"data.root": options.voc_root, "run.cache": options.cache}
    table = TABLES[options.table]
    if table.squeezenet:
        locations["backbone.weights"] = options.weights
    limits = () if options.all else table.limits
    changes = [f"{key}={value}" for key, value in locations.items()]
    changes += [f"run.dir={folder}", *row.changes, *limits, *options.overrides]
    settings = config.load(ROOT / row.config, changes)
    if row.of:
        print(f"\n{row.name}", flush=True)
        combine_rows(row, options, folder)
    else:
        copy_stages(folder, options.runs)
        print(f"\n{row.name}: {row.config} {' '.join(row.changes)}", flush=True)
        run_command(row, ["sppdet.train", str(ROOT / row.config), *changes])
    inputs = StageInputs(settings)
    paths = [sample.path for sample in inputs.test][:TIMED]
    figures = {"training_images": len(inputs.train), "detection": time_detection(folder, paths)}
    return read_json(folder / "metrics.json") | figures


def run_command(row: Row, command: list[str]) -> None:
    """Run a module of sppdet in a process of its own, so that memory of an earlier row is not counted as this row's."""
    status = subprocess.run([sys.executable, "-m", *command]).returncode
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise SppdetError(f"{row.name}: {command[0]} failed; see the error above")


def combine_rows(row: Row, options: argparse.Namespace, folder: Path) -> None:
    """Make the ensemble of an ensemble's row, unless it is up to date, and evaluate it."""
    from sppdet.detection import is_ensemble_of

    members = [options.runs / Row(name, "").folder for name, _ in row.of]
    if missing := [f"--rows '{name}'" for (name, _), run in zip(row.of, members) if not (run / "model.json").exists()]:
        raise SppdetError(f"{row.name}: is an ensemble of other rows; train them first: {' '.join(missing)}")
    if not is_ensemble_of(folder, members):
        shutil.rmtree(folder, ignore_errors=True)
        weights = [str(weight) for _, weight in row.of]
        run_command(row, ["sppdet.combine", *map(str, members), "--weights", *weights, "--output", str(folder)])
    run_command(row, ["sppdet.evaluate", str(folder), f"data.root={options.voc_root}", f"run.cache={options.cache}"])


def copy_stages(folder: Path, runs: Path) -> None:
    """Begin a new run with the stages of the newest other run; training uses those whose key fits."""
    others = [path for path in runs.glob("*/stages") if path.parent != folder]
    if others and not (folder / "stages").exists():
        incomplete = folder / "stages.part"  # so that an interrupted copy is not taken for a whole one
        shutil.rmtree(incomplete, ignore_errors=True)
        shutil.copytree(max(others, key=lambda path: path.stat().st_mtime), incomplete)
        incomplete.rename(folder / "stages")


def time_detection(folder: Path, paths: list[Path]) -> tuple[float, ...]:
    """Time the steps of detection in single images.

    Args:
        folder: a trained run.
        paths: the images; the first is processed once more before, to warm up.

    Returns:
        Median seconds per image of the proposals, of the network (feature maps, or the vectors of crops), and of the
        rest (pooling, classifier, boxes).
    """
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


def accuracy(rows: list[Row], results: list[dict]) -> str:
    """11-point mAP without and with box regression, and that of the paper."""
    lines = ["| | mAP | + box regression | paper | paper, + box regression |", "|---|---|---|---|---|"]
    for row, metrics in zip(rows, results):
        without = metrics["without_bbox"]["mAP"]
        lines.append(f"| {row.name} | {without:.1f} | {metrics['mAP']:.1f} | {row.paper[0]} | {row.paper[1]} |")
    return "\n".join(lines)


def spread(rows: list[Row], results: list[dict]) -> str:
    """mAP with box regression over the seeds of a configuration: mean and standard deviation."""
    by_settings: dict[tuple, list[tuple[str, float]]] = defaultdict(list)
    for row, metrics in zip(rows, results):
        changes = tuple(change for change in row.changes if not change.startswith("run.seed="))
        by_settings[row.config, row.of, changes].append((row.name, metrics["mAP"]))
    lines = ["| | seeds | mean | standard deviation |", "|---|---|---|---|"]
    for seeds in by_settings.values():
        values = [value for _, value in seeds]
        if len(values) > 1:
            lines.append(f"| {seeds[0][0]} | {len(values)} | {np.mean(values):.1f} | {np.std(values, ddof=1):.1f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def per_class(rows: list[Row], results: list[dict]) -> str:
    """11-point AP with box regression. So are the figures of all tables below."""
    lines = ["| | " + " | ".join(row.name for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for name in results[0]["AP"]:
        values = [metrics["AP"][name] for metrics in results]
        lines.append(f"| {name} | " + " | ".join("-" if value is None else f"{value:.1f}" for value in values) + " |")
    return "\n".join(lines)


def costs(rows: list[Row], results: list[dict]) -> str:
    """Seconds of each stage for all images that it needs, and of training: all stages but the evaluation. A cell is
    empty where a row took over an earlier row's result; the proposals of the first row count for every row. Disk is the
    size of a row's images in the cache at the end of the stages that ran. The last three columns are seconds of
    detection in one image: proposals, network, and the rest from pooling on."""
    stages = [stage for stage in STAGES if any(stage in metrics["stages"] for metrics in results)]
    heads = [*stages, "training", "peak memory, MB", "disk, MB", "per image: proposals", "network", "the rest"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row, metrics in zip(rows, results):
        stage_costs = metrics["stages"]
        cells = [f"{stage_costs[stage]['seconds']:.0f}" if stage in stage_costs else "" for stage in stages]
        counted = {"proposals": results[0]["stages"].get("proposals", {"seconds": 0}), **stage_costs}
        cells.append(f"{sum(cost['seconds'] for stage, cost in counted.items() if stage != 'evaluate'):.0f}")
        cells.append(f"{max(cost['peak_memory_mb'] for cost in stage_costs.values()):.0f}")
        cells.append(f"{sum(cost.get('disk_mb', 0) for cost in stage_costs.values()):.0f}")
        cells += [f"{value:.3f}" for value in metrics["detection"]]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


HEAD = """\
# {title}

Written by

    {command}

Every figure is from that run. PASCAL VOC2007, trained on {train} images and tested on {test}: the papers have 5011 and
4952. One run per row.

{machine}

Proposals: {recall}."""


def document(options: argparse.Namespace, rows: list[Row], results: list[dict]) -> str:
    """Return the Markdown document with all tables."""
    head = HEAD.format(
        title=TABLES[options.table].title, command=command(options), machine=machine(),
        train=results[0]["training_images"], test=results[0]["pictures"], recall=recall_line(results[0]["proposals"]),
    )  # fmt: skip
    sections = [head]
    tables = {"Mean average precision": accuracy, "Spread": spread, "By class": per_class, "Costs": costs}
    for title, table in tables.items():
        lines = table(rows, results)
        if lines:
            sections += [f"## {title}", " ".join((table.__doc__ or "").split()), lines]
    if TABLES[options.table].papers:
        sections.append(PAPERS)
    return "\n\n".join(sections) + "\n"


def command(options: argparse.Namespace) -> str:
    """Return the command that repeats the run, without the folders of this machine."""
    rows = [f"--rows '{text}'" for text in options.rows]
    weights = ["--weights FILE"] * TABLES[options.table].squeezenet
    arguments = ["--voc-root VOCDEVKIT", *weights, *rows, *["--all"] * options.all, *options.overrides]
    return " ".join(["python scripts/compare.py", options.table, *arguments])


def choose(table: Sequence[Row], texts: list[str]) -> list[Row]:
    """Choose rows of a table by name.

    Args:
        table: all rows.
        texts: each the name of a row, or a text that is in the names of one or more rows.

    Returns:
        The chosen rows in the table's order; all rows without ``texts``.

    Raises:
        SppdetError: if no row's name holds a text.
    """
    chosen = set() if texts else set(table)
    for text in texts:
        matches = {row for row in table if row.name == text} or {row for row in table if text in row.name}
        if not matches:
            raise SppdetError(f"--rows: no row's name holds {text!r}; they are {'; '.join(row.name for row in table)}")
        chosen |= matches
    return [row for row in table if row in chosen]


def compare(options: argparse.Namespace) -> None:
    """Train and evaluate the rows, and print and write the document."""
    rows = choose(TABLES[options.table].rows, options.rows)
    text = document(options, rows, [measure(row, options) for row in rows])
    if options.write:
        write_document(options.write, text)
    print(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    return run(compare, parser().parse_intermixed_args(arguments), "interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
