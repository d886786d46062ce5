"""Images of one grey each."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sppdet.data.dataset import Dataset, Sample


@pytest.fixture
def greys(tmp_path) -> Dataset:
    """Three images of 40 x 30 pixels of grey 0, 1 and 2, without objects."""
    samples = []
    for value in range(3):
        path = tmp_path / f"p{value}.png"
        Image.new("L", (40, 30), value).save(path)
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        samples.append(Sample(f"p{value}", path, 40, 30, *nothing))
    return Dataset(("c",), tuple(samples))
