"""What more images would bring: models that learn from a quarter and a half of the images, measured on the same images.

Proposals and feature maps are those of the run, so that only SVMs, box regression and detection repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

from sppdet.config import in_folder, override
from sppdet.data import Dataset, divide_dataset
from sppdet.evaluation import read_metrics
from sppdet.training.pipeline import Pipeline

_FEWEST = 8  # training images: of fewer, a quarter is a single image
_FOLDS = 3  # that repeat with fewer images


def parts_of_curve(pipelines: Sequence[Pipeline]) -> list[Pipeline]:
    """Return pipelines that learn from a quarter and from a half of the images of others, drawn class by class.

    Args:
        pipelines: the folds of a cross-validation, of which the first three repeat with a quarter and a half of their
            images; or a single run, of which both halves and all four quarters are used.

    Returns:
        The pipelines, whose folders lie within those of the others. Empty where there are too few images.
    """
    parts = []
    for pipeline in pipelines[:_FOLDS]:
        if len(pipeline.inputs.train) < _FEWEST:
            return []
        subsets = [*_subsets(pipeline.inputs.train, pipeline.config.run.seed).items()]
        for name, images in subsets if len(pipelines) == 1 else subsets[:2]:
            without = override(pipeline.config, ["calibration.folds=0"])  # the curve shows no probabilities
            config = in_folder(without, pipeline.inputs.folder / "learning_curve" / name)
            label = f"{pipeline.name}learning curve, {name.replace('-', ' ')}: "
            parts.append(Pipeline(config, data=(images, pipeline.inputs.test), name=label))
            parts[-1].inputs.initial_backbone = pipeline.inputs.initial_backbone
    return parts


def _subsets(dataset: Dataset, seed: int) -> dict[str, Dataset]:
    """Return both halves and all quarters of a data set; the first ones of both come first."""
    halves = divide_dataset(dataset, 0.5, seed)
    quarters = [quarter for half in halves for quarter in divide_dataset(half, 0.5, seed)]
    named = {f"half-{n}": part for n, part in enumerate(halves, 1)}
    named |= {f"quarter-{n}": part for n, part in enumerate(quarters, 1)}
    return dict(sorted(named.items(), key=lambda item: item[0][-1]))


def curve_of(whole: Sequence[Pipeline], parts: Sequence[Pipeline]) -> list[dict]:
    """Return the points of a learning curve, from few images to all.

    Args:
        whole: pipelines that have been measured, with all images.
        parts: those of `parts_of_curve`, measured.

    Returns:
        For each share of the images: ``images`` (their mean number) and lists with ``mAP`` and ``AP75`` of each model.
    """
    kinds = [[part for part in parts if part.inputs.folder.name.startswith(kind)] for kind in ("quarter", "half")]
    points = []
    for pipelines in (*kinds, whole):
        metrics = [read_metrics(pipeline.inputs.folder) for pipeline in pipelines]
        images = sum(len(pipeline.inputs.train) for pipeline in pipelines) / len(pipelines)
        points.append(
            {
                "images": round(images),
                "mAP": [entry["mAP"] for entry in metrics],
                "AP75": [entry["coco"]["AP75"] for entry in metrics],
            }
        )
    return points
