"""Hard-negative mining: the SVMs of all classes from one stream of images, in bounded memory.

What is kept of a window is where it lies, 24 bytes; its vector, 50 kB, is pooled again from the stored maps for
every fit, for as many classes at a time as ``memory_gb`` holds. So memory does not grow with the images, but the
maps are read again for every such part of the classes.

Positives are the ground truth of a class, and where ``positive_overlap`` is below 1 proposals that overlap it by as
much; negatives are proposals that overlap none of it by ``negative_overlap``.
Each class starts from random negatives. Then images are read in a fixed order; a negative that scores above
``hard_margin`` is hard and kept; after growing shares of the images (1/16, 1/8, 1/4, 1/2, all) every class is
fitted again and negatives below ``evict_margin`` leave. R-CNN and SPP_net do the same a class at a time, each
whenever 2000 negatives are new.

A class's SVM depends on the proposals and on its own ground truth, never on the other classes trained with it: one
trained later, alone, is the same SVM, but for the last bits of products where fc layers are behind the pooling: these
differ with the number of windows that go through a layer together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sppdet.config import SvmSettings
from sppdet.detection import LinearSVMs
from sppdet.features import CachedSplit, WindowFeatures, Windows
from sppdet.ops import Products, nms
from sppdet.training import svm
from sppdet.utils import atomic_write, entries_under, parallel_map


def feature_scale(split: CachedSplit, features: WindowFeatures, norm: float, seed: int, workers: int) -> float:
    """The factor that brings the mean L2 norm of window vectors to ``norm``, from 200 images x 200 windows."""
    images = np.random.default_rng(seed).permutation(len(split))[:200]

    def norms(i: int) -> np.ndarray:
        boxes = np.random.default_rng([seed, i]).permutation(split.proposals(i))[:200]
        if not len(boxes):
            return np.zeros(0)
        return np.linalg.norm(features.of_boxes(split.maps(i), boxes, split.size(i)), axis=1)

    found = np.concatenate(list(parallel_map(norms, images.tolist(), workers, "feature norm", threads=True)))
    mean = float(found.mean()) if len(found) else 0.0
    return norm / mean if mean > 0 else 1.0


# Where a window lies: index into the corpus, index of the map, and x1, y1, x2, y2 on it. Whole cells are whole numbers,
# which float32 holds exactly; with pooling.kind=align they are edges anywhere.
PLACE = np.dtype([("picture", np.int32), ("scale", np.int32), ("window", np.float32, 4)])
# Proposals that are positives beside the objects, at most: of one and of a class, if that leaves one to each object.
_NEAR, _NEAR_OF_CLASS = 20, 10000
_GROWTH = 2048  # rows by which the cache grows


class SampleCache:
    """Windows that one or more classes train on, and each class's state for each of them.

    A row is one window, which lies at ``places[r]`` (:data:`PLACE`). ``held[r, k]`` says that class k uses row r; the
    first rows are the positives and stay. Room that became free is used again.
    """

    def __init__(self, positives: np.ndarray, positive_classes: np.ndarray, classes: int):
        count = self.positives = len(positives)
        self.places = positives
        self.held = np.zeros((count, classes), bool)
        self.held[np.arange(count), positive_classes] = True
        self.alpha = np.zeros((count, classes))
        self.score = np.zeros((count, classes), np.float32)
        self._used = np.zeros(count, bool)
        self._rank = np.zeros(count, np.int64)  # orders rows by image and window, wherever they are stored
        self._keys: list[tuple[int, int] | None] = [None] * count  # row -> (image, window)
        self._slots: dict[tuple[int, int], int] = {}  # and back
        self._free: list[int] = []

    def _grow(self) -> None:
        count = len(self.places)
        for name in ("places", "held", "alpha", "score", "_used", "_rank"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((_GROWTH, *old.shape[1:]), old.dtype)]))
        self._keys += [None] * _GROWTH
        self._free += range(count + _GROWTH - 1, count - 1, -1)

    def add(self, windows: np.ndarray, places: np.ndarray, wanted: np.ndarray, score: np.ndarray):
        """Negatives: numbers ``(r,)`` within their images, their places, ``(r, K)`` bool and margins."""
        for window, place, classes, margins in zip(windows.tolist(), places, wanted, score):
            image = int(place["picture"])
            key = (image, window)
            if key not in self._slots:
                if not self._free:
                    self._grow()
                slot = self._free.pop()
                self._slots[key], self._keys[slot], self._used[slot] = slot, key, True
                self._rank[slot] = (image << 32) + window
                self.places[slot] = place
            slot = self._slots[key]
            new = classes & ~self.held[slot]
            self.held[slot] |= new
            self.score[slot, new] = margins[new]
            self.alpha[slot, new] = 0

    def negatives(self, k: int) -> np.ndarray:
        """Class k's negative rows, in an order that does not depend on what other classes keep or free."""
        rows = self.positives + np.flatnonzero(self.held[self.positives :, k])
        return rows[np.argsort(self._rank[rows])]

    def problem(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Class k's rows ``(n,)`` and their labels, +1 or -1."""
        index = np.concatenate([np.flatnonzero(self.held[: self.positives, k]), self.negatives(k)])
        return index, np.where(index < self.positives, 1, -1)

    def trim(self, k: int, limit: int) -> None:
        """Leave class k its ``limit`` hardest negatives, if it has a quarter more than that."""
        # Called after every image: count first, and sort only where there is something to leave.
        if np.count_nonzero(self.held[self.positives :, k]) > limit * 5 // 4:
            negatives = self.negatives(k)
            hardest = np.argsort(-self.score[negatives, k], kind="stable")
            self.held[negatives[hardest[limit:]], k] = False

    def evict(self, k: int, margin: float) -> None:
        """Class k's negatives that score below ``margin`` leave."""
        easy = self.held[self.positives :, k] & (self.score[self.positives :, k] < margin)
        self.held[self.positives :, k] &= ~easy

    def collect(self) -> None:
        """Free the rows that no class holds any more."""
        for slot in np.flatnonzero(self._used & ~self.held.any(axis=1)).tolist():
            del self._slots[self._keys[slot]]
            self._used[slot] = False
            self._free.append(slot)

    def __len__(self) -> int:
        return len(self._slots)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that :meth:`restore` needs, as plain arrays."""
        rows = np.concatenate([np.arange(self.positives), np.flatnonzero(self._used)])
        state = {name: self.places[name][rows] for name in PLACE.names}
        state |= {"held": self.held[rows], "alpha": self.alpha[rows], "score": self.score[rows]}
        return state | {"rank": self._rank[rows], "positives": np.array(self.positives)}

    @classmethod
    def restore(cls, state: dict[str, np.ndarray]) -> SampleCache:
        """The cache that :meth:`state` describes."""
        places = np.empty(len(state["rank"]), PLACE)
        for name in PLACE.names:
            places[name] = state[name]
        positives = state["positives"].item()
        cache = cls(places, np.zeros(len(places), np.int64), state["held"].shape[1])
        cache.positives, cache._rank = positives, state["rank"]
        cache.held, cache.alpha, cache.score = state["held"], state["alpha"], state["score"]
        cache._used = np.arange(len(places)) >= positives
        for slot in range(positives, len(places)):
            key = cache._keys[slot] = divmod(int(cache._rank[slot]), 1 << 32)
            cache._slots[key] = slot
        return cache


class Miner:
    """Trains the SVMs of the classes ``labels`` (indices into the corpus's classes).

    ``memory_gb`` of vectors are held at a time; one class's are held together whatever they take.
    """

    def __init__(
        self, split: CachedSplit, features: WindowFeatures, labels: Iterable[int], settings: SvmSettings, scale: float,
        seed: int = 3, workers: int = 0, log: Callable[[str], None] = lambda text: None, memory_gb: float = 2.0,
    ):  # fmt: skip
        self.split, self.features, self.labels, self.settings = split, features, list(labels), settings
        self.problem = svm.Problem(settings.C, settings.positive_weight, settings.bias, scale, seed=seed)
        self.seed, self.workers, self.log, self.memory_gb = seed, workers, log, memory_gb
        self._objects = [sum((sample.labels == label).sum() for sample in split.dataset) for label in self.labels]

    def train(self, checkpoint: Path | None = None, key: str = "") -> LinearSVMs:
        """The SVMs of all classes.

        ``checkpoint`` is written after every fit, and gone on from if it was left by an interrupted training of the
        same ``key``: the SVMs come out the same.
        """
        for label, count in zip(self.labels, self._objects):
            if not count:
                self.log(f"no training objects of {self.split.dataset.classes[label]}: it will never be found")
        order = np.random.default_rng(self.seed).permutation(len(self.split))
        rounds = [_rounds(order, self.settings.rounds if n == 0 else 1) for n in range(self.settings.passes)]
        done, fitted = self._resume(checkpoint, key) if checkpoint else (0, None)
        if fitted is None:
            self.cache = self._start(order)
            fitted = self._fit()
        for number, images in enumerate(chain(*rounds)):
            if number < done:
                continue
            if checkpoint:
                self._save(checkpoint, key, number, fitted)
            self._mine(images.tolist(), fitted)
            fitted = self._fit()
        self._tell_of_lost_classes()
        return fitted

    def _tell_of_lost_classes(self) -> None:
        """Where many negatives are like the objects, the SVM of least cost may call everything a negative."""
        count, classes = self.cache.positives, self.split.dataset.classes
        own = np.where(self.cache.held[:count], self.cache.score[:count], -np.inf).max(axis=0, initial=-np.inf)
        lost = [classes[label] for label, highest in zip(self.labels, own) if -np.inf < highest < 0]
        if lost:
            near = "svm.positive_overlap=0.7, " if self.settings.positive_overlap == 1 else ""
            self.log(
                f"  {', '.join(lost)}: the SVM takes all of its own objects for background; {near}a larger "
                "svm.positive_weight or svm.C, or better features help"
            )

    def _save(self, path: Path, key: str, done: int, fitted: LinearSVMs) -> None:
        tensors = {f"cache.{name}": np.ascontiguousarray(value) for name, value in self.cache.state().items()}
        tensors |= {"weight": fitted.weight, "bias": fitted.bias}
        metadata = {"key": key, "done": str(done)}
        atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata))

    def _resume(self, path: Path, key: str) -> tuple[int, LinearSVMs | None]:
        """The number of rounds that a checkpoint of this ``key`` has done, and their SVMs; its cache is taken over."""
        if not path.exists():
            return 0, None
        with safe_open(path, "numpy") as stored:
            metadata = stored.metadata()
            if metadata.get("key") != key:
                return 0, None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        self.cache = SampleCache.restore(entries_under(tensors, "cache."))
        return int(metadata["done"]), LinearSVMs(tensors["weight"], tensors["bias"])

    def _start(self, order: np.ndarray) -> SampleCache:
        """Positives of every class, and random negatives drawn alike for all of them."""
        s, k = self.settings, len(self.labels)
        results = parallel_map(self._positives, order.tolist(), self.workers, "positives", threads=True)
        places, owners = zip(*results)
        cache = SampleCache(np.concatenate(places), np.concatenate(owners), k)
        share = -(-s.random_negatives // len(order))
        chosen = order[: -(-s.random_negatives // share)] if share else order[:0]

        def draw(i: int):
            windows, boxes = self._windows(i, self.split.maps(i))
            rows = np.random.default_rng([self.seed, i]).permutation(len(windows.cells))[:share]
            rows = rows[np.argsort(rows)]
            return rows, _places(i, windows, rows), self._legal(i, boxes, windows)[rows]

        for rows, places, legal in parallel_map(draw, chosen.tolist(), self.workers, "random negatives", threads=True):
            cache.add(rows, places, legal, np.zeros(legal.shape, np.float32))
        return cache

    def _positives(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Where an image's positives lie ``(n,)``, and which of the classes they are of ``(n,)``."""
        boxes = [self.split.objects(i, label) for label in self.labels]
        if not any(map(len, boxes)):
            return np.zeros(0, PLACE), np.zeros(0, np.int64)
        maps = self.split.maps(i)
        if self.settings.positive_overlap < 1:
            boxes = [np.concatenate(both) for both in zip(boxes, self._near(i, maps))]
        owners = np.repeat(np.arange(len(boxes)), [len(own) for own in boxes])
        windows = self.features.windows(np.concatenate(boxes), self.split.size(i), maps)
        return _places(i, windows, windows.group), owners

    def _near(self, i: int, maps) -> list[np.ndarray]:
        """The proposals that are positives of each class, ``(n, 4)``: a draw that does not depend on other classes."""
        windows, proposals = self._windows(i, maps)
        near = self.split.overlaps(i, proposals, self.labels) >= self.settings.positive_overlap
        found = []
        for own, label, count in zip(near.T, self.labels, self._objects):
            rows = np.flatnonzero(own)
            rows = rows[np.unique(windows.group[rows], return_index=True)[1]]  # of equal cells one
            drawn = np.random.default_rng([self.seed, i]).permutation(rows)
            most = max(1, min(_NEAR, _NEAR_OF_CLASS // max(count, 1)))
            found.append(proposals[drawn[: most * len(self.split.objects(i, label))]])
        return found

    def _windows(self, i: int, maps) -> tuple[Windows, np.ndarray]:
        """An image's proposals on its maps, and as boxes ``(N, 4)``."""
        boxes = self.split.proposals(i)
        return self.features.windows(boxes, self.split.size(i), maps), boxes

    def _legal(self, i: int, boxes: np.ndarray, windows: Windows) -> np.ndarray:
        """``(U, K)``: may this window be a negative of that class? Windows of equal cells count as the nearest."""
        overlap = np.zeros((len(windows.cells), len(self.labels)), np.float32)
        np.maximum.at(overlap, windows.group, self.split.overlaps(i, boxes, self.labels))
        return overlap < self.settings.negative_overlap

    def _mine(self, images: list[int], fitted: LinearSVMs) -> None:
        weights = Products(fitted.weight, half=self.features.half)

        def hard(i: int):
            maps = self.split.maps(i)
            windows, boxes = self._windows(i, maps)
            score = self.features.products(maps, windows, weights)[0] + fitted.bias
            wanted = self._legal(i, boxes, windows) & (score > self.settings.hard_margin)
            self._thin(windows, boxes, score, wanted)
            rows = np.flatnonzero(wanted.any(axis=1))
            return rows, _places(i, windows, rows), wanted[rows], score[rows]

        for found in parallel_map(hard, images, self.workers, f"mining {len(images)} images", threads=True):
            self.cache.add(*found)
            for k in range(len(self.labels)):
                self.cache.trim(k, self.settings.max_negatives)
            self.cache.collect()

    def _thin(self, windows: Windows, boxes: np.ndarray, score: np.ndarray, wanted: np.ndarray) -> None:
        """Of hard negatives that overlap by more than ``duplicate_overlap`` the hardest stays (paper, 4.1)."""
        first = np.full(len(windows.cells), -1)
        first[windows.group[::-1]] = np.arange(len(boxes))[::-1]
        places = boxes[first]
        for k in range(wanted.shape[1]):
            rows = np.flatnonzero(wanted[:, k])
            if len(rows):
                kept = nms(places[rows], score[rows, k], self.settings.duplicate_overlap)
                wanted[:, k] = False
                wanted[rows[kept[: self.settings.hard_per_image]], k] = True

    def _fit(self) -> LinearSVMs:
        fits = [fitted for classes in self._parts() for fitted in self._fit_classes(classes)]
        self.cache.collect()
        negatives = self.cache.held[self.cache.positives :].sum(axis=0)
        of_class = f"{negatives.min()} to {negatives.max()} a class"
        self.log(f"  {len(self.cache)} windows are negatives, each of one class or more: {of_class}")
        slow = [k for k, fitted in enumerate(fits) if not fitted.converged]
        if slow:
            self.log(f"  the SVM of {len(slow)} classes stopped at the iteration limit; a smaller svm.C helps")
        return svm.stack(fits)

    def _parts(self) -> Iterator[list[int]]:
        """The classes in order, as many at a time as share rows whose vectors fit into ``memory_gb``."""
        limit = self.memory_gb * 1e9 / (2 * self.features.dimension)
        part, rows = [], np.zeros(len(self.cache.places), bool)
        for k in range(len(self.labels)):
            own = self.cache.held[:, k]
            if part and np.count_nonzero(rows | own) > limit:
                yield part
                part, rows = [], np.zeros_like(rows)
            part, rows = [*part, k], rows | own
        yield part

    def _fit_classes(self, classes: list[int]) -> list[svm.Fit]:
        """Fit some classes, and let their easy negatives leave."""
        cache = self.cache
        solve = svm.SOLVERS[self.settings.solver]
        rows = np.flatnonzero(cache.held[:, classes].any(axis=1))
        vectors = self._vectors(rows)
        position = np.zeros(len(cache.places), np.int64)
        position[rows] = np.arange(len(rows))

        def fit_class(k: int) -> svm.Fit:
            index, labels = cache.problem(k)
            if not (labels > 0).any():
                return svm.never(self.features.dimension)
            start = {"alpha": cache.alpha[index, k]} if self.settings.solver == "dual" else {}
            fitted = solve(vectors, position[index], labels, self.problem, **start)
            if fitted.alpha is not None:
                cache.alpha[index, k] = fitted.alpha
            cache.score[index, k] = svm.margins(vectors, position[index], fitted)
            cache.evict(k, self.settings.evict_margin)
            return fitted

        return list(parallel_map(fit_class, classes, self.workers, "fitting SVMs", threads=True))

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """``(len(rows), D)`` float16: the cache's ``rows`` pooled again, each image's together."""
        places = self.cache.places[rows]
        found = np.empty((len(rows), self.features.dimension), np.float16)
        order = np.argsort(places["picture"], kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(places["picture"][order])) + 1) if len(rows) else []

        def fill(own: np.ndarray) -> None:
            every, mine = np.arange(len(own)), places[own]
            windows = Windows(mine["scale"], mine["window"], every)
            maps = self.split.maps(int(mine["picture"][0]))
            found[own] = self.features.vectors(maps, windows, every, np.float16)

        for _ in parallel_map(fill, parts, self.workers, "vectors", threads=True):
            pass
        return found


def _places(image: int, windows: Windows, rows: np.ndarray) -> np.ndarray:
    """``(len(rows),)`` of :data:`PLACE`."""
    found = np.empty(len(rows), PLACE)
    found["picture"], found["scale"], found["window"] = image, windows.scales[rows], windows.cells[rows]
    return found


def _rounds(order: np.ndarray, rounds: int) -> list[np.ndarray]:
    """``order`` cut after 1/2^(rounds-1), ..., 1/4, 1/2 of it; empty parts are left out."""
    cuts = [len(order) >> power for power in range(rounds - 1, 0, -1)]
    return [part for part in np.split(order, cuts) if len(part)]
