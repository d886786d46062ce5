"""Fixtures: tiny splits whose maps and proposals are written by hand, and a tiny set of drawn images."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from sppdet.data.dataset import Dataset, Sample
from sppdet.data.shapes import make_shapes
from sppdet.features.feature_split import MapSplit, map_name
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.features.store import Store
from sppdet.networks.trunk_output import CellGrid
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils import engines
from sppdet.utils.parallel import in_threads

SIDE, STRIDE = 64, 4  # every hand-made image is 64 x 64 pixels, its map 16 x 16 cells


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Let torch use one thread: OpenMP's threads spin while they wait, which costs more than work this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def temporary_cache_of_trunks(tmp_path_factory):
    """Keep trunks in ONNX form out of the user's cache folder."""
    before = os.environ.get("SPPDET_CACHE")
    os.environ["SPPDET_CACHE"] = str(tmp_path_factory.mktemp("user_cache"))
    yield
    os.environ.pop("SPPDET_CACHE")
    if before is not None:
        os.environ["SPPDET_CACHE"] = before


@pytest.fixture(autouse=True)
def temporary_working_folder(tmp_path, monkeypatch):
    """Run every test in a folder of its own: a relative path must not write into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny_features():
    """``tiny_features(channels, levels)``: a window whose edges are multiples of 4 pixels covers the cells edge / 4."""

    def make(channels: int, levels: tuple[int, ...] = (2, 1), **changes) -> PyramidFeatures:
        # Cell i is centred on pixel 1.5 + 4 i: it covers the pixels 4 i .. 4 i + 3.
        settings = {"scales": (SIDE,), "max_side": 1000, "target": SIDE, "shrink": 0.0, "levels": levels}
        return PyramidFeatures(grid=CellGrid(STRIDE, 1.5), channels=channels, **settings | changes)

    return make


@pytest.fixture
def make_split(tmp_path, tiny_features):
    """``make_split(images, classes)``: an image is ``(feature map, proposals, object boxes, object labels)``."""

    def make(images, classes: tuple[str, ...]) -> MapSplit:
        proposal_store = Store(tmp_path / "cache", "proposals", {}, ".npy")
        map_store = Store(tmp_path / "cache", "maps", {}, ".b2nd")
        samples, names = [], []
        for i, (feature_map, proposals, boxes, labels) in enumerate(images):
            boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
            labels = np.asarray(labels, np.int64)
            sample = Sample(f"p{i}", Path(f"p{i}.jpg"), SIDE, SIDE, boxes, labels, np.zeros(len(labels), bool))
            samples.append(sample)
            names.append(f"p{i}-0")
            proposal_store.write(names[-1], np.asarray(proposals, np.float32).reshape(-1, 4))
            map_store.write(map_name(SIDE, names[-1]), np.asarray(feature_map, np.float32))
        dataset = Dataset(tuple(classes), tuple(samples))
        # The stores are full, so nothing is computed: there is no backbone.
        return MapSplit(dataset, names, proposal_store, SelectiveSearch(), map_store, None, tiny_features(1))

    return make


@pytest.fixture
def random_split(make_split):
    """``random_split(images, classes)``: objects of class k are bright in channel k of 8; all else is noise."""

    def make(images: int = 12, classes: int = 3, seed: int = 0, windows: int = 60) -> MapSplit:
        rng = np.random.default_rng(seed)
        content = []
        for _ in range(images):
            feature_map = np.maximum(rng.normal(size=(16, 16, 8)), 0)
            labels = rng.permutation(classes)[: rng.integers(1, classes + 1)]
            boxes = random_windows(rng, len(labels))
            for box, label in zip((boxes / STRIDE).astype(int), labels):
                feature_map[box[1] : box[3], box[0] : box[2], label] += 1.5
            near = np.clip(boxes + rng.integers(-2, 3, boxes.shape) * STRIDE, 0, SIDE)
            near = near[(near[:, 2:] > near[:, :2]).all(axis=1)]
            proposals = np.unique(np.concatenate([random_windows(rng, windows), near]), axis=0)
            content.append((feature_map, rng.permutation(proposals), boxes, labels))
        return make_split(content, tuple("abcdefgh"[:classes]))

    return make


def random_windows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return windows of 2 to 8 cells per side inside the map, in pixels."""
    size = rng.integers(2, 9, (count, 2))
    corner = rng.integers(0, 16 - size + 1)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32) * STRIDE


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory) -> Path:
    """The folder of twelve training and six test images of about 160 x 120 pixels. Copy it to change it."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=12, test=6, size=(160, 120))


@pytest.fixture
def elsewhere(monkeypatch) -> list[int]:
    """Send portable work elsewhere by pickle, as a cluster does; the numbers of units that were sent."""
    sent: list[int] = []

    class Pickled:
        def run(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
            sent.append(len(items))
            work = copied(function)
            return in_threads(lambda item: copied(work(copied(item))), items, 1)

    monkeypatch.setattr(engines, "_active", Pickled())
    return sent


def copied(value: Any) -> Any:
    """Return a copy by pickle, whose arrays are read-only, as those are that Ray sends."""
    buffers: list[pickle.PickleBuffer] = []
    content = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(content, buffers=[bytes(buffer) for buffer in buffers])
