"""``python -m sppdet.classify train|eval|predict``: SPP-net as a classifier of whole images."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.cli import common as cli
from sppdet.data import find_images
from sppdet.utils import SppdetError

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    from sppdet.classification import Classifier

COMMANDS = {
    "train": "train on images in a folder a class",
    "eval": "measure the errors of a trained classifier",
    "predict": "print the likeliest classes of images",
}
_VIEWS = ("crop", "full", "multi")
_INTERRUPTED = "interrupted; the same command goes on from here"
_EVALUATED = ("test.", "data.", "device=", "workers=")  # the settings that a trained classifier may be measured with

_TRAIN = """\
Images lie in ROOT/train/CLASS/*.jpg and, to measure on, ROOT/val/CLASS/*.jpg; data.train= and data.val= give other
folders, data.val=null none. Settings, with their defaults in --print-config:
  sizes=[224,180]      sizes of the training views, alternate epochs; [224] trains at one size
  levels=[6,3,2,1]     the pyramid; [6] is none
  backbone.name=squeezenet1_0 backbone.weights=imagenet|random|FILE
  run.dir=runs/classifier
"""
_VIEWS_TEXT = """\
crop: the centre of the image. full: all of it, at any size. multi: 9 windows and their mirror images at each of six
scales, cut from the conv maps (3 where the scale is the windows' side).
"""
_PREDICT = f"""\
{_VIEWS_TEXT}
--json prints one document; an image that could not be done has "error" instead:
  {{"model": "runs/classifier", "views": "crop",
   "images": [{{"path": "a.jpg", "classes": [{{"label": "dog", "probability": 0.93}}]}}]}}

Exit status: 0, or 2 if anything could not be done; the other images are done all the same.
"""


def train_parser() -> argparse.ArgumentParser:
    made = _parser("train", _TRAIN)
    made.add_argument("root", metavar="ROOT", help="the folder that holds train/ and val/")
    made.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    made.add_argument("--force", action="store_true", help="begin anew although it is trained")
    made.add_argument("--print-config", action="store_true", help="print every setting and stop")
    cli.add_overrides(made, "sizes=[224]")
    return made


def eval_parser() -> argparse.ArgumentParser:
    made = _parser("eval", _VIEWS_TEXT)
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/classifier")
    cli.add_overrides(made, "test.views=full test.side=224 data.val=FOLDER")
    return made


def predict_parser() -> argparse.ArgumentParser:
    made = _parser("predict", _PREDICT)
    made.add_argument("images", nargs="+", metavar="IMAGE", help="an image, a folder of them, or a quoted pattern")
    made.add_argument("--model", metavar="RUN", default="runs/classifier", help="default: %(default)s")
    made.add_argument("--top", type=cli.positive, metavar="N", default=5, help="classes shown; default: %(default)s")
    made.add_argument("--views", choices=_VIEWS, help="what is looked at; default: as in the training's settings")
    made.add_argument("--side", type=cli.positive, metavar="S", help="the image's shorter side for crop and full")
    made.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    made.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda; default: %(default)s")
    return made


def _parser(name: str, epilog: str) -> argparse.ArgumentParser:
    text = COMMANDS[name]
    return argparse.ArgumentParser(
        prog=f"sppdet classify {name}",
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def train(options: argparse.Namespace) -> None:
    from sppdet import config
    from sppdet.config import ClassifierConfig

    settings = config.load(options.config, options.overrides, ClassifierConfig)
    settings = replace(settings, data=replace(settings.data, root=options.root))
    if options.print_config:
        print(config.to_yaml(settings), end="")
        return
    from sppdet.classification import train_run

    metrics = train_run(settings, cli.say, options.force)
    if metrics:
        print(summary(metrics))
    print(f"{settings.run.dir}: sppdet classify predict --model {settings.run.dir} IMAGE ...")


def evaluate(options: argparse.Namespace) -> None:
    from sppdet import config
    from sppdet.classification import evaluate_run, saved_settings

    for text in options.overrides:
        if not text.startswith(_EVALUATED):
            raise SppdetError(f"'{text}': only data.*, test.*, device and workers can differ from the training's")
    print(summary(evaluate_run(config.override(saved_settings(options.run), options.overrides))))


def summary(metrics: dict) -> str:
    """The errors of :func:`sppdet.classification.classifier.measure` for a terminal."""
    errors = f"top-1 error {metrics['top1_error']:.2f} %"
    if len(metrics["error"]) > 5:
        errors += f", top-5 error {metrics['top5_error']:.2f} %"
    test = metrics["test"]
    scale = f"scales {test['scales']}" if test["views"] == "multi" else f"side {test['side']}"
    worst = sorted((error, name) for name, error in metrics["error"].items() if error is not None)[::-1][:5]
    classes = ", ".join(f"{name} {error:.1f}" for error, name in worst)
    first = f"{metrics['pictures']} images, views={test['views']}, {scale}: {errors}"
    return f"{first}\ntop-1 error by class, highest first: {classes}"


def predict(options: argparse.Namespace) -> int:
    """Do every image; the exit status."""
    images = find_images(options.images)

    from sppdet.classification import load_classifier
    from sppdet.config import check
    from sppdet.utils import few_or_many

    classifier = load_classifier(Path(options.model), options.device)
    given = {"views": options.views, "side": options.side}
    classifier.test = replace(classifier.test, **{key: value for key, value in given.items() if value})
    check(classifier.test)
    entries = []
    for entry in few_or_many(partial(_predict_one, classifier, options.top), images, "predicting"):
        if "error" in entry:
            cli.say(f"error: {entry['error']}", sys.stderr)
        elif not options.json:
            found = ", ".join(f"{one['label']} {one['probability']:.3f}" for one in entry["classes"])
            cli.say(f"{entry['path']}: {found}")
        entries.append(entry)
    if options.json:
        document = {"model": options.model, "views": classifier.test.views, "images": entries}
        cli.say(json.dumps(document, indent=2))
    return 2 if any("error" in entry for entry in entries) else 0


def _predict_one(classifier: Classifier, top: int, image: str) -> dict:
    """What --json tells of one image: its likeliest classes, best first."""
    try:
        probabilities = classifier.predict(image)
    except SppdetError as error:
        return {"path": image, "error": str(error)}
    best = (-probabilities).argsort(kind="stable")[:top]
    classes = [{"label": classifier.classes[k], "probability": float(probabilities[k])} for k in best]
    return {"path": image, "classes": classes}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = cli.choose("sppdet classify", COMMANDS, arguments)
    if chosen == "train":
        return cli.run(train, train_parser().parse_intermixed_args(arguments[1:]), _INTERRUPTED)
    if chosen == "eval":
        return cli.run(evaluate, eval_parser().parse_intermixed_args(arguments[1:]))
    if chosen == "predict":
        return cli.run(predict, predict_parser().parse_intermixed_args(arguments[1:]))
    return chosen


if __name__ == "__main__":
    sys.exit(main())
