"""Object proposals by selective search (Uijlings et al. 2013), our own or OpenCV's made deterministic, and recall."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from sppdet.config import ProposalSettings
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError

_LONGEST = 32_000  # width and height: OpenCV turns images of fewer than 2^15 pixels a side


@dataclass(frozen=True)
class SelectiveSearch(ProposalSettings):
    """Selective search by our own engine or by OpenCV's, with OpenCV's presets.

    Its attributes are those of :class:`sppdet.config.ProposalSettings`.
    """

    @classmethod
    def of(cls, settings: ProposalSettings) -> SelectiveSearch:
        """Return the search that a configuration's ``proposals`` describe."""
        return cls(**asdict(settings))

    def settings(self) -> dict:
        """What the windows depend on, for the store's key."""
        import cv2  # native too: it shrinks the image and converts its colours

        if self.engine == "native":
            from sppdet.proposals.native import VERSION

            return {"version": VERSION, "opencv": cv2.__version__, **asdict(self)}
        return {"engine": "opencv", "opencv": cv2.__version__, "order": 1, **asdict(self)}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Windows of an RGB uint8 image ``(H, W, 3)``: float32 ``(N, 4)``, N may be 0.

        What else :func:`sppdet.data.images.to_rgb` takes will do, a path or a grey image among it.

        ``native`` gives the best windows first. OpenCV orders windows by C's ``rand()``, so the order depends on what
        the process did before. The set does not: it is sorted, freed of duplicates and shuffled by a fixed seed,
        which makes a cut to ``max_windows`` an unbiased and repeatable sample.
        """
        from sppdet.data import to_rgb  # Pillow takes its time to load

        image = to_rgb(image)
        working = shrink(image, self.max_side)
        search = _native if self.engine == "native" else _opencv
        found = search(working, self.mode, self.base_k, self.inc_k, self.sigma)
        found = enlarge(found, working.shape, image.shape, self.min_size)
        if self.engine == "opencv":
            found = np.unique(found, axis=0)
            found = found[np.random.default_rng(0).permutation(len(found))]
        return found[: self.max_windows or None]

    def warm_up(self) -> None:
        """Compile what is compiled once: called before workers start, which would each do it at the same time."""
        if self.engine == "native":
            self(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """The image with its longer side at most ``max_side`` pixels, aspect kept; never enlarged."""
    import cv2

    longer = max(image.shape[:2])
    if not max_side or longer <= max_side:
        return image
    height, width = (max(1, round(side * max_side / longer)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarge(windows: np.ndarray, working: tuple[int, ...], whole: tuple[int, ...], min_size: float) -> np.ndarray:
    """Windows ``(N, 4)`` of a shrunk image in pixels of the whole one, float32; smaller ones are dropped.

    ``working`` and ``whole`` are the images' shapes, height first; ``min_size`` is of the whole one.
    """
    (h, w), (height, width) = working[:2], whole[:2]
    factor = np.array([width / w, height / h] * 2)
    found = geometry.clip(np.rint(windows * factor).astype(np.float32), width, height)
    side = found[:, 2:] - found[:, :2]
    return found[(side >= max(min_size, 1)).all(axis=1)]


def _native(image: np.ndarray, mode: str, base_k: int, inc_k: int, sigma: float) -> np.ndarray:
    """Our own engine's windows, ``(N, 4)`` of x1, y1, x2, y2, best first."""
    from sppdet.proposals.native import RECIPES, selective_search
    from sppdet.utils import thread_count  # torch: not to be waited for by those who only read a config

    height, width = image.shape[:2]
    if height + width > _LONGEST:
        raise SppdetError(
            f"an image of {width} x {height} pixels is too long to be searched whole; set proposals.max_side"
        )
    return selective_search(image, RECIPES[mode], base_k, inc_k, sigma, thread_count())


def _opencv(image: np.ndarray, mode: str, base_k: int, inc_k: int, sigma: float) -> np.ndarray:
    """OpenCV's windows, ``(N, 4)`` of x1, y1, x2, y2; none where OpenCV cannot segment the image."""
    import cv2

    if min(image.shape[:2]) < 4:  # too thin for its gradients and histograms
        return np.zeros((0, 4))
    try:
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except AttributeError:
        raise SppdetError(
            "cv2.ximgproc is missing: another OpenCV wheel hides opencv-contrib-python; run "
            "'pip uninstall -y opencv-python opencv-python-headless opencv-contrib-python' "
            "and 'pip install opencv-contrib-python'"
        ) from None
    search.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))  # OpenCV works in BGR
    switch = search.switchToSelectiveSearchFast if mode == "fast" else search.switchToSelectiveSearchQuality
    switch(base_k, inc_k, sigma)
    try:
        return geometry.from_xywh(np.asarray(search.process(), dtype=np.float64).reshape(-1, 4))
    except cv2.error:
        return np.zeros((0, 4))
