"""Images are normalised as the network's weights need."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.networks.normalisation import IMAGENET, LITE


@pytest.mark.parametrize("mirrored", [False, True])
def test_colours_are_normalised_as_torchvision_does(mirrored):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    if mirrored:  # a view with negative strides
        image, expected = image[:, ::-1], expected[:, ::-1]
    normalised = IMAGENET.normalise(image)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, atol=1e-6)


def test_the_last_bit_is_that_of_earlier_versions():
    """Cached feature maps and trained models depend on it."""
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    expected = (images * (1 / 255 / std) - mean / std).astype(np.float32)
    np.testing.assert_array_equal(IMAGENET.normalise(images), expected)
    np.testing.assert_array_equal(IMAGENET.normalise(images[0]), expected[0])


def test_efficientnet_lite_reads_values_around_zero():
    colours = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    np.testing.assert_array_equal(LITE.normalise(colours), (colours.astype(np.float32) - 127) / 128)
