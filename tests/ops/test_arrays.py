"""Arrays and tensors, taken to each other's kind."""

from __future__ import annotations

import numpy as np
import torch

from sppdet.ops.arrays import is_tensor, like, on_host


def test_arrays_become_what_they_go_with():
    array, tensor = np.arange(6).reshape(2, 3), torch.arange(3)
    assert not is_tensor(array) and is_tensor(tensor)
    assert like(array, array) is array and like(tensor, array) is tensor and like(tensor, tensor) is tensor
    assert like(array.T, tensor).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert on_host(array) is array and on_host(tensor).tolist() == [0, 1, 2]
