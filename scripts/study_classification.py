"""Classify images of VOC2007 with SPP-net, as in the tables of He et al. 2014.

Prints the tables of docs/experiments/classification.md:
``images``: which classes an image shows, by linear SVMs on its pooled conv features (the paper's section 3.3).
``objects``: one object per image, a network trained at one size, at several, and without the pyramid (section 3.1).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sppdet import config
from sppdet.classification.classifier import resized
from sppdet.classification.run import evaluate_run, train_run
from sppdet.cli import common as cli
from sppdet.config.settings import ClassifierConfig
from sppdet.data.dataset import Dataset, Sample
from sppdet.data.images import read_image
from sppdet.data.voc import read_voc
from sppdet.evaluation.voc import average_precision
from sppdet.features.regions import scale_factor
from sppdet.networks.backbone import Backbone
from sppdet.ops.pooling import bins, pyramid_pool
from sppdet.training.pretraining import around
from sppdet.training.svm import Fit, Problem, fit, margins
from sppdet.utils.files import atomic_write, fingerprint
from sppdet.utils.parallel import in_threads, parallel_map

PYRAMID = (6, 3, 2, 1)
TESTS = ("crop", "full", "multi")


def study_images(options: argparse.Namespace) -> None:
    """Print mean average precision of linear SVMs on features of crops and of full images, 6 x 6 bins or a pyramid."""
    train, test = (read_voc(options.root, split, limit=options.limit) for split in ("trainval", "test"))
    backbone = Backbone.create(options.backbone, options.weights, options.device, engine="auto")
    print(f"{len(train)} images for training, {len(test)} for testing; {backbone.precision}\n")
    print("| view | bins | C | held-out mAP | test mAP | test area mAP |\n|---|---|---|---|---|---|", flush=True)
    for view in options.views:
        kind, _, side = view.partition("-")
        rows, test_rows = (
            pyramids(split, backbone, int(side), kind == "crop", Path(options.work)) for split in (train, test)
        )
        for name, bin_count in (("6 x 6, no pyramid", 36), ("6, 3, 2, 1", bins(PYRAMID))):
            train_rows, tested_rows = (unit_rows(pooled[:, :bin_count]) for pooled in (rows, test_rows))
            cost, held_out = choose_cost(train_rows, presence(train), options.costs)
            svms = fit_classes(train_rows, presence(train), cost)
            precisions = mean_precisions(tested_rows, presence(test), svms)
            print(table_row(f"{kind}, {side}", name, f"{cost:g}", held_out, *precisions), flush=True)


def presence(dataset: Dataset) -> np.ndarray:
    """Return ``(P, K)``: 1 for a class that an image shows, -1 if not, 0 (left out) if all objects are difficult."""
    shown = -np.ones((len(dataset), len(dataset.classes)), np.int64)
    for row, sample in zip(shown, dataset):
        row[sample.labels[sample.difficult]] = 0
        row[sample.labels[~sample.difficult]] = 1
    return shown


def pyramids(dataset: Dataset, backbone: Backbone, side: int, crop: bool, work: Path) -> np.ndarray:
    """Return the pyramid of every image's map, float16 ``(P, M, C)``, 6 x 6 bins first; stored in ``work``."""
    key = fingerprint([[s.id for s in dataset], backbone.settings(), side, crop, PYRAMID])
    path = work / f"pyramids-{key}.npy"
    if not path.exists():

        def pyramid(sample: Sample) -> np.ndarray:
            pixels, factor = view_of(read_image(sample.path), side, crop)
            conv_map = backbone(pixels, factor)
            whole = np.array([[0, 0, conv_map.shape[1], conv_map.shape[0]]])
            return pyramid_pool(conv_map, whole, PYRAMID)[0].astype(np.float16)

        pooled = np.stack(list(parallel_map(pyramid, list(dataset), 0, f"side {side}", threads=True)))
        atomic_write(path, lambda temporary: np.save(temporary, pooled))
    return np.load(path)


def view_of(image: np.ndarray, side: int, crop: bool) -> tuple[np.ndarray, float]:
    """Return an image, or its central square, and the factor that scales the shorter side to ``side``."""
    height, width = image.shape[:2]
    factor = scale_factor(width, height, side, 10**9)
    if crop:
        shorter = min(height, width)
        top, left = (height - shorter) // 2, (width - shorter) // 2
        image = np.ascontiguousarray(image[top : top + shorter, left : left + shorter])
    return image, factor


def unit_rows(pooled: np.ndarray) -> np.ndarray:
    """Flatten ``(P, M, C)`` to float16 ``(P, D)`` and scale each row to length 1."""
    rows = pooled.reshape(len(pooled), -1)
    length = np.array([np.linalg.norm(row.astype(np.float32)) for row in rows], np.float32)
    return np.stack([(row / norm).astype(np.float16) for row, norm in zip(rows, length)])


def choose_cost(rows: np.ndarray, shown: np.ndarray, costs: Sequence[float]) -> tuple[float, float]:
    """Return the C whose SVMs, fitted to two thirds of the images, do best on the rest, and their mAP there."""
    held_out = np.arange(len(rows)) % 3 == 2
    starts: list | None = None
    trials = []
    for cost in sorted(costs):
        svms = list(fit_classes(rows, np.where(held_out[:, None], 0, shown), cost, starts))
        starts = [svm.alpha for svm in svms]  # the next fit begins with the result of the last
        trials.append((mean_precisions(rows[held_out], shown[held_out], svms)[0], cost))
    precision, best = max(trials)
    return best, precision


def fit_classes(rows: np.ndarray, shown: np.ndarray, cost: float, starts: Sequence | None = None) -> Iterator[Fit]:
    """Yield the SVM of each class, fitted to the images where ``shown`` ``(P, K)`` is not 0."""
    problem = Problem(C=cost, positive_weight=1.0, bias=1.0, max_epochs=300)

    def fit_class(k: int) -> Fit:
        used = np.flatnonzero(shown[:, k])
        return fit(rows, used, shown[used, k], problem, starts[k] if starts else None)

    return in_threads(fit_class, range(shown.shape[1]), 2)


def mean_precisions(rows: np.ndarray, shown: np.ndarray, svms: Iterable[Fit]) -> np.ndarray:
    """Return mean average precision ``(2,)`` in percent, 11-point and area, over the images that are not left out."""
    precisions = []
    for k, svm in enumerate(svms):
        used = np.flatnonzero(shown[:, k])
        order = used[np.argsort(-margins(rows, used, svm), kind="stable")]
        hits = np.cumsum(shown[order, k] > 0)
        if len(hits) and hits[-1]:  # a class that no image shows has no precision
            curve = hits / hits[-1], hits / np.arange(1, len(order) + 1)
            precisions.append([average_precision(*curve, rule) for rule in ("11-point", "area")])
    return 100 * np.mean(precisions, axis=0)


def study_objects(options: argparse.Namespace) -> None:
    """Print errors of networks with and without the pyramid, trained at one size and at two, by test view."""
    folder = object_folders(options)
    counts = {split: len(list((folder / split).rglob("*.jpg"))) for split in ("train", "val")}
    print(f"{counts['train']} objects for training, {counts['val']} for testing; {options.epochs} epochs\n")
    print(f"| {options.backbone}, trained from random weights | seed | {' | '.join(TESTS)} |\n|---" + "|---" * 4 + "|")
    smaller = round(options.size * 180 / 224)
    networks = {
        f"no pyramid, {options.size}": ([6], [options.size]),
        f"pyramid, {options.size}": (PYRAMID, [options.size]),
        f"pyramid, {options.size} and {smaller}": (PYRAMID, [options.size, smaller]),
    }
    errors: dict[str, list[list[float]]] = {name: [] for name in networks}
    for seed in options.seeds:
        for name, (levels, sizes) in networks.items():
            errors[name].append(train_network(folder, options, list(levels), sizes, seed))
            print(table_row(name, str(seed), *errors[name][-1]), flush=True)
    for name, of_seeds in errors.items():
        print(table_row(name, "mean", *np.mean(of_seeds, axis=0)))


def train_network(
    folder: Path, options: argparse.Namespace, levels: list[int], sizes: list[int], seed: int
) -> list[float]:
    """Train a network and return its top-1 errors in percent, by the views of TESTS."""
    settings = config.override(
        ClassifierConfig(),
        [
            f"data.root={folder}", "data.val=null", f"levels={levels}", f"sizes={sizes}", f"epochs={options.epochs}",
            f"backbone.name={options.backbone}", "backbone.weights=random", "learning_rate=2e-3",
            f"device={options.device}", f"run.seed={seed}",
            f"run.dir={Path(options.work) / 'runs' / f'{len(levels)}-{len(sizes)}-{seed}'}",
        ],
    )  # fmt: skip
    with redirect_stdout(sys.stderr):  # what training logs is no part of the table
        train_run(settings)
    tested = (config.override(settings, ["data.val=val", f"test.views={views}"]) for views in TESTS)
    return [evaluate_run(changed)["top1_error"] for changed in tested]


def object_folders(options: argparse.Namespace) -> Path:
    """Write the objects of VOC as images, one folder per class: ``train/CLASS`` from trainval, ``val/CLASS`` from test.

    Objects that are difficult or shorter than 32 pixels on a side are left out. An image shows the box and a fifth of
    its sides around it, no larger than the training needs. Of each class at most ``options.most`` are written for
    training.

    Returns:
        The folder, which is written only once.
    """
    side = round(options.size * 256 / 224)
    train, test = (read_voc(options.root, split) for split in ("trainval", "test"))
    ids = [[sample.id for sample in dataset] for dataset in (train, test)]
    folder = Path(options.work) / f"objects-{fingerprint([ids, side, options.most])}"
    if (folder / "complete").exists():
        return folder
    for dataset, name, most in ((train, "train", options.most), (test, "val", None)):
        written = dict.fromkeys(dataset.classes, 0)
        for sample in dataset:
            image = read_image(sample.path)
            for number in np.flatnonzero(~sample.difficult):
                kind, box = dataset.classes[sample.labels[number]], sample.boxes[number]
                if (box[2:] - box[:2]).min() < 32 or (most and written[kind] >= most):
                    continue
                written[kind] += 1
                crop = around(image, box)
                crop = resized(crop, side) if min(crop.shape[:2]) > side else crop
                save = partial(Image.fromarray(crop).save, quality=95)
                atomic_write(folder / name / kind / f"{sample.id}-{number}.jpg", save)
    (folder / "complete").touch()
    return folder


def table_row(*cells: str | float) -> str:
    """Format a row of a Markdown table."""
    return f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:.1f}' for cell in cells)} |"


def view_name(text: str) -> str:
    """Check the name of a view, for the parser of arguments."""
    if not re.fullmatch(r"(crop|full)-[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is neither crop-N nor full-N")
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(prog="study_classification.py", description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(required=True)
    objects = kinds.add_parser("objects", help=study_objects.__doc__)
    objects.set_defaults(command=study_objects)
    objects.add_argument("--backbone", default="small", help="default: %(default)s")
    objects.add_argument("--size", type=int, default=112, help="the larger of the two sizes; default: %(default)s")
    objects.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    objects.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="each network is trained with each seed"
    )
    objects.add_argument("--most", type=int, default=200, help="training objects per class; default: %(default)s")
    images = kinds.add_parser("images", help=study_images.__doc__)
    images.set_defaults(command=study_images)
    images.add_argument("--backbone", default="squeezenet1_0", help="default: %(default)s")
    images.add_argument("--weights", default="imagenet", help="a file, or imagenet (torchvision's download)")
    images.add_argument(
        "--views",
        nargs="+",
        type=view_name,
        default=["crop-224", "full-224", "full-392"],
        metavar="crop-N|full-N",
        help="the central square or the whole of an image, scaled to a shorter side of N; default: %(default)s",
    )
    images.add_argument("--limit", type=int, metavar="N", help="only the first N images of each split")
    images.add_argument("--costs", type=float, nargs="+", default=[0.1, 0.3, 1, 3, 10], metavar="C")
    for kind in (images, objects):
        kind.add_argument("root", help="a VOC folder")
        kind.add_argument("--work", default="cache/classification", help="folder of files; default: %(default)s")
        kind.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    return cli.run(options.command, options)


if __name__ == "__main__":
    sys.exit(main())
