"""Windows cut from the image and warped to the square a network was made for (R-CNN, arXiv 1311.2524, appendix A).

The arithmetic is that of R-CNN's rcnn_im_crop.m, including its rounding, which is done in 1-based pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Crop:
    """How a window becomes a square of pixels.

    Attributes:
        kind: ``warp`` stretches the window to a square. The other two take the tightest square around the window, so
            that nothing is stretched: ``square_context`` shows all that is in the square ('square' in the program),
            ``square`` the window alone ('without context' in the appendix).
        size: pixels per side of the crop.
        context: pixels of the crop, on each side, that show what lies around the window, or around its square.

    Examples:
        >>> image = np.ones((100, 120, 3), np.float32)
        >>> Crop("warp", size=64, context=4).pixels(image, np.array([[10, 20, 50, 90]], np.float32)).shape
        (1, 64, 64, 3)
    """

    kind: str = "warp"
    size: int = 227
    context: int = 16

    def frames(self, boxes: np.ndarray, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Compute which rectangle of the image each crop shows, and where in the crop.

        The rest of a crop has the mean colour: what lies outside the image or, for ``square``, outside the window.

        Args:
            boxes: ``(N, 4)`` pixel edges in the image.
            image_size: ``(width, height)`` of the image.

        Returns:
            int64 ``(N, 4)`` pixel edges in the image, and int64 ``(N, 4)`` pixel edges in the crop.
        """
        boxes = boxes.astype(np.float64)
        half = (boxes[:, 2:] - boxes[:, :2]) / 2
        reach = half if self.kind == "warp" else np.broadcast_to(half.max(axis=1, keepdims=True), half.shape)
        border = reach * (2 * self.context / (self.size - 2 * self.context))
        if self.kind == "warp" and not self.context:  # the program leaves such a window as it is
            first, last = np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])
        else:
            first, last = _around(boxes[:, :2] + half, reach + border)
        shown_first, shown_last = np.maximum(first, 0), np.minimum(last, image_size)
        if self.kind == "square":
            window_first, window_last = _around(boxes[:, :2] + half, half + border)
            shown_first, shown_last = np.maximum(shown_first, window_first), np.minimum(shown_last, window_last)
        # At least a pixel, also for a window that rounding leaves without any.
        shown_first = np.minimum(shown_first, np.array(image_size) - 1)
        shown_last = np.maximum(shown_last, shown_first + 1)
        ratio = self.size / (last - first)
        start = np.clip(_round((shown_first - first) * ratio), 0, self.size - 1)
        extent = np.clip(_round((shown_last - shown_first) * ratio), 1, self.size - start)
        source = np.concatenate([shown_first, shown_last], axis=1)
        target = np.concatenate([start, start + extent], axis=1)
        return source.astype(np.int64), target.astype(np.int64)

    def pixels(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Cut and warp windows; bilinear, without antialiasing.

        Args:
            image: float32 ``(H, W, 3)``, normalised, so that 0 is the mean colour of the network's images.
            boxes: ``(N, 4)`` pixel edges in the image.

        Returns:
            float32 ``(N, size, size, 3)``.
        """
        import cv2

        crops = np.zeros((len(boxes), self.size, self.size, 3), np.float32)
        sources, targets = self.frames(boxes, (image.shape[1], image.shape[0]))
        for crop, source, target in zip(crops, sources.tolist(), targets.tolist()):
            (x1, y1, x2, y2), (left, top, right, bottom) = source, target
            cv2.resize(
                image[y1:y2, x1:x2],
                (right - left, bottom - top),
                dst=crop[top:bottom, left:right],
                interpolation=cv2.INTER_LINEAR,
            )
        return crops


def _around(centre: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last edge of a window that reaches ``reach`` pixels to both sides of ``centre``.

    The window is a pixel longer on the right than twice ``reach``: the program adds half a width to the number of the
    first pixel, which is half a pixel right of the centre, and takes the pixels that both ends are rounded to.
    """
    return _round(centre + 1 - reach) - 1, _round(centre + 1 + reach)


def _round(values: np.ndarray) -> np.ndarray:
    """Round halves away from zero, as MATLAB does."""
    return np.copysign(np.floor(np.abs(values) + 0.5), values)
