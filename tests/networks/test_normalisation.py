"""Images are normalised as torchvision normalises them."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.networks.normalisation import normalise


@pytest.mark.parametrize("mirrored", [False, True])
def test_colours_are_normalised_as_torchvision_does(mirrored):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if mirrored:  # a view with negative strides
        image, expected = image[:, ::-1], expected[:, ::-1]
    normalised = normalise(image)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, atol=1e-6)
