"""Many vectors times a few weights: as precise as asked for, and each weight's product its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppdet.ops.products import Products

D = 700


def weights(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, D)).astype(np.float32)


@pytest.fixture
def vectors() -> torch.Tensor:
    """Numbers that bfloat16 holds."""
    return torch.from_numpy(np.random.default_rng(1).exponential(size=(9, D)).astype(np.float32)).bfloat16()


@pytest.mark.parametrize(("exact", "rough"), [(20, 80), (1, 4), (16, 0), (0, 8), (33, 1)])
def test_exact_products_have_16_bits_and_rough_ones_8(vectors, exact, rough):
    rng = np.random.default_rng(0)
    a, b = weights(rng, exact), weights(rng, rough)
    both = Products(a, b, half=True)
    assert both.counts == (exact, rough)
    for kind, bits in ((torch.float32, (18, 18)), (torch.bfloat16, (14, 6))):  # of the longest vector's products
        for own, found, precision in zip((a, b), both(vectors.to(kind)), bits):
            expected = vectors.double().numpy() @ own.T.astype(np.float64)
            assert found.dtype == torch.float32 and found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2.0**-precision * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_parts_of_vectors_find_their_features(vectors, kind):
    rng = np.random.default_rng(0)
    both = Products(weights(rng, 5), weights(rng, 20), half=True)
    parts = [both(vectors[:, part].to(kind), part) for part in (slice(0, 300), slice(300, None))]
    for whole, *halves in zip(both(vectors.float()), *parts):
        np.testing.assert_allclose(sum(halves), whole, atol=2**-6 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_no_vectors_have_no_products(kind):
    exact, rough = Products(np.ones((3, D), np.float32), half=True)(torch.zeros(0, D, dtype=kind))
    assert exact.shape == (0, 3) and rough.shape == (0, 0)
