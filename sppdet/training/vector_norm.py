"""The factor that brings the vectors of windows to the norm that SVMs and box regression are meant for."""

from __future__ import annotations

import numpy as np

from sppdet.features import FeatureSplit, WindowFeatures
from sppdet.utils import Execution, parallel_map

# Images, and windows of each, that tell the mean norm of all vectors.
_NORM_IMAGES, _NORM_WINDOWS = 200, 200


def feature_scale(split: FeatureSplit, features: WindowFeatures, norm: float, execution: Execution) -> float:
    """Compute the factor that brings the mean L2 norm of window vectors to ``norm``, from a sample of the windows.

    Args:
        split: images with their proposals and feature maps.
        features: how windows become vectors.
        norm: the mean norm that is wanted.
        execution: seed of the sample; workers.

    Returns:
        The factor; 1 where there is no window or all vectors are zero.
    """
    seed, workers = execution.seed, execution.workers
    images = np.random.default_rng(seed).permutation(len(split))[:_NORM_IMAGES]

    def norms_of(i: int) -> np.ndarray:
        boxes = np.random.default_rng([seed, i]).permutation(split.proposals(i))[:_NORM_WINDOWS]
        if not len(boxes):
            return np.zeros(0)
        return np.linalg.norm(features.of_boxes(split.maps(i), boxes, split.size(i)), axis=1)

    norms = np.concatenate(list(parallel_map(norms_of, images.tolist(), workers, "feature norm", threads=True)))
    mean = float(norms.mean()) if len(norms) else 0.0
    return norm / mean if mean > 0 else 1.0
