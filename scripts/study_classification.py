"""SPP-net as a classifier on VOC2007, as in the tables of He et al. 2014: prints the tables of docs/classification.md.

``images``: which classes an image shows, by linear SVMs on its pooled conv features (the paper's section 3.3).
``objects``: one object an image, a network trained at one size, at several, and without the pyramid (section 3.1).
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
from sppdet.data.dataset import Dataset
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


# Which classes an image shows


def study_images(options: argparse.Namespace) -> None:
    """Mean average precision of linear SVMs on the features of crops and of full images, 6 x 6 bins or a pyramid."""
    train, test = (read_voc(options.root, split, limit=options.limit) for split in ("trainval", "test"))
    backbone = Backbone.create(options.backbone, options.weights, options.device)
    print(f"{len(train)} images for training, {len(test)} for testing; {backbone.precision}\n")
    print("| view | bins | C | held-out mAP | test mAP | test area mAP |\n|---|---|---|---|---|---|", flush=True)
    for view in options.views:
        kind, _, side = view.partition("-")
        rows, test_rows = (
            pyramids(split, backbone, int(side), kind == "crop", Path(options.work)) for split in (train, test)
        )
        for name, bin_count in (("6 x 6, no pyramid", 36), ("6, 3, 2, 1", bins(PYRAMID))):
            cut = [unit_rows(part[:, :bin_count]) for part in (rows, test_rows)]
            cost, held = choose_cost(cut[0], presence(train), options.costs)
            svms = fit_classes(cut[0], presence(train), cost)
            precisions = mean_precisions(cut[1], presence(test), svms)
            print(table_row(f"{kind}, {side}", name, f"{cost:g}", held, *precisions), flush=True)


def presence(dataset: Dataset) -> np.ndarray:
    """``(P, K)``: 1 for a class that an image shows, -1 if not, 0 where all its objects are difficult: left out."""
    shown = -np.ones((len(dataset), len(dataset.classes)), np.int64)
    for row, sample in zip(shown, dataset):
        row[sample.labels[sample.difficult]] = 0
        row[sample.labels[~sample.difficult]] = 1
    return shown


def pyramids(dataset: Dataset, backbone: Backbone, side: int, crop: bool, work: Path) -> np.ndarray:
    """Float16 ``(P, M, C)``: the pyramid of every image's map, 6 x 6 bins first; made once and kept in ``work``."""
    key = fingerprint([[s.id for s in dataset], backbone.settings(), side, crop, PYRAMID])
    path = work / f"pyramids-{key}.npy"
    if not path.exists():

        def one(sample) -> np.ndarray:
            pixels, factor = view_of(read_image(sample.path), side, crop)
            conv_map = backbone(pixels, factor)
            whole = np.array([[0, 0, conv_map.shape[1], conv_map.shape[0]]])
            return pyramid_pool(conv_map, whole, PYRAMID)[0].astype(np.float16)

        found = np.stack(list(parallel_map(one, list(dataset), 0, f"side {side}", threads=True)))
        atomic_write(path, lambda temporary: np.save(temporary, found))
    return np.load(path)


def view_of(image: np.ndarray, side: int, crop: bool) -> tuple[np.ndarray, float]:
    """What is shown of an image, and its enlargement: its shorter side is ``side``, the crop its central square."""
    height, width = image.shape[:2]
    factor = scale_factor(width, height, side, 10**9)
    if crop:
        shorter = min(height, width)
        top, left = (height - shorter) // 2, (width - shorter) // 2
        image = np.ascontiguousarray(image[top : top + shorter, left : left + shorter])
    return image, factor


def unit_rows(pooled: np.ndarray) -> np.ndarray:
    """Float16 ``(P, D)`` of ``(P, M, C)``, each row of length 1."""
    rows = pooled.reshape(len(pooled), -1)
    length = np.array([np.linalg.norm(row.astype(np.float32)) for row in rows], np.float32)
    return np.stack([(row / norm).astype(np.float16) for row, norm in zip(rows, length)])


def choose_cost(rows: np.ndarray, shown: np.ndarray, costs: Sequence[float]) -> tuple[float, float]:
    """The C whose SVMs, fitted to two thirds of the images, do best on the others; and their 11-point mAP there."""
    held = np.arange(len(rows)) % 3 == 2
    starts, trials = None, []
    for cost in sorted(costs):
        svms = list(fit_classes(rows, np.where(held[:, None], 0, shown), cost, starts))
        starts = [svm.alpha for svm in svms]  # a fit goes on from the one with the C before
        trials.append((mean_precisions(rows[held], shown[held], svms)[0], cost))
    precision, best = max(trials)
    return best, precision


def fit_classes(rows: np.ndarray, shown: np.ndarray, cost: float, starts: Sequence | None = None) -> Iterator[Fit]:
    """A class's SVM after the other, each on the images where ``shown`` ``(P, K)`` is not 0."""
    problem = Problem(C=cost, positive_weight=1.0, bias=1.0, max_epochs=300)

    def one(k: int) -> Fit:
        used = np.flatnonzero(shown[:, k])
        return fit(rows, used, shown[used, k], problem, starts[k] if starts else None)

    return in_threads(one, range(shown.shape[1]), 2)


def mean_precisions(rows: np.ndarray, shown: np.ndarray, svms: Iterable[Fit]) -> np.ndarray:
    """``(2,)`` mean average precision in percent, 11-point and area; of each class over the images not left out."""
    found = []
    for k, svm in enumerate(svms):
        used = np.flatnonzero(shown[:, k])
        order = used[np.argsort(-margins(rows, used, svm), kind="stable")]
        right = np.cumsum(shown[order, k] > 0)
        if len(right) and right[-1]:  # a class that no image shows has no precision
            curve = right / right[-1], right / np.arange(1, len(order) + 1)
            found.append([average_precision(*curve, rule) for rule in ("11-point", "area")])
    return 100 * np.mean(found, axis=0)


# One object an image


def study_objects(options: argparse.Namespace) -> None:
    """Errors of networks with and without the pyramid, trained at one size and at two, by what they are tested on."""
    folder = object_folders(options)
    counts = {split: len(list((folder / split).rglob("*.jpg"))) for split in ("train", "val")}
    print(f"{counts['train']} objects for training, {counts['val']} for testing; {options.epochs} epochs\n")
    print(f"| {options.backbone}, trained from nothing | seed | {' | '.join(TESTS)} |\n|---" + "|---" * 4 + "|")
    smaller = round(options.size * 180 / 224)
    networks = {
        f"no pyramid, {options.size}": ([6], [options.size]),
        f"pyramid, {options.size}": (PYRAMID, [options.size]),
        f"pyramid, {options.size} and {smaller}": (PYRAMID, [options.size, smaller]),
    }
    errors: dict[str, list[list[float]]] = {name: [] for name in networks}
    for seed in options.seeds:
        for name, (levels, sizes) in networks.items():
            errors[name].append(train_one(folder, options, list(levels), sizes, seed))
            print(table_row(name, str(seed), *errors[name][-1]), flush=True)
    for name, found in errors.items():
        print(table_row(name, "mean", *np.mean(found, axis=0)))


def train_one(folder: Path, options: argparse.Namespace, levels: list[int], sizes: list[int], seed: int) -> list[float]:
    """Top-1 errors in percent of one network, by the views of TESTS."""
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
    return [evaluate_run(one)["top1_error"] for one in tested]


def object_folders(options: argparse.Namespace) -> Path:
    """The objects of VOC in a folder a class, written once: ``train/CLASS`` from trainval, ``val/CLASS`` from test.

    Of each that is not difficult and at least 32 pixels long both ways: its box and a fifth of its sides around it,
    no larger than the training needs; of a class at most ``options.most`` for training.
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
                part = around(image, box)
                part = resized(part, side) if min(part.shape[:2]) > side else part
                save = partial(Image.fromarray(part).save, quality=95)
                atomic_write(folder / name / kind / f"{sample.id}-{number}.jpg", save)
    (folder / "complete").touch()
    return folder


def table_row(*cells: str | float) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:.1f}' for cell in cells)} |"


def view_name(text: str) -> str:
    if not re.fullmatch(r"(crop|full)-[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is neither crop-N nor full-N")
    return text


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(prog="study_classification.py", description=__doc__.splitlines()[0])
    kinds = made.add_subparsers(required=True)
    objects = kinds.add_parser("objects", help=study_objects.__doc__)
    objects.set_defaults(command=study_objects)
    objects.add_argument("--backbone", default="small", help="default: %(default)s")
    objects.add_argument("--size", type=int, default=112, help="the larger of the two sizes; default: %(default)s")
    objects.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    objects.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a training of each network for each")
    objects.add_argument("--most", type=int, default=200, help="training objects a class; default: %(default)s")
    images = kinds.add_parser("pictures", help=study_images.__doc__)
    images.set_defaults(command=study_images)
    images.add_argument("--backbone", default="squeezenet1_0", help="default: %(default)s")
    images.add_argument("--weights", default="imagenet", help="a file, or imagenet (torchvision's download)")
    images.add_argument(
        "--views",
        nargs="+",
        type=view_name,
        default=["crop-224", "full-224", "full-392"],
        metavar="crop-N|full-N",
        help="the central square, or all of an image whose shorter side is N; default: %(default)s",
    )
    images.add_argument("--limit", type=int, metavar="N", help="only the first N images of each split")
    images.add_argument("--costs", type=float, nargs="+", default=[0.1, 0.3, 1, 3, 10], metavar="C")
    for made_one in (images, objects):
        made_one.add_argument("root", help="a VOC folder")
        made_one.add_argument("--work", default="cache/classification", help="folder of files; default: %(default)s")
        made_one.add_argument("--device", default="auto")
    options = made.parse_args(arguments)
    return cli.run(options.command, options)


if __name__ == "__main__":
    sys.exit(main())
