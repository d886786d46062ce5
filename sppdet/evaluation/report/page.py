"""Write the report of a run: RUN/report.html, one file that opens without a network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from sppdet.config import Config, to_dict
from sppdet.data import Dataset, load_split
from sppdet.evaluation.costs import read_costs
from sppdet.evaluation.diagnosis import errors_by_class, summarise
from sppdet.evaluation.diagnosis_run import stored_proposals
from sppdet.evaluation.report import advice
from sppdet.evaluation.report.charts import (
    Chart,
    draw_curve,
    draw_gains,
    draw_learning_curve,
    draw_reliability,
    draw_thresholds,
)
from sppdet.evaluation.report.examples import Group, choose_examples, perhaps_missed
from sppdet.evaluation.report.figures import (
    COCO_DRAWS,
    Range,
    ThresholdCounts,
    count_at_thresholds,
    object_counts,
    precision_recall_f1,
    resampled_ranges,
)
from sppdet.evaluation.report.more_images import curve_points, expectation
from sppdet.evaluation.report.thumbnails import Thumbnail, make_thumbnails
from sppdet.evaluation.run import PERHAPS_MISSED, LastEvaluation, read_last_evaluation
from sppdet.evaluation.voc import flatten_detections, flatten_ground_truth, match_label, precision_recall
from sppdet.utils import SppdetError, atomic_write, read_json

REPORT = "report.html"
_CURVES = 40  # classes with a curve; the page would become long and large with hundreds
_CONFUSIONS = 10
# Errors of `sppdet.evaluation.diagnosis` in the page's words: a name and a meaning.
_ERRORS = {
    "localisation": ("badly placed", "a detection on an object of its class, but with an IoU below 0.5"),
    "duplicate": ("second box", "a detection on an object that was already found"),
    "similar": ("similar class", "a detection on an object of a similar class"),
    "misclassified": ("other class", "a detection on an object of another class"),
    "both": ("other class, badly placed", "a detection on an object of another class, with an IoU below 0.5"),
    "background": ("background", "a detection on nothing that is labelled"),
    "outranked": (
        "low score",
        "an object that is found, but only by a detection with a lower score than false alarms have",
    ),
    "undetected": ("not detected", "an object without a detection, though a proposal covers it"),
    "unproposed": ("no proposal", "an object that no proposal covers by half, so that it cannot be found"),
}


def write_report(folder: str | os.PathLike, overrides: Iterable[str] = ()) -> Path:
    """Write RUN/report.html about the last evaluation of a run.

    An image that cannot be read, a data set whose training split is gone or a cache without proposals cost the report
    only what depends on them.

    Args:
        folder: the run's folder.
        overrides: ``key=value`` settings for files that have moved since, such as ``data.root=...`` or
            ``run.cache=...``.

    Returns:
        The path of the report.

    Raises:
        SppdetError: if the run was not evaluated, or its files belong to another evaluation or cannot be read.
        OSError: if the report cannot be written; the exception names a file.
    """
    last = read_last_evaluation(folder, overrides)
    page, path = report_page(last), last.folder / REPORT
    # A class name from JSON may hold a lone surrogate, which UTF-8 cannot.
    atomic_write(path, lambda temporary: temporary.write_bytes(page.encode("utf-8", "replace")))
    return path


def report_page(last: LastEvaluation) -> str:
    """Return the report as HTML.

    Raises:
        SppdetError: if the detections are not those of metrics.json.
    """
    counts = count_at_thresholds(last.dataset, last.detections)
    return _template(counts.decimals).render(_content(last, counts))


def _template(decimals: int) -> jinja2.Template:
    """Return the template of the page, which escapes every text that is put in; thresholds have so many decimals."""
    files = resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "figure": _figure,
        "between": _between,
        "threshold": _threshold(decimals),
        "code": _with_code,
    }
    return environment.get_template("page.html")


def _content(last: LastEvaluation, counts: ThresholdCounts) -> dict[str, object]:
    """Return the values of the template's names."""
    dataset, detections, metrics = last.dataset, last.detections, last.metrics
    proposals, proposals_known = _proposals(last)
    errors = errors_by_class(dataset, detections, proposals)
    diagnosis = summarise(dataset, errors)
    last.check_map(diagnosis["mAP"])
    train, shared = _training_images(last)
    ranges = resampled_ranges(dataset, detections, metrics["coco"]["AP"])
    suspects, mistakes = choose_examples(dataset, detections, errors, counts)
    suspect_groups, mistake_groups = _with_thumbnails(dataset, suspects, mistakes, last.config.workers)
    missed = _perhaps_missed(last, train)
    train_objects = [None] * len(dataset.classes) if train is None else object_counts(train).tolist()
    classes = [
        advice.ClassFigures(name, number, objects, metrics["AP"][name])
        for name, number, objects in zip(dataset.classes, train_objects, counts.objects.tolist())
    ]
    gains = {
        error: 0.0 if diagnosis["mAP"] is None else row["mAP"] - diagnosis["mAP"]
        for error, row in diagnosis["errors"].items()
        if proposals_known or error != "unproposed"
    }
    reliability = "calibration" in metrics and metrics["calibration"]["error"] is not None
    costly_first = sorted(gains, key=lambda error: -gains[error])
    confusions = _confusions(diagnosis)
    return {
        "name": last.folder.resolve().name,
        "written": datetime.now(),
        "evaluated": datetime.fromtimestamp((last.folder / "metrics.json").stat().st_mtime),
        "metrics": metrics,
        "ranges": ranges,
        "coco_draws": min(ranges.draws, COCO_DRAWS),
        "advice": advice.advise(
            classes, len(dataset), ranges.mean, gains, confusions, metrics["proposals"]["recall@0.5"],
            sum(group.count for group in suspects), shared,
            None if (best := counts.best()) is None else _threshold(counts.decimals)(best),
        ),
        "more_images": _more_images(metrics),
        "can_measure_more_images": _fixed_network(last.config),
        "folder": str(last.folder),
        "few_objects": advice.FEW_OBJECTS,
        "classes": [
            {"figures": row, "range": ranges.ap[k], "best": counts.best(k)} for k, row in enumerate(classes)
        ],
        "splits": _split_rows(last, train),
        "threshold": _threshold_section(last, counts),
        "errors": [
            {
                "name": _ERRORS[error][0], "meaning": _ERRORS[error][1], "gain": gains[error],
                **diagnosis["errors"][error],
            }
            for error in costly_first
        ],
        "gains_chart": _svg(draw_gains([_ERRORS[e][0] for e in costly_first], [gains[e] for e in costly_first])),
        "reliability": reliability,
        "reliability_chart": _svg(draw_reliability(metrics["calibration"]["bins"])) if reliability else "",
        "proposals_known": proposals_known,
        "confusions": confusions,
        "perhaps_missed": missed,
        "suspects": suspect_groups,
        "mistakes": mistake_groups,
        "system": _system(last.config),
        "changed": _changed_settings(last.config),
        "stages": read_costs(last.folder),
        "versions": _versions(last.folder),
    }  # fmt: skip


def _more_images(metrics: dict) -> dict[str, object] | None:
    """Return what the section on more images shows; None without a learning curve."""
    points = curve_points(metrics.get("learning_curve", []))
    if not points:
        return None
    return {"points": points, "chart": _svg(draw_learning_curve(points)), "text": expectation(points)}


def _fixed_network(config: Config) -> bool:
    """Whether `sppdet report --learning-curve` can measure a run: its network has not learned from the images."""
    return config.backbone.weights != "pretrain" and not config.end_to_end.enabled and config.features == "pool5"


def _proposals(last: LastEvaluation) -> tuple[list[np.ndarray], bool]:
    """Return the proposals of every image and True; without a cache the objects' boxes in their place, and False."""
    try:
        return list(stored_proposals(last)), True
    except (SppdetError, OSError, KeyError):  # KeyError: an ensemble's model.json names no proposals
        return [sample.boxes for sample in last.dataset], False


def _training_images(last: LastEvaluation) -> tuple[Dataset | None, int]:
    """Return the training split, None if it cannot be read any more, and how many test images are in it."""
    data = last.config.data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training has said them
            train = load_split(last.config, data.train_split, last.dataset.classes, data.limit_train)
    except SppdetError:
        return None, 0
    return train, len({sample.path for sample in train} & {sample.path for sample in last.dataset})


def _split_rows(last: LastEvaluation, train: Dataset | None) -> list[tuple[str, str, int | None, int | None]]:
    """Return (use, name, images, objects) of the training and the test split."""
    data = last.config.data
    rows: list[tuple[str, str, int | None, int | None]] = []
    for use, name, split in (("training", data.train_split, train), ("test", data.test_split, last.dataset)):
        known = (None, None) if split is None else (len(split), int(object_counts(split).sum()))
        rows.append((use, name, *known))
    return rows


def _threshold_section(last: LastEvaluation, counts: ThresholdCounts) -> dict[str, object]:
    """Return what the section on thresholds shows: charts, a row per class, and the counts that its script reads."""
    names, start = last.dataset.classes, counts.start
    total = counts.hits.sum(axis=0), counts.false_alarms.sum(axis=0), int(counts.objects.sum())
    chart = draw_thresholds(counts.thresholds, *precision_recall_f1(*total))
    hits, false_alarms = counts.hits[:, start], counts.false_alarms[:, start]
    figures = zip(*(values.tolist() for values in precision_recall_f1(hits, false_alarms, counts.objects)))
    rows = [
        dict(zip(("name", "objects", "hits", "false_alarms", "precision", "recall", "f1"), (*values, *row)))
        for *values, row in zip(names, counts.objects.tolist(), hits.tolist(), false_alarms.tolist(), figures)
    ]
    flat, truth = flatten_detections(last.detections), flatten_ground_truth(last.dataset)
    curves = []
    for k in sorted(np.argsort(-counts.objects, kind="stable")[:_CURVES].tolist()):
        match = match_label(flat, truth, k)
        if match.positives:
            curve = draw_curve(*precision_recall(match), k)
            curves.append({"label": k, "name": names[k], "svg": _svg(curve), "x": curve.x, "y": curve.y})
    precision, recall, f1 = (float(v) for v in precision_recall_f1(total[0][start], total[1][start], total[2]))
    return {
        "start": start,
        "values": counts.thresholds.tolist(),
        "best": counts.best(),
        "rows": rows,
        "total": {
            "objects": total[2], "hits": int(total[0][start]), "false_alarms": int(total[1][start]),
            "precision": precision, "recall": recall, "f1": f1,
        },
        "chart": _svg(chart),
        "x": chart.x,
        "y": chart.y,
        "curves": curves,
        "without_curve": len(names) - len(curves),
        "data": {
            "thresholds": counts.thresholds.tolist(), "decimals": counts.decimals, "hits": counts.hits.tolist(),
            "falseAlarms": counts.false_alarms.tolist(), "objects": counts.objects.tolist(),
        },
    }  # fmt: skip


@dataclass(frozen=True)
class _ShownGroup:
    """A group of examples with their thumbnails."""

    group: Group
    thumbnails: list[Thumbnail]


def _with_thumbnails(
    dataset: Dataset, suspects: Sequence[Group], mistakes: Sequence[Group], workers: int
) -> tuple[list[_ShownGroup], list[_ShownGroup]]:
    """Make the thumbnails of all groups together, which reads an image once; leave out groups without examples."""
    examples = [example for group in (*suspects, *mistakes) for example in group.examples]
    thumbnails = iter(make_thumbnails(dataset, examples, workers))
    shown = [
        [_ShownGroup(group, [next(thumbnails) for _ in group.examples]) for group in groups if group.examples]
        for groups in (suspects, mistakes)
    ]
    return shown[0], shown[1]


def _perhaps_missed(last: LastEvaluation, train: Dataset | None) -> list[_ShownGroup]:
    """Return what the labels of the training images perhaps miss; empty if nobody looked for that, or nothing is."""
    path = last.folder / PERHAPS_MISSED
    if train is None or not path.is_file():
        return []
    group = perhaps_missed(train, read_json(path, perhaps_missed=list)["perhaps_missed"])
    if not group.examples:
        return []
    return [_ShownGroup(group, make_thumbnails(train, group.examples, last.config.workers))]


def _confusions(diagnosis: dict) -> list[tuple[str, str, int]]:
    """Return (class that is there, class it is taken for, how often) of the sure detections, most frequent first."""
    pairs = [
        (other, name, number)
        for name, figures in diagnosis["classes"].items()
        for other, number in figures["confused_with"].items()
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:_CONFUSIONS]


def _system(config: Config) -> list[tuple[str, str]]:
    """Return the choices that make the detector, in words."""
    regions = {"none": "pooled from feature maps"}.get(config.regions.crop, f"crops, {config.regions.crop}")
    boxes = f"{config.bbox.kind} regression" if config.bbox.enabled else "as proposed"
    learned = "end to end" if config.end_to_end.enabled else "with fixed conv layers"
    classifier = "one linear SVM per class" if config.classifier == "svm" else config.classifier
    return [
        ("network", f"{config.backbone.name}, weights {Path(config.backbone.weights).name}, trained {learned}"),
        ("proposals", f"selective search, {config.proposals.mode}, longest side {config.proposals.max_side}"),
        ("windows", f"{regions}; scales {_listed(config.regions.scales)}; bins {_listed(config.pooling.levels)}"),
        ("features", config.features),
        ("classifier", classifier),
        ("boxes", boxes),
        ("seed", str(config.run.seed)),
    ]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _changed_settings(config: Config) -> list[tuple[str, str]]:
    """Return the settings that differ from the defaults, as key and value."""

    def flat(values: dict, prefix: str = "") -> dict[str, object]:
        result: dict[str, object] = {}
        for name, value in values.items():
            result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return result

    defaults = flat(to_dict(Config()))
    return [(key, str(value)) for key, value in flat(to_dict(config)).items() if defaults.get(key) != value]


def _versions(folder: Path) -> dict[str, str]:
    """Return the versions that the training recorded; empty if it recorded none."""
    path = folder / "config.json"
    return read_json(path).get("versions", {}) if path.is_file() else {}


def _svg(chart: Chart) -> Markup:
    """Return a chart for the template; it holds no text of the user's."""
    return Markup(chart.svg)


def _percent(value: float | None) -> str:
    """Format a share in 0..1 as percent.

    Examples:
        >>> _percent(0.5), _percent(None), _percent(float("nan"))
        ('50.0%', '–', '–')
    """
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f}%"


def _with_code(text: str) -> Markup:
    """Return a text for the template whose parts between backticks are code.

    Examples:
        >>> _with_code("set `nms` < 1")
        Markup('set <code>nms</code> &lt; 1')
    """
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(text.split("`"))
    )


def _threshold(decimals: int) -> Callable[[float | None], str]:
    """Return a function that formats a threshold."""
    return lambda value: "–" if value is None else f"{value:.{decimals}f}"


def _figure(value: float | None) -> str:
    """Format a figure in percent with one decimal."""
    return "–" if value is None else f"{value:.1f}"


def _between(values: Range | None) -> str:
    """Format a range."""
    return "–" if values is None else f"{values[0]:.1f} to {values[1]:.1f}"
