"""``python -m sppdet.classify train|eval|predict``: SPP-net as a classifier of whole images."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppdet.cli import common as cli
from sppdet.data import find_images
from sppdet.utils import SppdetError

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    from sppdet.classification import Classifier

COMMANDS = {
    "train": "train on images in one folder per class",
    "eval": "measure the errors of a trained classifier",
    "predict": "print the most probable classes of images",
}
_VIEWS = ("crop", "full", "multi")
_EVALUATED = ("test.", "data.", "device=", "workers=")  # settings that `eval` may change: the weights stay valid
_SHOWN_CLASSES = 5  # the summary names this many classes, and the top-5 error where there are more

_TRAIN = """\
Images for training are ROOT/train/CLASS/*.jpg, images to measure errors on ROOT/val/CLASS/*.jpg. data.train= and
data.val= give other folders; data.val=null measures nothing. Some settings (--print-config prints all of them):
  sizes=[224,180]      sizes of the training views, one per epoch in turn; [224] trains at one size
  levels=[6,3,2,1]     levels of the pyramid; [6] is a single level
  backbone.name=squeezenet1_0 backbone.weights=imagenet|random|FILE
  run.dir=runs/classifier
"""
_VIEWS_TEXT = """\
Views of an image: crop, its centre; full, all of it, at any size; multi, 9 windows and their mirror images at each of
six scales, cut from the feature maps (3 windows where the scale equals their side).
"""
_PREDICT = f"""\
{_VIEWS_TEXT}
--json prints one document; an image that could not be read has "error" instead of "classes":
  {{"model": "runs/classifier", "views": "crop",
   "images": [{{"path": "a.jpg", "classes": [{{"label": "dog", "probability": 0.93}}]}}]}}

Exit status: 0, or 2 after any error. If an image cannot be read the others are classified all the same.
"""


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments of ``train``."""
    parser = _parser("train", _TRAIN)
    parser.add_argument("root", metavar="ROOT", help="the folder that holds train/ and val/")
    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    parser.add_argument("--force", action="store_true", help="train anew although a trained classifier exists")
    parser.add_argument("--print-config", action="store_true", help="print every setting and stop")
    cli.add_overrides(parser, "sizes=[224]")
    return parser


def eval_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments of ``eval``."""
    parser = _parser("eval", _VIEWS_TEXT)
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/classifier")
    cli.add_overrides(parser, "test.views=full test.side=224 data.val=FOLDER")
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments of ``predict``."""
    parser = _parser("predict", _PREDICT)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image, a folder of images, or a quoted pattern")
    parser.add_argument("--model", metavar="RUN", default="runs/classifier", help="default: %(default)s")
    parser.add_argument("--top", type=cli.positive, metavar="N", default=5, help="classes shown; default: %(default)s")
    parser.add_argument("--views", choices=_VIEWS, help="views of an image; default: those of the training's settings")
    parser.add_argument("--side", type=cli.positive, metavar="S", help="the image's shorter side for crop and full")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda; default: %(default)s")
    return parser


def _parser(name: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser with the description of a command and ``epilog`` below its options."""
    text = COMMANDS[name]
    return argparse.ArgumentParser(
        prog=f"sppdet classify {name}",
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def train(options: argparse.Namespace) -> None:
    """Train a classifier and print its errors."""
    from sppdet import config
    from sppdet.config import ClassifierConfig

    settings = config.load(options.config, options.overrides, ClassifierConfig)
    settings = replace(settings, data=replace(settings.data, root=options.root))
    if options.print_config:
        print(config.to_yaml(settings), end="")
        return
    from sppdet.classification import train_run

    metrics = train_run(settings, force=options.force)
    if metrics:
        print(summary(metrics))
    print(f"{settings.run.dir}: sppdet classify predict --model {shlex.quote(settings.run.dir)} IMAGE ...")


def evaluate(options: argparse.Namespace) -> None:
    """Measure a trained classifier and print its errors."""
    from sppdet import config
    from sppdet.classification import evaluate_run, saved_settings

    for text in options.overrides:
        if not text.startswith(_EVALUATED):
            raise SppdetError(f"'{text}': only data.*, test.*, device and workers can differ from the training's")
    print(summary(evaluate_run(config.override(saved_settings(options.run), options.overrides))))


def summary(metrics: dict[str, Any]) -> str:
    """Return two lines about the metrics of `sppdet.classification.evaluate_run`.

    Examples:
        >>> test = {"views": "full", "side": 224, "scales": [224]}
        >>> error = {"cat": 25.0, "dog": 0.0}
        >>> print(summary({"pictures": 8, "test": test, "top1_error": 12.5, "top5_error": 0.0, "error": error}))
        8 images, views=full, side 224: top-1 error 12.50 %
        top-1 error by class, highest first: cat 25.0, dog 0.0
    """
    errors = f"top-1 error {metrics['top1_error']:.2f} %"
    if len(metrics["error"]) > _SHOWN_CLASSES:
        errors += f", top-5 error {metrics['top5_error']:.2f} %"
    test = metrics["test"]
    sizes = f"scales {test['scales']}" if test["views"] == "multi" else f"side {test['side']}"
    highest = sorted((error, name) for name, error in metrics["error"].items() if error is not None)[::-1]
    classes = ", ".join(f"{name} {error:.1f}" for error, name in highest[:_SHOWN_CLASSES])
    first = f"{metrics['pictures']} images, views={test['views']}, {sizes}: {errors}"
    return f"{first}\ntop-1 error by class, highest first: {classes}"


def predict(options: argparse.Namespace) -> int:
    """Classify every image, print the most probable classes, and return the exit status."""
    images = find_images(options.images)

    from sppdet.classification import load_classifier  # imported late: errors in the arguments come before torch
    from sppdet.config import check
    from sppdet.utils import few_or_many

    classifier = load_classifier(Path(options.model), options.device)
    changes = {"views": options.views, "side": options.side}
    classifier.test = replace(classifier.test, **{name: value for name, value in changes.items() if value})
    check(classifier.test)
    entries = []
    for entry in few_or_many(partial(_predict_one, classifier, options.top), images, "predicting"):
        if "error" in entry:
            cli.say(f"error: {entry['error']}", sys.stderr)
        elif not options.json:
            classes = ", ".join(f"{one['label']} {one['probability']:.3f}" for one in entry["classes"])
            cli.say(f"{entry['path']}: {classes}")
        entries.append(entry)
    if options.json:
        document = {"model": options.model, "views": classifier.test.views, "images": entries}
        cli.say(json.dumps(document, indent=2))
    return 2 if any("error" in entry for entry in entries) else 0


def _predict_one(classifier: Classifier, top: int, image: str) -> dict[str, Any]:
    """Return the entry of one image in the document of ``--json``, most probable classes first."""
    try:
        probabilities = classifier.predict(image)
    except SppdetError as error:
        return {"path": image, "error": str(error)}
    best = (-probabilities).argsort(kind="stable")[:top]
    classes = [{"label": classifier.classes[k], "probability": float(probabilities[k])} for k in best]
    return {"path": image, "classes": classes}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names, and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = cli.choose("sppdet classify", COMMANDS, arguments)
    if command == "train":
        options = cli.parse(train_parser(), arguments[1:])
        without = " without --force" if options.force else ""
        return cli.run(train, options, f"interrupted; the same command{without} goes on from here")
    if command == "eval":
        return cli.run(evaluate, cli.parse(eval_parser(), arguments[1:]))
    if command == "predict":
        return cli.run(predict, cli.parse(predict_parser(), arguments[1:]))
    return int(command)


if __name__ == "__main__":
    sys.exit(main())
