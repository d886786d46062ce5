"""``python -m sppdet.label RUN IMAGES/ --as yolo``: write detections as annotations, to be corrected."""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.cli import common as cli
from sppdet.cli.detect import check_threshold
from sppdet.cli.detect_options import threshold
from sppdet.data import FORMATS, AnnotationFolder, Prelabelled, find_images
from sppdet.utils import SppdetError, atomic_write, file_digest, write_lines

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    from sppdet.detection import Detector, Ensemble

_LIST = "to-check.list"  # beside the annotations; no suffix that a reader of annotations looks for
_SHOWN = 10  # images named on the terminal

_EPILOG = """\
Files are written beside the images; with VOC's folder JPEGImages into Annotations, with YOLO's folder images into
labels, where these exist. voc and yolo write one file per image, coco and label-studio one for all: labels-coco.json
and labels-label-studio.json, or -2, -3 ... where one exists. An image in which nothing is found gets an empty
annotation.

A file that exists is left alone, and so is its image, unless label wrote it and it is unchanged since.

With --order uncertain the images come first of which a person will have to correct most: the sum, over the boxes that
are written, of the probability that they are wrong, and over the others of the probability that they are right. The
order is in to-check.list.

For Label Studio, give a labelling configuration with <Image name="image" value="$image"/> and <RectangleLabels
name="label" toName="image">; set LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT to the folder that holds the folder of images.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="sppdet label",
        description="Write what a detector finds as annotations, to be corrected in an annotation tool.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("images", metavar="IMAGES", help="a folder of images")
    parser.add_argument("--as", required=True, dest="form", choices=FORMATS, help="format of the annotations")
    parser.add_argument("--output", metavar="DIR", help="copy the images into this folder and annotate them there")
    parser.add_argument(
        "--threshold",
        type=threshold,
        default="auto",
        metavar="P",
        help="lowest probability of the boxes that are written; default: auto, as for sppdet detect",
    )
    parser.add_argument(
        "--order",
        choices=("uncertain", "name"),
        default="uncertain",
        help="which images come first; default: %(default)s",
    )
    parser.add_argument("--max", type=cli.positive, metavar="N", help="annotate the first N images alone")
    parser.add_argument("--overwrite", action="store_true", help="replace annotations that exist")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda; default: %(default)s")
    return parser


def label(options: argparse.Namespace) -> int:
    """Detect, write the annotations and their order, and return the exit status."""
    folder = Path(options.images)
    if not folder.is_dir():
        raise SppdetError(f"{folder}: no such folder; give a folder of images")
    sources = {Path(path).name: Path(path) for path in find_images([str(folder)])}
    output = Path(options.output) if options.output else folder
    targets = [output / name for name in sources]
    if output != folder:
        output.mkdir(parents=True, exist_ok=True)
        _check_copies(sources, output)
    annotations = AnnotationFolder(output, options.form, options.overwrite)
    paths = annotations.without_annotation(targets)
    if skipped := len(targets) - len(paths):
        cli.say(f"{skipped} images have an annotation and are left alone; --overwrite replaces it")
    if not paths:
        return cli.OK
    if options.order == "name" and options.max:
        paths = paths[: options.max]

    from sppdet.detection import load
    from sppdet.utils import few_or_many

    detector = load(options.run, options.device)
    check_threshold(detector, options.threshold, options.run)
    annotations.check_classes(detector.classes)
    detector.search.warm_up()
    detect = partial(_detect, detector, options.threshold)
    items = [(path, sources[path.name]) for path in paths]
    results = []
    failed = False
    for result in few_or_many(detect, items, "detecting"):
        if isinstance(result, str):
            cli.say(f"error: {result}", sys.stderr)
            failed = True
        else:
            results.append(result)
    if options.order == "uncertain":
        results.sort(key=lambda result: -result[1])
    results = results[: options.max]
    for image, _ in results:
        if not image.path.exists():
            atomic_write(image.path, partial(shutil.copyfile, sources[image.path.name]))
    written = annotations.write([image for image, _ in results], detector.classes)
    order = annotations.folder / _LIST
    write_lines(order, [image.path.name for image, _ in results])
    _report(results, written, order)
    return cli.FAILED if failed else cli.OK


def _check_copies(sources: dict[str, Path], output: Path) -> None:
    """Refuse a folder with another image of the name of one that will be copied."""
    for name, path in sources.items():
        copy = output / name
        if copy.exists() and file_digest(copy) != file_digest(path):
            raise SppdetError(f"{copy}: is another image than {path}; give another --output")


def _detect(
    detector: Detector | Ensemble, threshold: float | str, item: tuple[Path, Path]
) -> tuple[Prelabelled, float] | str:
    """Return an image with the boxes to write, and how many corrections to expect; the reason if it cannot be read."""
    from sppdet.data import read_image

    target, source = item
    try:
        image = read_image(source)
    except SppdetError as error:
        text = str(error)
        return text if text.startswith(str(source)) else f"{source}: {text}"
    every = detector.predict(image, threshold=None)
    shown = detector.select(every, threshold).one_per_place()  # type: ignore[arg-type]
    sure, likely = (detections.confidence.astype(float) for detections in (shown, every.one_per_place()))
    corrections = float((1 - sure).sum() + max(likely.sum() - sure.sum(), 0))
    height, width = image.shape[:2]
    return Prelabelled(target, (width, height), shown.names.tolist(), shown.xyxy, sure.tolist()), corrections


def _report(results: list[tuple[Prelabelled, float]], written: Path, order: Path) -> None:
    """Print what was written, and the images to begin with."""
    boxes = sum(len(image.names) for image, _ in results)
    cli.say(f"{written}: {len(results)} images annotated with {boxes} boxes; their order is in {order}")
    for image, corrections in results[:_SHOWN]:
        cli.say(f"  {image.path.name}: {len(image.names)} boxes, about {corrections:.1f} to correct")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(label, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
