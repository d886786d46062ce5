"""What end-to-end training reads of an image in one step: its pixels, its windows and their targets.

Names: n windows, f of them foreground, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from sppdet.config import EndToEndSettings
from sppdet.features import CachedSplit, WindowFeatures
from sppdet.networks import Backbone
from sppdet.ops import boxes as geometry
from sppdet.training.training_windows import sample_windows
from sppdet.utils import in_threads

# Where the hardest of the drawn windows learn, background may overlap no object at all and half of the windows may be
# foreground: online hard example mining (arXiv 1604.03540) replaces both of Fast R-CNN's thresholds.
_HARD_FOREGROUND, _HARD_LOWEST = 0.5, 0.0


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """One image of a training step, mirrored or not.

    Attributes:
        pixels: float32 ``(1, 3, H, W)``, or the crops of the windows ``(n, 3, H, W)``.
        factor: enlargement from the image to ``pixels``.
        size: width and height of the image in its file, in pixels.
        windows: ``(n, 4)``, foreground first, in pixels of the image in its file.
        labels: ``(n,)``; background is label K.
        targets: shifts ``(f, 4)`` from the first f windows, the foreground, to their nearest objects.
    """

    pixels: torch.Tensor
    factor: float
    size: tuple[int, int]
    windows: np.ndarray
    labels: np.ndarray
    targets: np.ndarray

    def only(self, rows: np.ndarray) -> TrainingImage:
        """Return a copy with the windows at ``rows``, which must be in ascending order."""
        foreground = rows[: np.searchsorted(rows, len(self.targets))]
        return replace(self, windows=self.windows[rows], labels=self.labels[rows], targets=self.targets[foreground])


def images_with_objects(split: CachedSplit) -> np.ndarray:
    """Return the numbers of the images that training can use."""
    return np.flatnonzero([len(sample.boxes) for sample in split.dataset])


def read_steps(
    split: CachedSplit,
    settings: EndToEndSettings,
    backbone: Backbone,
    features: WindowFeatures,
    seed: int,
    first: int,
    last: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[list[TrainingImage]]:
    """Yield the images of the steps from ``first`` to ``last - 1``, which a thread reads ahead.

    Each image with objects comes once per epoch. Order and draws depend on the seed and the epoch alone. A ``share``
    ``(r, n)`` is every n-th image of each step, from image r on.
    """
    useful = images_with_objects(split)

    def read(position: int) -> TrainingImage:
        epoch, number = divmod(position, len(useful))
        order = np.random.default_rng([seed, epoch]).permutation(useful)
        rng = np.random.default_rng([seed, epoch, number])
        return read_training_image(split, int(order[number]), settings, backbone, features, rng)

    count = settings.images_per_step
    of_step = range(share[0], count, share[1])
    images = in_threads(read, [step * count + i for step in range(first, last) for i in of_step], 1)
    for _ in range(first, last):
        yield list(islice(images, len(of_step)))


def read_training_image(
    split: CachedSplit,
    i: int,
    settings: EndToEndSettings,
    backbone: Backbone,
    features: WindowFeatures,
    rng: np.random.Generator,
) -> TrainingImage:
    """Read image ``i`` at one of the scales, mirrored with a probability of 1/2, with windows drawn by ``rng``."""
    image, (width, height) = split.dataset[i].read(), split.size(i)
    windows, labels, objects = _draw(split, i, settings, rng)
    scale = int(rng.choice(settings.scales))
    if settings.flip and rng.random() < 0.5:
        image, windows, objects = image[:, ::-1], geometry.mirror(windows, width), geometry.mirror(objects, width)
    targets = geometry.encode(windows[: len(objects)], objects)
    pixels, factor = features.trunk_input(backbone, image, windows, scale)
    return TrainingImage(pixels, factor, (width, height), windows, labels, targets)


def _draw(
    split: CachedSplit, i: int, settings: EndToEndSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the windows, labels and nearest objects that `sample_windows` draws with these settings."""
    if settings.hard_of:
        return sample_windows(split, i, settings.hard_of, _HARD_FOREGROUND, rng, _HARD_LOWEST)
    return sample_windows(split, i, settings.windows_per_image, settings.foreground, rng, settings.background)
