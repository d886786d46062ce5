"""Settings that follow the data: how proposals are searched, and at which scales windows are read.

The sizes of the training objects decide, and the recall of the proposals on a sample of the training images. All is
seeded and no measured time decides, so that equal images and settings give equal choices.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, combinations
from operator import attrgetter
from pathlib import Path

import numpy as np

from sppdet.config import Config, ProposalSettings, load
from sppdet.data import Dataset, Sample
from sppdet.features import choose_scales, scale_factor
from sppdet.ops import boxes as geometry
from sppdet.proposals import SelectiveSearch, best_overlaps
from sppdet.utils import parallel_map

KEYS = ("proposals.max_side", "proposals.min_size", "proposals.mode", "regions.scales", "regions.max_side")

_RECALL, _FOUND = 0.95, 0.5  # the share of the objects in the sample that a window must overlap, and the IoU
_NEGLIGIBLE = 0.01  # of the recall
_SIDES = (500, 700, 1000, 1400, 2000)  # of the working image; each takes twice the time of the one before
_SMALLEST = 10.0  # side of an object in the working image: segments are not smaller (100 pixels)
_MIN_SIZES = (20.0, 14.0, 10.0, 7.0, 5.0)
_IMAGES, _OBJECTS, _MOST_IMAGES = 30, 100, 60  # of the sample: 30 images, or more until there are 100 objects
_FIRST_IMAGES = 10  # of the sample, after which a search that misses too many objects is given up

_SCALES = (480, 576, 688, 864, 1200)
# Octaves by which windows must come nearer to the target for the time of a scale of 688. With 0.1, two scales for
# VOC2007 are 480 and 864, which were found to be best there (docs/experiments).
_OCTAVES_PER_COST = 0.1
_LONGEST = 5000  # pixels of a scaled image's longer side: as many as a scale of 1200 needs for a 4:1 panorama


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen.

    Attributes:
        key: the setting.
        value: its value, as a config has it.
        reason: a sentence for the user: why, with the measured figure, and what it costs.

    Examples:
        >>> Choice("regions.scales", [480, 864], "").override
        'regions.scales=[480, 864]'
    """

    key: str
    value: float | str | list[int]
    reason: str

    @property
    def override(self) -> str:
        """The choice as ``key=value``."""
        return f"{self.key}={json.dumps(self.value) if isinstance(self.value, bool) else self.value}"


@dataclass(frozen=True, eq=False)
class _Trial:
    """What one search found in the sample.

    Attributes:
        settings: of the search.
        recalls: for each of ``_min_sizes``, the share of the objects that a window overlaps by 0.5.
        windows: for each of these, the mean number of windows per image.
        seconds: mean time per image on one core.
    """

    settings: ProposalSettings
    recalls: np.ndarray
    windows: np.ndarray
    seconds: float

    @property
    def recall(self) -> float:
        """The recall with the lowest ``min_size``."""
        return float(self.recalls[-1])


def choose_settings(
    config: Config, dataset: Dataset, fixed: Collection[str] = (), scales: int | None = None
) -> list[Choice]:
    """Choose settings by the training images and their objects.

    Proposals are never searched with less effort than ``config`` says, but with more (a larger working image, more
    segmentations, smaller windows) until 95% of the objects in a sample of the images are found. Scales are chosen by
    the sizes of all objects.

    Args:
        config: the settings to start from; ``run.seed`` draws the sample.
        dataset: the training images.
        fixed: settings that the user has given, which stay as ``config`` has them.
        scales: number of scales; as many as ``config`` has by default. More than 3 are not chosen.

    Returns:
        A choice for each of `KEYS` that is not fixed and that this config uses. Empty without objects.

    Raises:
        SppdetError: an image of the sample cannot be read.
    """
    if not any(len(_objects(sample)) for sample in dataset):
        return []
    return [
        choice
        for choice in chain(
            _proposals(dataset, config, fixed),
            _scales(dataset, config, fixed, scales or len(config.regions.scales)),
        )
        if choice.key not in fixed
    ]  # fmt: skip


def choices_of_run(config: Config, fixed: Collection[str] = (), scales: int | None = None) -> list[Choice]:
    """Return the settings that the run in ``run.dir`` has, so that it is trained further with them.

    Args:
        config: the settings to start from.
        fixed: settings that the user has given.
        scales: number of scales; as many as ``config`` has by default.

    Returns:
        A choice for each of `KEYS` that is not fixed. Empty where there is no run, or one of another number of scales.
    """
    path = Path(config.run.dir) / "config.json"
    if not path.exists():
        return []
    run = load(path)
    if len(run.regions.scales) != (scales or len(config.regions.scales)):
        return []
    values = {key: attrgetter(key)(run) for key in KEYS}
    return [
        Choice(key, list(value) if isinstance(value, tuple) else value, f"as {path} has it")
        for key, value in values.items()
        if key not in fixed
    ]


def _objects(sample: Sample) -> np.ndarray:
    """Return the boxes of the objects that count, or all boxes where none does."""
    return sample.boxes if sample.difficult.all() else sample.boxes[~sample.difficult]


def _sides(sample: Sample) -> np.ndarray:
    """Return the sides, in pixels, of squares as large as the objects."""
    return np.sqrt(geometry.areas(_objects(sample)).astype(np.float64))


# Proposals


def _proposals(dataset: Dataset, config: Config, fixed: Collection[str]) -> list[Choice]:
    """Choose the working image, the mode and the size of the smallest windows."""
    sample = _sample(dataset, config.run.seed)
    trials: list[_Trial] = []
    for settings in _ladder(sample, config.proposals, fixed):
        trials.append(_try(sample, settings, fixed, config.workers))
        best = max(trial.recall for trial in trials[:-1]) if trials[1:] else 0.0
        larger = trials[1:] and settings.max_side != trials[-2].settings.max_side
        if trials[-1].recall >= _RECALL or (larger and trials[-1].recall < best + _NEGLIGIBLE):
            break
    enough = min(_RECALL, max(trial.recall for trial in trials) - _NEGLIGIBLE)
    chosen = next(trial for trial in trials if trial.recall >= enough)  # the cheapest, as trials become dearer
    position = int(np.flatnonzero(chosen.recalls >= chosen.recall - _NEGLIGIBLE)[0])
    settings, first = chosen.settings, trials[0]
    count = sum(len(_objects(image)) for image in sample)
    measured = (
        f"{_percent(chosen.recalls[position])} of {count} objects in {len(sample)} training images are found (IoU 0.5)"
    )
    if chosen is not first:
        measured += f", {_percent(first.recall)} with {first.settings.max_side} pixels and {first.settings.mode}"
    cost = f"{chosen.seconds:.2f} s per image and core" + (
        f" instead of {first.seconds:.2f}" if chosen is not first else ""
    )
    if chosen.recall < _RECALL:
        measured += f"; nothing that was tried finds {_percent(_RECALL)}"
    sides = np.concatenate([_sides(image) for image in dataset])
    windows = f"{chosen.windows[position]:.0f} windows per image"
    return [
        Choice("proposals.max_side", settings.max_side, f"{measured}; {cost}"),
        Choice("proposals.mode", settings.mode, f"measured together with proposals.max_side; {windows}"),
        Choice(
            "proposals.min_size",
            _min_sizes(config.proposals, fixed)[position],
            f"half of the objects are smaller than {np.median(sides):.0f} pixels a side, a twentieth than "
            f"{np.quantile(sides, 0.05):.0f}; "
            + (
                f"{windows} instead of {chosen.windows[0]:.0f}"
                if position
                else "smaller windows find no more"
            ),
        ),
    ]  # fmt: skip


def _sample(dataset: Dataset, seed: int) -> list[Sample]:
    """Draw images with objects, each time one that shows the class that has the fewest objects so far."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    waiting = {int(i): dataset[int(i)] for i in order if len(dataset[int(i)].boxes)}
    counts = np.zeros(len(dataset.classes), np.int64)
    sample: list[Sample] = []
    while waiting and len(sample) < _MOST_IMAGES and (len(sample) < _IMAGES or counts.sum() < _OBJECTS):
        left = np.unique(np.concatenate([image.labels for image in waiting.values()]))
        rarest = left[counts[left].argmin()]
        chosen = next(i for i, image in waiting.items() if rarest in image.labels)
        sample.append(waiting.pop(chosen))
        counts += np.bincount(sample[-1].labels, minlength=len(counts))
    return sample


def _ladder(sample: Sequence[Sample], start: ProposalSettings, fixed: Collection[str]) -> Iterator[ProposalSettings]:
    """Yield the searches to try, from cheap to dear, beginning with ``start``.

    `balanced` takes a quarter more time than `fast`, each larger working image twice as much as the one before, and
    `quality` nearly three times as much as `fast`. Working images in which too many objects are smaller than a segment
    are passed over.
    """
    yield start
    free = "proposals.mode" not in fixed and start.engine == "native"
    mode = "balanced" if free and start.mode == "fast" else start.mode
    longest = max(max(image.width, image.height) for image in sample)
    sides = [start.max_side]
    if start.max_side and "proposals.max_side" not in fixed:  # 0 is the whole image
        larger = [side for side in _SIDES if side > start.max_side]
        sides += [side for side, smaller in zip(larger, [start.max_side, *larger]) if smaller < longest]
    sides = [side for side in sides if _share_large_enough(sample, side) >= _RECALL] or sides[-1:]
    steps = [(side, mode) for side in sides] + [(sides[-1], "quality")] * free
    for side, name in steps:
        if (side, name) != (start.max_side, start.mode):
            yield replace(start, max_side=side, mode=name)


def _share_large_enough(sample: Sequence[Sample], side: int) -> float:
    """Return the share of the objects that are no smaller than a segment in a working image of ``side`` pixels."""
    shrunk = [_sides(image) * min(1.0, (side or math.inf) / max(image.width, image.height)) for image in sample]
    return float((np.concatenate(shrunk) >= _SMALLEST).mean())


def _min_sizes(settings: ProposalSettings, fixed: Collection[str]) -> list[float]:
    """Return the values of ``proposals.min_size`` to try, from the most to the fewest dropped windows."""
    if "proposals.min_size" in fixed:
        return [settings.min_size]
    return [settings.min_size, *(size for size in _MIN_SIZES if size < settings.min_size)]


def _try(sample: Sequence[Sample], settings: ProposalSettings, fixed: Collection[str], workers: int) -> _Trial:
    """Search the images of the sample; only the first ones, where these miss more objects than all may miss."""
    min_sizes = _min_sizes(settings, fixed)
    search = SelectiveSearch.of(replace(settings, min_size=min_sizes[-1], max_windows=0))
    search.warm_up()
    work = partial(_search_one, search=search, min_sizes=min_sizes, most=settings.max_windows)
    name = f"trying {settings.max_side or 'all'} pixels, {settings.mode}"
    may_miss = (1 - _RECALL) * sum(len(_objects(image)) for image in sample)
    results: list[tuple[np.ndarray, list[int], float]] = []
    for images in (sample[:_FIRST_IMAGES], sample[_FIRST_IMAGES:]):
        results += parallel_map(work, images, workers, name)
        found = np.concatenate([overlaps for overlaps, _, _ in results], axis=1) >= _FOUND
        if (~found[-1]).sum() > may_miss:
            break
    _, windows, seconds = zip(*results)
    return _Trial(settings, found.mean(axis=1), np.mean(windows, axis=0), float(np.mean(seconds)))


def _search_one(
    image: Sample, search: SelectiveSearch, min_sizes: Sequence[float], most: int
) -> tuple[np.ndarray, list[int], float]:
    """Search an image.

    Returns:
        For each of ``min_sizes`` the best overlaps of the objects, ``(len(min_sizes), N)``, and the number of windows;
        and the seconds of one core that the search took.
    """
    pixels = image.read()
    began = time.thread_time()
    windows = search(pixels)
    seconds = time.thread_time() - began
    shorter = (windows[:, 2:] - windows[:, :2]).min(axis=1, initial=np.inf)
    kept = [windows[shorter >= size][: most or None] for size in min_sizes]
    return np.array([best_overlaps(w, _objects(image)) for w in kept]), [len(w) for w in kept], seconds


# Scales


def _scales(dataset: Dataset, config: Config, fixed: Collection[str], count: int) -> list[Choice]:
    """Choose ``count`` scales of the feature maps, and the longest side of a scaled image."""
    regions = config.regions
    if regions.crop != "none" or count > 3:
        return []
    images = [image for image in dataset if len(_objects(image))]
    counts = np.bincount(np.concatenate([image.labels for image in images]), minlength=len(dataset.classes))
    sides = np.concatenate([_sides(image) for image in images])
    weights = np.concatenate([_weights(image, counts) for image in images])
    weights /= weights.sum()

    def distance(scales: tuple[int, ...], max_side: int) -> float:
        """Return by how many octaves windows are read larger or smaller than the target: the classes' mean."""
        read = np.concatenate([_read_sides(image, scales, max_side, regions.target) for image in images])
        return float(np.abs(np.log2(np.maximum(read, 1) / regions.target)) @ weights)

    max_side = regions.max_side
    if "regions.max_side" not in fixed:
        max_side = max(max_side, _LONGEST)
    tried = [regions.scales] if "regions.scales" in fixed else list(combinations(_SCALES, count))
    distances = {scales: distance(scales, max_side) for scales in tried}
    chosen = min(tried, key=lambda scales: distances[scales] + _OCTAVES_PER_COST * _cost(scales))
    # No longer than nearly all of the images need.
    needed = [max(chosen) * max(image.width, image.height) / min(image.width, image.height) for image in images]
    rounded = 100 * math.ceil(np.quantile(needed, 0.99) / 100)
    longest = max(regions.max_side, min(rounded, max_side))
    octaves = f"{distances[chosen]:.1f} octaves from {regions.target} x {regions.target} pixels"
    return [
        Choice(
            "regions.scales",
            list(chosen),
            f"objects of {np.quantile(sides, 0.05):.0f} to {np.quantile(sides, 0.95):.0f} pixels are read on average "
            f"{octaves}; the network reads {_cost(chosen):.1f} times the area of one scale of 688",
        ),
        Choice("regions.max_side", longest, f"99% of the images fit at a scale of {max(chosen)}"),
    ]


def _weights(image: Sample, counts: np.ndarray) -> np.ndarray:
    """Return the weight of each object that counts: all classes together weigh the same."""
    labels = image.labels if image.difficult.all() else image.labels[~image.difficult]
    return 1 / counts[labels]


def _read_sides(image: Sample, scales: Sequence[int], max_side: int, target: int) -> np.ndarray:
    """Return the sides that the objects have at the scales at which they are read."""
    factors = np.array([scale_factor(image.width, image.height, scale, max_side) for scale in scales])
    return _sides(image) * factors[choose_scales(_objects(image), factors, target)]


def _cost(scales: Sequence[int]) -> float:
    """Return the area that the network reads, relative to one scale of 688."""
    return sum(scale**2 for scale in scales) / 688**2


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
