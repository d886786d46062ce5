"""What to do next: sentences that follow from the figures of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sppdet.evaluation.report.figures import Range
from sppdet.utils import counted

FEW_OBJECTS = 10  # with fewer test objects, AP of a class says little
_WIDE = 6.0  # points of mAP: with a wider range, small differences between settings mean nothing
_MUCH = 2.0  # points of mAP that an error must cost to be named
_LOW_RECALL = 0.93  # of the proposals
_ERRORS = {
    "localisation": "Badly placed boxes cost {gain}. Box regression (`bbox.enabled`), `detection.vote` and "
    "`proposals.mode=quality` place boxes better.",
    "duplicate": "Second boxes on one object cost {gain}. A lower `detection.nms` removes more of them.",
    "similar": "Similar classes taken for each other cost {gain}{pairs}. More images of both, or a stronger "
    "`backbone.name`, tell them apart.",
    "misclassified": "Other classes taken for each other cost {gain}{pairs}. More images of both, or a stronger "
    "`backbone.name`, tell them apart.",
    "background": "False alarms on background cost {gain}. First look at “Labels to check”: some may be objects that "
    "nobody labelled. If not, label more images that show such background.",
    "undetected": "Objects that have a proposal and yet no detection cost {gain}. Look at the missed objects: if they "
    "are smaller or darker than the others, label more like them; larger `regions.scales` help small ones.",
}


@dataclass(frozen=True)
class ClassFigures:
    """What the advice needs to know of a class: numbers of objects, AP in percent or None."""

    name: str
    train_objects: int | None
    test_objects: int
    ap: float | None


def advise(
    classes: Sequence[ClassFigures],
    images: int,
    mean_range: Range | None,
    gains: dict[str, float],
    confusions: Sequence[tuple[str, str, int]],
    proposal_recall: float,
    label_suspects: int,
    shared_images: int,
    best_threshold: str | None,
) -> list[str]:
    """Return sentences, the most urgent first.

    Args:
        classes: all classes.
        images: number of test images.
        mean_range: range that holds 95% of the mAP of resampled test images.
        gains: points of mAP that would be gained without each kind of error.
        confusions: (class, the class it is taken for, how often), the most frequent first.
        proposal_recall: share of the test objects that a proposal covers with an IoU of 0.5.
        label_suspects: number of labels and missing labels that are probably wrong.
        shared_images: number of test images that are training images too.
        best_threshold: threshold of the best F1, or None if nothing is found.
    """
    sentences: list[str] = []
    if shared_images:
        sentences.append(
            f"{counted(shared_images, 'test image')} {_are(shared_images)} also used for training: every figure here "
            "is too high. Choose other images for `data.test_split`."
        )
    if best_threshold is None:
        return [*sentences, "No test object was found. Check that the test images show what the training images show."]
    if label_suspects:
        sentences.append(
            f"Look at “Labels to check” first: {counted(label_suspects, 'place')} in the test images where a label may "
            "be wrong or missing. Mistakes in test labels lower the figures, and training labels were made like them."
        )
    if mean_range is not None and mean_range[1] - mean_range[0] > _WIDE:
        half = (mean_range[1] - mean_range[0]) / 2
        sentences.append(
            f"With other test images, mAP could as well be {mean_range[0]:.0f} or {mean_range[1]:.0f}. Differences of "
            f"less than about {half:.0f} points between two settings may be chance on these "
            f"{counted(images, 'image')}; more test images narrow the range."
        )
    few = [row for row in classes if row.test_objects < FEW_OBJECTS]
    if few:
        names = ", ".join(f"{row.name} ({row.test_objects})" for row in few[:5]) + (", …" if len(few) > 5 else "")
        sentences.append(
            f"The AP of {counted(len(few), 'class', 'classes')} rests on fewer than {FEW_OBJECTS} test objects and "
            f"says little: {names}. Add test images that show them."
        )
    sentences.extend(_weak_classes(classes))
    if proposal_recall < _LOW_RECALL:
        sentences.append(
            f"{100 * (1 - proposal_recall):.0f}% of the test objects have no proposal that covers them by half: they "
            "cannot be found, whatever is learned. Try `proposals.mode=quality`, a larger `proposals.max_side` or a "
            "smaller `proposals.min_size`."
        )
    sentences.extend(_costly_errors(gains, confusions))
    sentences.append(
        f"For the best balance of precision and recall over all classes, show detections from a score of "
        f"{best_threshold}: `sppdet detect --margin {best_threshold}`."
    )
    return sentences


def _weak_classes(classes: Sequence[ClassFigures]) -> Iterator[str]:
    """Yield a sentence about the classes that are found worst although, or because, few objects were trained on."""
    known = [row for row in classes if row.ap is not None and row.train_objects and row.test_objects >= FEW_OBJECTS]
    if len(known) < 2:
        return
    values, numbers = (sorted(column) for column in zip(*((row.ap or 0.0, row.train_objects or 0) for row in known)))
    middle, usual = values[len(values) // 2], numbers[len(numbers) // 2]
    weak = sorted(
        (r for r in known if (r.ap or 0) < middle - 5 and (r.train_objects or 0) <= usual), key=lambda r: r.ap or 0
    )
    if weak:
        names = ", ".join(f"{row.name} (AP {row.ap:.0f}, {row.train_objects} training objects)" for row in weak[:3])
        yield f"Label more images of the classes that are weak and rare in training: {names}."


def _costly_errors(gains: dict[str, float], confusions: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    """Yield a sentence about each of the two errors that cost most, if they cost much."""
    pairs = "; ".join(f"{name} for {other} {counted(number, 'time')}" for name, other, number in confusions[:2])
    for error in sorted((error for error in _ERRORS if gains.get(error, 0) >= _MUCH), key=lambda e: -gains[e])[:2]:
        gain = f"{gains[error]:.1f} points of mAP"
        yield _ERRORS[error].format(gain=gain, pairs=f" (most often {pairs})" if pairs else "")


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
