"""Products of vectors with exact and rough weights have the precision of their kind."""

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
    """Float numbers that bfloat16 represents exactly."""
    return torch.from_numpy(np.random.default_rng(1).exponential(size=(9, D)).astype(np.float32)).bfloat16()


@pytest.mark.parametrize(("exact", "rough"), [(20, 80), (1, 4), (16, 0), (0, 8), (33, 1)])
def test_exact_products_have_16_bits_and_rough_ones_8(vectors, exact, rough):
    rng = np.random.default_rng(0)
    both_weights = weights(rng, exact), weights(rng, rough)
    multiply = Products(*both_weights, half=True)
    assert multiply.counts == (exact, rough)
    # Bits of the exact and of the rough products, relative to the largest one.
    for kind, bits in ((torch.float32, (18, 18)), (torch.bfloat16, (14, 6))):
        for weight, product, precision in zip(both_weights, multiply(vectors.to(kind)), bits):
            expected = vectors.double().numpy() @ weight.T.astype(np.float64)
            assert product.dtype == torch.float32 and product.shape == expected.shape
            np.testing.assert_allclose(product, expected, atol=2.0**-precision * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_products_of_a_class_do_not_depend_on_the_number_of_classes(vectors, kind):
    weight = weights(np.random.default_rng(0), 8)
    first = Products(weight[:1], half=True)(vectors.to(kind))[0]
    for count in (2, 5, 8):
        assert torch.equal(Products(weight[:count], half=True)(vectors.to(kind))[0][:, :1], first)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_products_of_parts_of_vectors_sum_to_those_of_whole_vectors(vectors, kind):
    rng = np.random.default_rng(0)
    multiply = Products(weights(rng, 5), weights(rng, 20), half=True)
    slices = slice(0, 300), slice(300, None)
    parts = [multiply(vectors[:, features].to(kind), features) for features in slices]
    for whole, *products in zip(multiply(vectors.float()), *parts):
        np.testing.assert_allclose(sum(products), whole, atol=2**-6 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_no_vectors_have_no_products(kind):
    exact, rough = Products(np.ones((3, D), np.float32), half=True)(torch.zeros(0, D, dtype=kind))
    assert exact.shape == (0, 3) and rough.shape == (0, 0)
