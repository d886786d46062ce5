"""Object proposals by selective search (Uijlings et al. 2013), our own or OpenCV's made deterministic, and recall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from sppdet import boxes as geometry
from sppdet.errors import SppdetError
from sppdet.limits import check_value

_LONGEST = 32_000  # width and height: OpenCV turns pictures of fewer than 2^15 pixels a side


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective search by our own engine or by OpenCV's, with OpenCV's two presets.

    ``fast`` groups HSV and Lab segmentations at k = base_k, base_k + inc_k, base_k + 2 inc_k by two similarity
    mixes; ``quality`` takes five colour spaces and four mixes. OpenCV's own default (k from 150 by 150) gives about
    1.1k windows on a VOC picture; 50, 50 gives the 2k of the papers, whose MATLAB program used k = 50, 100.

    Attributes:
        mode: ``fast``, ``quality``, or ``balanced`` (``native`` only): ``fast`` with five k.
        base_k, inc_k: the graph segmentation's k, lowest and step.
        sigma: its smoothing, in pixels of the working picture.
        max_side: the picture is shrunk so that its longer side has at most this many pixels; 0 leaves it alone,
            whatever time and memory that takes.
        min_size: windows with a side below this many pixels of the original picture are dropped (the original
            program's 20).
        max_windows: keep at most this many, of ``native`` the best by its ranks; 0 keeps all.
        engine: ``native`` (:mod:`sppdet.selective_search`), or ``opencv``: the same windows but for ties between
            regions that are equally similar, in many times the time and without an order.
    """

    mode: str = "fast"
    base_k: int = 50
    inc_k: int = 50
    sigma: float = 0.8
    max_side: int = 500
    min_size: float = 20.0
    max_windows: int = 0
    engine: str = "native"

    def __post_init__(self):
        for key in ("mode", "engine"):
            check_value(f"proposals.{key}", getattr(self, key))
        if self.engine == "opencv" and self.mode == "balanced":
            raise SppdetError("proposals.mode=balanced is not OpenCV's; give proposals.engine=native with it")

    def settings(self) -> dict:
        """What the windows depend on, for the store's key."""
        import cv2  # native too: it shrinks the picture and converts its colours

        if self.engine == "native":
            from sppdet.selective_search import VERSION

            return {"version": VERSION, "opencv": cv2.__version__, **asdict(self)}
        return {"engine": "opencv", "opencv": cv2.__version__, "order": 1, **asdict(self)}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Windows of an RGB uint8 picture ``(H, W, 3)``: float32 ``(N, 4)``, N may be 0.

        What else :func:`sppdet.images.to_rgb` takes will do, a path or a grey picture among it.

        ``native`` gives the best windows first. OpenCV orders windows by C's ``rand()``, so the order depends on what
        the process did before. The set does not: it is sorted, freed of duplicates and shuffled by a fixed seed,
        which makes a cut to ``max_windows`` an unbiased and repeatable sample.
        """
        from sppdet.images import to_rgb  # Pillow takes its time to load

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
    """The picture with its longer side at most ``max_side`` pixels, aspect kept; never enlarged."""
    import cv2

    longer = max(image.shape[:2])
    if not max_side or longer <= max_side:
        return image
    height, width = (max(1, round(side * max_side / longer)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarge(windows: np.ndarray, working: tuple[int, ...], whole: tuple[int, ...], min_size: float) -> np.ndarray:
    """Windows ``(N, 4)`` of a shrunk picture in pixels of the whole one, float32; smaller ones are dropped.

    ``working`` and ``whole`` are the pictures' shapes, height first; ``min_size`` is of the whole one.
    """
    (h, w), (height, width) = working[:2], whole[:2]
    factor = np.array([width / w, height / h] * 2)
    found = geometry.clip(np.rint(windows * factor).astype(np.float32), width, height)
    side = found[:, 2:] - found[:, :2]
    return found[(side >= max(min_size, 1)).all(axis=1)]


def _native(image: np.ndarray, mode: str, base_k: int, inc_k: int, sigma: float) -> np.ndarray:
    """Our own engine's windows, ``(N, 4)`` of x1, y1, x2, y2, best first."""
    from sppdet.parallel import thread_count  # torch: not to be waited for by those who only read a config
    from sppdet.selective_search import RECIPES, selective_search

    height, width = image.shape[:2]
    if height + width > _LONGEST:
        raise SppdetError(
            f"a picture of {width} x {height} pixels is too long to be searched whole; set proposals.max_side"
        )
    return selective_search(image, RECIPES[mode], base_k, inc_k, sigma, thread_count())


def _opencv(image: np.ndarray, mode: str, base_k: int, inc_k: int, sigma: float) -> np.ndarray:
    """OpenCV's windows, ``(N, 4)`` of x1, y1, x2, y2; none where OpenCV cannot segment the picture."""
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


def best_overlaps(proposals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """``(M,)``: for each of the M target boxes the highest IoU with any proposal; 0 where there is none."""
    if not len(proposals) or not len(targets):
        return np.zeros(len(targets), np.float32)
    return geometry.iou(targets, proposals).max(axis=1)


def recall(found: Iterable[np.ndarray], targets: Iterable[np.ndarray]) -> dict[str, float]:
    """:func:`recall_table` of many pictures: of each its proposals ``(N, 4)`` and its target boxes ``(M, 4)``."""
    overlaps, counts = zip(*((best_overlaps(windows, boxes), len(windows)) for windows, boxes in zip(found, targets)))
    return recall_table(np.concatenate(overlaps), float(np.mean(counts)))


def recall_line(table: dict[str, float]) -> str:
    """The recall and overlap of a :func:`recall_table`, for a terminal."""
    return (
        f"recall@0.5 {table['recall@0.5']:.3f}, @0.7 {table['recall@0.7']:.3f}, "
        f"average best overlap {table['average_best_overlap']:.3f}"
    )


def recall_table(overlaps: np.ndarray, windows: float) -> dict[str, float]:
    """Recall at IoU 0.5 and 0.7, average best overlap, and windows a picture, from all targets' best overlaps."""
    if not len(overlaps):
        return {"windows": windows, "recall@0.5": 0.0, "recall@0.7": 0.0, "average_best_overlap": 0.0}
    return {
        "windows": float(windows),
        "recall@0.5": float((overlaps >= 0.5).mean()),
        "recall@0.7": float((overlaps >= 0.7).mean()),
        "average_best_overlap": float(overlaps.mean()),
    }
