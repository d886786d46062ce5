"""A detector as it sees an image whose proposals are known: its networks read the image, and it judges the windows.

Names: N proposals, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import DetectionSettings
from sppdet.detection.candidates import (
    Candidates,
    WeightedScores,
    WindowScores,
    choose_candidates,
    move,
    rescore,
    suppress_and_vote,
)
from sppdet.detection.detections import Detections
from sppdet.ops import boxes as geometry
from sppdet.ops import is_tensor
from sppdet.proposals import SelectiveSearch
from sppdet.utils import set_thread_count, thread_count

if TYPE_CHECKING:
    from sppdet.detection.detector import Detector


class WindowDetector(ABC):
    """What a single detector and an ensemble do with the windows of an image.

    Attributes:
        classes: K names.
        search: computes the proposals.
        detection: settings of the steps from scored windows to detections.
    """

    detection: DetectionSettings

    if TYPE_CHECKING:  # the fields or properties of subclasses

        @property
        def classes(self) -> tuple[str, ...]: ...

        @property
        def search(self) -> SelectiveSearch: ...

    @property
    @abstractmethod
    def parts(self) -> tuple[Detector, ...]:
        """The detectors, each with its network, that score the windows."""

    @property
    @abstractmethod
    def part_weights(self) -> tuple[float, ...]:
        """The weight of each of ``parts`` in the means of margins and box regressions; the sum is 1."""

    @property
    def needs_windows(self) -> bool:
        """Whether `read` has to know the proposals, as R-CNN does."""
        return any(part.features.needs_windows for part in self.parts)

    def read_and_search(self, image: np.ndarray) -> tuple[list[Any], list[Any] | None, np.ndarray]:
        """Return what `read` and `read_mirror_image` return for an image, and its proposals."""
        threads = thread_count()
        # With one thread this is one of many workers, and the other cores are busy. The native search uses all cores.
        if threads == 1 or self.needs_windows or self.search.engine == "native":
            proposals = self.search(image)
            return self.read(image, proposals), self.read_mirror_image(image, proposals), proposals
        with ThreadPoolExecutor(1) as helper:
            search = helper.submit(self.search, image)
            # The threads of a layer wait for each other: one that shared its core with the search would delay them all.
            set_thread_count(threads - 1)
            try:
                maps, mirrored = self.read(image), self.read_mirror_image(image)
            finally:
                set_thread_count(threads)
            return maps, mirrored, search.result()

    def read(self, image: np.ndarray, proposals: np.ndarray | None = None) -> list[Any]:
        """Run the network of each of ``parts`` on an image.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            proposals: ``(N, 4)`` pixel edges; only needed if ``needs_windows``.

        Returns:
            For each part what its ``features.read`` returns: feature maps, or with R-CNN the vectors of the proposals.
        """
        return [part.features.read(part.backbone, image, proposals) for part in self.parts]

    def read_mirror_image(self, image: np.ndarray, proposals: np.ndarray | None = None) -> list[Any] | None:
        """Run the networks on the mirror image of an image.

        Args:
            image: RGB uint8 ``(H, W, 3)``, not mirrored.
            proposals: ``(N, 4)`` pixel edges in the image itself; only needed if ``needs_windows``.

        Returns:
            What `read` returns for the mirror image; None unless ``detection.flip`` is set.
        """
        if not self.detection.flip:
            return None
        mirrored = None if proposals is None else geometry.mirror(proposals, image.shape[1])
        return self.read(np.ascontiguousarray(image[:, ::-1]), mirrored)

    def window_scores(
        self, maps: Sequence[Any], proposals: np.ndarray, size: tuple[int, int], mirrored: Sequence[Any] | None = None
    ) -> list[tuple[float, WindowScores]]:
        """Score the proposals of an image with every one of ``parts``.

        Args:
            maps: what `read` returned for the image.
            proposals: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image in pixels.
            mirrored: what `read` returned for the mirror image; None leaves it out.

        Returns:
            (weight, scores) pairs; the weights sum to 1. Empty without proposals.
        """
        if not len(proposals):
            return []
        scores = []
        for n, (part, weight) in enumerate(zip(self.parts, self.part_weights)):
            if mirrored is None:
                scores.append((weight, part.score(maps[n], proposals, size)))
            else:
                scores.append((0.5 * weight, part.score(maps[n], proposals, size)))
                scores.append((0.5 * weight, part.score(mirrored[n], proposals, size, mirrored=True)))
        if len({is_tensor(score.margins) for _, score in scores}) > 1:  # R-CNN's vectors are not on the GPU
            scores = [(weight, score.on_host()) for weight, score in scores]
        return scores

    def detect(
        self,
        maps: Sequence[Any],
        proposals: np.ndarray,
        size: tuple[int, int],
        mirrored: Sequence[Any] | None = None,
        min_margin: float | None = None,
    ) -> Detections:
        """Detect objects among the proposals of an image that the networks have read.

        Args:
            maps: what `read` returned for the image.
            proposals: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image in pixels.
            mirrored: what `read_mirror_image` returned for the image. Margins and box regressions are then the
                means of those in the image and in its mirror image.
            min_margin: in place of ``detection.min_margin``.

        Returns:
            Detections after box regression, where the model has it.
        """
        settings, scores = self.detection, self.window_scores(maps, proposals, size, mirrored)
        if min_margin is None:
            min_margin = settings.min_margin
        candidates = choose_candidates(scores, proposals, min_margin, settings.max_candidates)
        moved = self._move(scores, candidates, proposals, size, min_margin)
        return suppress_and_vote(candidates if moved is None else moved, settings, self.classes)

    def detect_both(
        self, maps: Sequence[Any], proposals: np.ndarray, size: tuple[int, int], mirrored: Sequence[Any] | None = None
    ) -> tuple[Detections, Detections]:
        """Detect objects before and after box regression, see `sppdet.detection.candidates`.

        Args:
            maps, proposals, size, mirrored: as for `detect`.

        Returns:
            Detections before and after box regression; one and the same object twice if the model has none.
        """
        settings, scores = self.detection, self.window_scores(maps, proposals, size, mirrored)
        candidates = choose_candidates(scores, proposals, settings.min_margin, settings.max_candidates)
        plain = suppress_and_vote(candidates, settings, self.classes)
        moved = self._move(scores, candidates, proposals, size, settings.min_margin)
        return plain, plain if moved is None else suppress_and_vote(moved, settings, self.classes)

    def _move(
        self,
        scores: WeightedScores,
        candidates: Candidates,
        proposals: np.ndarray,
        size: tuple[int, int],
        min_margin: float,
    ) -> Candidates | None:
        """Return the candidates after box regression, with the margins that count then; None without regression."""
        moved = move(scores, candidates, size, self.detection)
        return None if moved is None else rescore(scores, moved, proposals, self.detection, min_margin)
