"""Weights of linear layers in few bytes, for the detector that is part of the package.

SVMs are stored in half precision: their margins move by about a thousandth. Box regression, four times as many
numbers, is stored in 8 bits per number: an output is a sum of thousands of products, so the roundings average out.
"""

from __future__ import annotations

import numpy as np

_HIGHEST = 127  # of the codes of int8, on both sides of 0
_STEP = "step"


def as_half(array: np.ndarray) -> np.ndarray:
    """Return an array in half precision, or as it is where it has larger numbers than half precision.

    Examples:
        >>> as_half(np.array([0.5, 2.0])).dtype, as_half(np.array([1e6])).dtype
        (dtype('float16'), dtype('float64'))
    """
    return array.astype(np.float16) if np.abs(array).max(initial=0) < np.finfo(np.float16).max else array


def compact_svms(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weight of SVMs in half precision; the bias stays as it is.

    Examples:
        >>> compact_svms({"weight": np.array([[0.1]], np.float32), "bias": np.zeros(1, np.float32)})["weight"]
        array([[0.1]], dtype=float16)
    """
    return arrays | {"weight": as_half(arrays["weight"])}


def compact_regressors(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weight of box regressors as codes, and as ``step`` what a code of each output stands for.

    Args:
        arrays: ``weight`` float32 ``(K, 4, D)`` and ``bias`` float32 ``(K, 4)``.

    Returns:
        ``weight`` int8 ``(K, 4, D)``, ``step`` float32 ``(K, 4)`` and ``bias``: a weight is its code times the step.
    """
    weight = arrays["weight"]
    step = np.abs(weight).max(axis=-1, initial=0) / np.float32(_HIGHEST)
    codes = np.rint(weight / np.where(step > 0, step, np.float32(1))[..., None])
    return arrays | {"weight": codes.astype(np.int8), _STEP: step.astype(np.float32)}


def expand(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weight and bias as float32, of arrays that `compact_svms` or `compact_regressors` returned, or of others.

    Examples:
        >>> weight = np.array([[[1.0, -0.5], [0, 0], [3, 3], [1, 1]]], np.float32)
        >>> stored = compact_regressors({"weight": weight, "bias": np.zeros((1, 4), np.float32)})
        >>> expand(stored)["weight"].round(2).tolist()
        [[[1.0, -0.5], [0.0, 0.0], [3.0, 3.0], [1.0, 1.0]]]
    """
    step = arrays.get(_STEP)
    expanded = {key: value.astype(np.float32, copy=False) for key, value in arrays.items() if key != _STEP}
    if step is not None:
        expanded["weight"] *= step[..., None]
    return expanded
