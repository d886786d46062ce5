"""The bank of a model: vectors from which a class is added, or refitted, without the images that were trained on.

It holds windows of a seeded sample of the training images: objects and what else was positive, the negatives that are
hard for the trained SVMs, and random windows. Every vector has a label for each class: +1 for a positive, -1 for a
negative, 0 where it is neither. For a class that is added, all vectors are background.

No dual variables are stored. Those with which a trained SVM is optimal follow from its margins on the vectors
(`sppdet.training.svm.optimal_alpha`), so that the bank depends on the model and the images alone, and any of its
vectors can be dropped.

Vectors pooled from maps of codes are stored as codes, with the table of what a code stands for in each map: a byte per
number. All others are stored in half precision. The file is compressed, and has a checksum.

Names: R vectors, D features, K classes, T maps, C channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import blosc2
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sppdet.config import BoxRegressionSettings, CalibrationSettings, SvmSettings
from sppdet.detection import LinearSVMs, finish_update
from sppdet.features import FeatureSplit, PyramidFeatures, WindowFeatures, Windows
from sppdet.networks import Backbone, Head, weights_digest
from sppdet.ops import CodedMap
from sppdet.proposals import SelectiveSearch
from sppdet.training.mining import Miner
from sppdet.utils import Execution, SppdetError, errors_naming, fingerprint, parallel_map, sort_metadata

BANK_FILE = "bank.safetensors"
_FORMAT = "1"
_POSITIVES, _HARD = 0.4, 0.4  # shares of the vectors; the rest are random windows
_IMAGES = 250  # that are read, or a tenth of the images if they are more: a share of what mining reads
_REMEDY = "train again to make a new one"


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """Vectors as the bank stores them.

    Attributes:
        numbers: ``(R, D)``, uint8 codes or float16.
        tables: float32 ``(T, 2, C)``, scale and offset of each channel of a map of codes; T is 0 for float16.
        table: int32 ``(R,)``, the table of each vector; zeros for float16.
    """

    numbers: np.ndarray
    tables: np.ndarray
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: np.ndarray) -> StoredVectors:
        tables, table = np.unique(self.table[rows], return_inverse=True)
        if not len(self.tables):
            return replace(self, numbers=self.numbers[rows], table=self.table[rows])
        return StoredVectors(self.numbers[rows], self.tables[tables], table.astype(np.int32).reshape(-1))

    def followed_by(self, other: StoredVectors) -> StoredVectors:
        """Return these vectors and others of the same features."""
        if not len(self) or not len(other):
            return self if len(self) else other
        return StoredVectors(
            np.concatenate([self.numbers, other.numbers]),
            np.concatenate([self.tables, other.tables]),
            np.concatenate([self.table, other.table + np.int32(len(self.tables))]),
        )

    def decoded(self, features: WindowFeatures) -> np.ndarray:
        """Return the vectors as `sppdet.training.svm` reads them: float16 ``(R, D)``, equal to those of training."""
        if self.numbers.dtype == np.float16:
            return self.numbers
        vectors = np.empty(self.numbers.shape, np.float16)
        scales, offsets = (_by_feature(features, self.tables[:, n]) for n in (0, 1))
        for row, (codes, table) in enumerate(zip(self.numbers, self.table)):
            values = codes * scales[table] + offsets[table]
            vectors[row] = _rounded(values) if features.half else values
        return vectors


def _by_feature(features: WindowFeatures, of_channels: np.ndarray) -> np.ndarray:
    """Return values of channels ``(T, C)``, multiplied by the layers' weights, for each feature ``(T, D)``."""
    parts = []
    for pyramid in features.pyramids:
        bins = sum(level * level for level in pyramid.levels)
        parts.append(np.tile(of_channels[:, pyramid.channels] * np.float32(pyramid.weight), (1, bins)))
    return np.concatenate(parts, axis=1)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers rounded to bfloat16."""
    import torch

    return torch.from_numpy(values).bfloat16().float().numpy()


@dataclass(frozen=True, eq=False)
class Bank:
    """Vectors with their labels, and the settings that SVMs and boxes of a new class are learned with.

    Attributes:
        classes: K names, those of the model.
        vectors: R vectors.
        labels: int8 ``(R, K)``.
        limit: largest number of vectors, the setting ``svm.bank``.
        key: what vectors of the model depend on (`vectors_key`).
        scales: factors that bring the vectors of the SVMs, and of box regression, to the norm of the SVMs.
        svm: settings of the SVMs.
        bbox: settings of box regression.
        calibration: settings of the calibration.
        seed: of all random draws.
        origin: what the bank was made of by training; empty for one that was changed since.
    """

    classes: tuple[str, ...]
    vectors: StoredVectors
    labels: np.ndarray
    limit: int
    key: str
    scales: tuple[float, float]
    svm: SvmSettings
    bbox: BoxRegressionSettings
    calibration: CalibrationSettings
    seed: int
    origin: str = ""

    def __len__(self) -> int:
        return len(self.vectors)

    def with_rows(self, vectors: StoredVectors, labels: np.ndarray, classes: Sequence[str] | None = None) -> Bank:
        """Return the bank with more vectors, of which it keeps no more than ``limit``.

        Args:
            vectors: n vectors.
            labels: int8 ``(n, K)`` for ``classes``; for vectors that the bank has, classes that are new are -1.
            classes: the classes then: those of the bank first.
        """
        classes = self.classes if classes is None else tuple(classes)
        before = np.full((len(self), len(classes)), -1, np.int8)
        before[:, : len(self.classes)] = self.labels
        labels = np.concatenate([before, labels.astype(np.int8)])
        bank = replace(self, classes=classes, vectors=self.vectors.followed_by(vectors), labels=labels, origin="")
        return bank._bounded()

    def _bounded(self) -> Bank:
        """Return the bank with at most ``limit`` vectors: of each class's positives, and of the others, its share."""
        if len(self) <= self.limit:
            return self
        rng = np.random.default_rng(self.seed)
        positive = self.labels > 0
        group = np.where(positive.any(axis=1), positive.argmax(axis=1), len(self.classes))
        most = np.minimum(np.bincount(group, minlength=len(self.classes) + 1), self.limit)
        others = min(int(most[-1]), self.limit - min(int(most[:-1].sum()), round(_POSITIVES * self.limit)))
        counts = [*_shares(most[:-1], self.limit - others), others]
        rows = [rng.permutation(np.flatnonzero(group == g))[:count] for g, count in enumerate(counts)]
        kept = np.sort(np.concatenate(rows))
        return replace(self, vectors=self.vectors[kept], labels=self.labels[kept])

    def without(self, names: Sequence[str]) -> Bank:
        """Return the bank without classes; their positives stay as background of the others."""
        kept = [k for k, name in enumerate(self.classes) if name not in names]
        return replace(self, classes=tuple(self.classes[k] for k in kept), labels=self.labels[:, kept], origin="")

    def save(self, path: Path) -> None:
        """Write the bank."""
        vectors = self.vectors
        tensors = {
            "numbers": _compressed(vectors.numbers), "tables": vectors.tables, "table": vectors.table,
            "labels": self.labels,
        }  # fmt: skip
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("vectors", "labels"):
            del values[name]
        for name in ("svm", "bbox", "calibration"):
            values[name] = asdict(values[name])
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        described = json.dumps(values)
        save_file(tensors, path, {"format": _FORMAT, "bank": described, "checksum": _checksum(tensors, described)})
        sort_metadata(path)

    @classmethod
    def load(cls, folder: Path) -> Bank:
        """Read the bank of a model.

        Raises:
            SppdetError: the folder has none, or one that is damaged or of a later version.
        """
        finish_update(folder)
        path = folder / BANK_FILE
        if not path.is_file():
            raise SppdetError(
                f"{path}: does not exist, so that nothing can be learned from new images alone; train with svm.bank "
                "above 0, or copy the file with the model"
            )
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise SppdetError(f"{path}: is no bank that this version reads; {_REMEDY}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise SppdetError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
        with errors_naming(path, _REMEDY):
            if _checksum(tensors, metadata["bank"]) != metadata["checksum"]:
                raise SppdetError(f"{path}: is damaged; copy it again, or {_REMEDY}")
            values = json.loads(metadata["bank"])
            return cls(
                tuple(values["classes"]),
                StoredVectors(_decompressed(tensors["numbers"]), tensors["tables"], tensors["table"]),
                tensors["labels"],
                values["limit"],
                values["key"],
                tuple(values["scales"]),
                SvmSettings(**values["svm"]),
                BoxRegressionSettings(**values["bbox"]),
                CalibrationSettings(**values["calibration"]),
                values["seed"],
                values["origin"],
            )


def bank_origin(folder: Path) -> str:
    """Return what the bank in a run's folder was made of by training; empty without a readable one."""
    try:
        with safe_open(folder / BANK_FILE, "numpy") as file:
            return str(json.loads((file.metadata() or {})["bank"])["origin"])
    except (OSError, SafetensorError, LookupError, ValueError, TypeError):
        return ""


def _compressed(array: np.ndarray) -> np.ndarray:
    """Return a compressed array as bytes."""
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1, "filters": [blosc2.Filter.SHUFFLE]}
    return np.frombuffer(blosc2.asarray(np.ascontiguousarray(array), cparams=cparams).to_cframe(), np.uint8)


def _decompressed(content: np.ndarray) -> np.ndarray:
    return blosc2.ndarray_from_cframe(content.tobytes())[:]


def _checksum(tensors: dict[str, np.ndarray], values: str) -> str:
    digest = hashlib.blake2b(values.encode(), digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _shares(available: np.ndarray, total: int) -> list[int]:
    """Divide ``total`` among groups as evenly as their sizes allow.

    Examples:
        >>> _shares(np.array([1, 10, 10]), 9)
        [1, 4, 4]
    """
    shares = np.zeros(len(available), np.int64)
    order = np.argsort(available, kind="stable")
    for position, group in enumerate(order):
        shares[group] = min(int(available[group]), (total - int(shares.sum())) // (len(order) - position))
    return shares.tolist()


def vectors_key(backbone: Backbone, features: WindowFeatures, search: SelectiveSearch, head: Head | None) -> str:
    """Return a digest of what the vectors of a model's windows depend on."""
    trunk = backbone.settings()
    trunk.pop("precision")  # SVMs learned from vectors of one are as good for those of another
    layers = None if head is None else weights_digest(head)
    return fingerprint([trunk, features.description(), search.settings(), layers])


def store_vectors(
    split: FeatureSplit, features: WindowFeatures, locations: np.ndarray, execution: Execution
) -> StoredVectors:
    """Pool windows, to be stored: as codes where the maps are of codes.

    Args:
        split: the images that the locations number.
        features: how windows become vectors.
        locations: ``(n,)`` of `sppdet.training.locations.LOCATION`.
        execution: workers.
    """
    coded = isinstance(features, PyramidFeatures) and features.coded and features.kind == "max"
    coded = coded and features.head is None
    count, channels = len(locations), features.channels if isinstance(features, PyramidFeatures) else 0
    numbers = np.empty((count, features.dimension), np.uint8 if coded else np.float16)
    map_numbers = locations["image"].astype(np.int64) * (1 + locations["scale"].max(initial=0)) + locations["scale"]
    groups, table = np.unique(map_numbers, return_inverse=True)
    tables = np.zeros((len(groups) if coded else 0, 2, channels if coded else 0), np.float32)
    rows_of_images = [np.flatnonzero(locations["image"] == image) for image in np.unique(locations["image"])]
    plain = features
    if coded:
        ones = (1.0,) * len(features.layer_weights)
        plain = replace(features, layer_weights=ones, half=False)

    def fill(rows: np.ndarray) -> None:
        maps = split.maps(int(locations["image"][rows[0]]))
        every, chosen = np.arange(len(rows)), locations[rows]
        if coded:
            assert isinstance(maps, list)
            coded_maps = [m for m in maps if isinstance(m, CodedMap)]
            for s in np.unique(chosen["scale"]):
                tables[table[rows[chosen["scale"] == s][0]]] = coded_maps[s].scale, coded_maps[s].offset
            maps = [CodedMap(m.codes, np.ones_like(m.scale), np.zeros_like(m.offset)) for m in coded_maps]
        windows = Windows(chosen["scale"].astype(np.int64), chosen["cells"], every)
        dtype = np.float32 if coded else np.float16
        numbers[rows] = plain.vectors(maps, windows, every, dtype)

    for _ in parallel_map(fill, rows_of_images, execution.workers, "bank", threads=True):
        pass
    return StoredVectors(numbers, tables, table.astype(np.int32).reshape(-1) if coded else np.zeros(count, np.int32))


def choose_windows(
    split: FeatureSplit, svms: LinearSVMs, miner: Miner, limit: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the windows of a bank.

    Args:
        split: the training images.
        svms: the trained SVMs of K classes.
        miner: of these classes and images, with the settings of the SVMs.
        limit: largest number of windows.
        seed: of the draws.

    Returns:
        Locations ``(n,)`` of `LOCATION` and labels int8 ``(n, K)``.
    """
    classes = len(miner.labels)
    images = _sample_of_images(split, miner.labels, seed)
    per_image = -(-round((1 - _POSITIVES - _HARD) * limit) // max(1, len(images)))
    of_images = miner.candidates(images, svms, per_image)
    locations, labels, hard, drawn = (np.concatenate(arrays) for arrays in zip(*of_images))
    rng = np.random.default_rng(seed)
    positive = (labels > 0).any(axis=1)
    group = np.where(positive, labels.argmax(axis=1), -1)
    shares = _shares(np.bincount(group[positive], minlength=classes), round(_POSITIVES * limit))
    chosen = [rng.permutation(np.flatnonzero(group == k))[:count] for k, count in enumerate(shares)]
    rows = rng.permutation(np.flatnonzero(drawn))[: round((1 - _POSITIVES - _HARD) * limit)]
    chosen.append(rows)
    # A window that is hard for several classes is likelier to be drawn; each class has the same chance.
    chance = (hard / np.maximum(hard.sum(axis=0), 1)).sum(axis=1)
    chance[rows] = 0
    possible = np.flatnonzero((chance > 0) & ~positive)
    keys = rng.exponential(size=len(possible)) / chance[possible]
    chosen.append(possible[np.argsort(keys)][: limit - sum(map(len, chosen))])
    kept = np.sort(np.concatenate(chosen)).astype(np.int64)
    return locations[kept], labels[kept].astype(np.int8)


def _sample_of_images(split: FeatureSplit, labels: Sequence[int], seed: int) -> list[int]:
    """Return the images that a bank's windows are of: some with each class, and random ones."""
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    count = max(_IMAGES, len(order) // 10)
    if count >= len(order):
        return sorted(order)
    with_class: dict[int, int] = dict.fromkeys(labels, 0)
    chosen = set()
    for i in order:
        present = [k for k in np.unique(split.dataset[i].labels).tolist() if k in with_class]
        if any(with_class[k] < count / (2 * len(labels)) for k in present):
            chosen.add(i)
            for k in present:
                with_class[k] += 1
    chosen.update([i for i in order if i not in chosen][: max(0, count - len(chosen))])
    return sorted(chosen)
