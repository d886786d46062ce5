"""Products of vectors with exact and rough weights have the precision of their kind."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sppdet.ops.products import Products

D = 700


def weights(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, D)).astype(np.float32)


@pytest.fixture
def vectors() -> np.ndarray:
    """Float32 numbers that bfloat16 represents exactly."""
    return torch.from_numpy(np.random.default_rng(1).exponential(size=(9, D))).bfloat16().float().numpy()


def as_kind(vectors: np.ndarray, kind: str) -> np.ndarray:
    """Return vectors in float32, or the bits of their values in bfloat16."""
    return vectors if kind == "float32" else torch.from_numpy(vectors).bfloat16().view(torch.int16).numpy()


@pytest.mark.parametrize(("exact", "rough"), [(20, 80), (1, 4), (16, 0), (0, 8), (33, 1)])
def test_exact_products_have_16_bits_and_rough_ones_8(vectors, exact, rough):
    rng = np.random.default_rng(0)
    both_weights = weights(rng, exact), weights(rng, rough)
    multiply = Products(*both_weights, half=True)
    assert multiply.counts == (exact, rough)
    # Bits of the exact and of the rough products, relative to the largest one.
    for kind, bits in (("float32", (18, 18)), ("bfloat16", (14, 6))):
        for weight, product, precision in zip(both_weights, multiply(as_kind(vectors, kind)), bits):
            expected = vectors.astype(np.float64) @ weight.T.astype(np.float64)
            assert product.dtype == np.float32 and product.shape == expected.shape
            np.testing.assert_allclose(product, expected, atol=2.0**-precision * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_products_of_a_class_do_not_depend_on_the_number_of_classes(vectors, kind):
    weight = weights(np.random.default_rng(0), 8)
    first = Products(weight[:1], half=True)(as_kind(vectors, kind))[0]
    for count in (2, 5, 8):
        products, _ = Products(weight[:count], half=True)(as_kind(vectors, kind))
        np.testing.assert_array_equal(products[:, :1], first)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_products_of_parts_of_vectors_sum_to_those_of_whole_vectors(vectors, kind):
    rng = np.random.default_rng(0)
    multiply = Products(weights(rng, 5), weights(rng, 20), half=True)
    slices = slice(0, 300), slice(300, None)
    parts = [multiply(as_kind(vectors, kind)[:, features], features) for features in slices]
    for whole, *products in zip(multiply(vectors), *parts):
        np.testing.assert_allclose(sum(products), whole, atol=2**-6 * np.abs(whole).max())


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_no_vectors_have_no_products(kind):
    exact, rough = Products(np.ones((3, D), np.float32), half=True)(as_kind(np.zeros((0, D), np.float32), kind))
    assert exact.shape == (0, 3) and rough.shape == (0, 0)


def test_products_without_torch_are_the_same_within_rounding(vectors, monkeypatch):
    rng = np.random.default_rng(0)
    multiply = Products(weights(rng, 5), weights(rng, 20))
    expected = multiply(vectors)
    monkeypatch.delitem(sys.modules, "torch")
    for product, of_torch in zip(multiply(vectors), expected):
        np.testing.assert_allclose(product, of_torch, atol=1e-5 * np.abs(of_torch).max())
