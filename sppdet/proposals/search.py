"""Object proposals by selective search (Uijlings et al. 2013): our engine, or OpenCV's made repeatable."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import ProposalSettings
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError, thread_count

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST = 32_000  # pixels of width + height: OpenCV warps images of fewer than 2^15 pixels per side


@dataclass(frozen=True)
class SelectiveSearch(ProposalSettings):
    """Selective search with OpenCV's presets, by our own engine or by OpenCV's.

    An instance is called with an image and returns its windows. Its attributes are the settings of
    `sppdet.config.ProposalSettings`.

    Examples:
        >>> search = SelectiveSearch(mode="fast", max_windows=2000)
        >>> windows = search("photo.jpg")  # doctest: +SKIP
        >>> windows.shape  # doctest: +SKIP
        (1870, 4)
    """

    @classmethod
    def of(cls, settings: ProposalSettings) -> SelectiveSearch:
        """Return the search with these settings, the ``proposals`` of a configuration."""
        return cls(**asdict(settings))

    def settings(self) -> dict[str, Any]:
        """Return everything that the windows depend on, for the key of their store."""
        import cv2  # also for our engine: OpenCV shrinks images and converts colours

        if self.engine == "native":
            from sppdet.proposals.native import VERSION

            return {"version": VERSION, "opencv": cv2.__version__, **asdict(self)}
        return {"engine": "opencv", "opencv": cv2.__version__, "order": 1, **asdict(self)}

    def __call__(self, image: str | os.PathLike | Image | np.ndarray) -> np.ndarray:
        """Return the windows of an image.

        ``native`` returns the best windows first. OpenCV orders windows by C's ``rand()``, so that their order depends
        on what the process did before, but their set does not. The set is sorted, freed of duplicates and shuffled
        with a fixed seed; the first ``max_windows`` are then an unbiased and repeatable sample.

        Args:
            image: RGB uint8 ``(H, W, 3)``, or whatever `sppdet.data.images.to_rgb` accepts.

        Returns:
            float32 ``(N, 4)`` ``x1, y1, x2, y2`` in pixel edges of the image. N may be 0.

        Raises:
            SppdetError: the image cannot be read, or is too long to be searched without ``max_side``.
        """
        from sppdet.data import to_rgb  # imports Pillow, which is slow to load

        pixels = to_rgb(image)
        working = shrink(pixels, self.max_side)
        search = _native if self.engine == "native" else _opencv
        windows = search(working, self.mode, self.base_k, self.inc_k, self.sigma)
        windows = enlarge(windows, working.shape, pixels.shape, self.min_size)
        if self.engine == "opencv":
            windows = np.unique(windows, axis=0)
            windows = windows[np.random.default_rng(0).permutation(len(windows))]
        return windows[: self.max_windows or None]

    def warm_up(self) -> None:
        """Compile what needs compiling. Call it before workers start; otherwise each of them compiles."""
        if self.engine == "native":
            self(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Return an image whose longer side has at most ``max_side`` pixels.

    Args:
        image: uint8 ``(H, W, C)``.
        max_side: 0 stands for no limit.

    Returns:
        The shrunk image, its aspect ratio kept; or ``image`` itself if it is small enough.

    Examples:
        >>> shrink(np.zeros((100, 200, 3), np.uint8), 50).shape
        (25, 50, 3)
    """
    import cv2

    longer = max(image.shape[:2])
    if not max_side or longer <= max_side:
        return image
    height, width = (max(1, round(side * max_side / longer)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarge(windows: np.ndarray, working: tuple[int, ...], whole: tuple[int, ...], min_size: float) -> np.ndarray:
    """Convert windows of a shrunk image to pixels of the whole image, and drop small ones.

    Args:
        windows: ``(N, 4)`` ``x1, y1, x2, y2`` in pixel edges of the shrunk image.
        working: shape of the shrunk image, height first.
        whole: shape of the whole image, height first.
        min_size: smallest width and height of a window, in pixels of the whole image.

    Returns:
        float32 ``(M, 4)``, rounded to whole pixels.

    Examples:
        >>> enlarge(np.array([[0, 0, 25, 10], [3, 3, 7, 7]]), (25, 50, 3), (100, 200, 3), 20).tolist()
        [[0.0, 0.0, 100.0, 40.0]]
    """
    (working_height, working_width), (height, width) = working[:2], whole[:2]
    factor = np.array([width / working_width, height / working_height] * 2)
    windows = geometry.clip(np.rint(windows * factor).astype(np.float32), width, height)
    sides = windows[:, 2:] - windows[:, :2]
    return windows[(sides >= max(min_size, 1)).all(axis=1)]


def _native(image: np.ndarray, mode: str, base_k: int, inc_k: int, sigma: float) -> np.ndarray:
    """Return the windows of our engine, int32 ``(N, 4)`` ``x1, y1, x2, y2``, best first."""
    from sppdet.proposals.native import RECIPES, selective_search

    height, width = image.shape[:2]
    if height + width > _LONGEST:
        raise SppdetError(
            f"an image of {width} x {height} pixels is too long to be searched whole; set proposals.max_side"
        )
    return selective_search(image, RECIPES[mode], base_k, inc_k, sigma, thread_count())


def _opencv(image: np.ndarray, mode: str, base_k: int, inc_k: int, sigma: float) -> np.ndarray:
    """Return the windows of OpenCV's engine, ``(N, 4)`` ``x1, y1, x2, y2``; none if it cannot segment the image."""
    import cv2

    if min(image.shape[:2]) < 4:  # too thin for OpenCV's gradients and histograms
        return np.zeros((0, 4))
    try:
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except AttributeError:
        raise SppdetError(
            "cv2.ximgproc is missing: another OpenCV wheel hides opencv-contrib-python; run "
            "'pip uninstall -y opencv-python opencv-python-headless opencv-contrib-python' "
            "and 'pip install opencv-contrib-python'"
        ) from None
    search.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))  # OpenCV takes BGR
    switch = search.switchToSelectiveSearchFast if mode == "fast" else search.switchToSelectiveSearchQuality
    switch(base_k, inc_k, sigma)
    try:
        return geometry.from_xywh(np.asarray(search.process(), dtype=np.float64).reshape(-1, 4))
    except cv2.error:
        return np.zeros((0, 4))
