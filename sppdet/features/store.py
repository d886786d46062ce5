"""The store of what is computed once per image: proposals, and feature maps or the vectors of crops.

One file per image, in a folder named after everything else that the content depends on. The name of the file holds a
digest of the image itself. So a changed setting or a changed image never reads a stale file, and nothing is computed
twice:

    cache/proposals/<settings>/<id>-<image>.npy           float32 (N, 4) boxes
    cache/maps/<settings>/<scale>/<id>-<image>.b2nd       float16 (C, H, W) feature map, compressed by Blosc2
    cache/maps/<settings>/<scale>/<id>-<image>.codes      uint8 (H, W, C) codes of a feature map, compressed by Blosc2
    cache/crops/<settings>/<id>-<image>.rows              float16 (N, D) window vectors of R-CNN, compressed by Blosc2

Feature maps are stored, not window vectors: 2000 windows x 25,600 floats are 100 MB per image in half precision. The
map that they are pooled from is 2.4 MB, and 0.6 MB compressed, because most of it is zeros. EfficientNet-Lite's maps
have few zeros: those of the presets' three layers take 3.1 MB in float16, 1.2 MB as 256 codes, 0.8 MB as 64.

A file ends in the checksum of its content, which is verified when it is read. Files of earlier versions have none.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import blosc2
import numpy as np
import torch

from sppdet.ops import CodedMap
from sppdet.utils import (
    SppdetError,
    atomic_write,
    fingerprint,
    parallel_map,
    read_json,
    remove_leftovers,
    write_json,
)

logger = logging.getLogger(__name__)

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_CHECKSUM_MARK = b"\ncrc"  # and four bytes of CRC-32 end a file
_AFFINE = "affine"  # where the frame of a map of codes has its scale and offset


class DamagedEntry(SppdetError):
    """A stored file is missing, or its content is not what was written."""


class NotWritable(SppdetError):
    """A store's folder cannot be written, because the disk is full for example: no other entry can be stored either."""


class Store:
    """One kind of result with one set of settings.

    Args:
        root: the cache folder.
        kind: ``proposals``, ``maps`` or ``crops``.
        settings: JSON-like; everything, apart from the image, that the content depends on.
        suffix: of the files: ``.npy``, ``.b2nd``, ``.codes`` or ``.rows``.

    Attributes:
        folder: where the files are.

    Raises:
        SppdetError: the folder holds other settings than its name says.
    """

    def __init__(self, root: str | Path, kind: str, settings: dict[str, Any], suffix: str):
        self.folder = Path(root) / kind / fingerprint(settings)
        self.suffix = suffix
        remove_leftovers(self.folder)
        if not (self.folder / "settings.json").exists():
            write_json(self.folder / "settings.json", settings)
        elif read_json(self.folder / "settings.json") != settings:
            raise SppdetError(f"{self.folder}: holds other settings than its name says; remove this folder")

    def path(self, name: str) -> Path:
        """Return the file of an entry, whether it exists or not."""
        return self.folder / f"{name}{self.suffix}"

    def missing(self, names: list[str]) -> list[str]:
        """Return the entries that are not stored yet, in the order of ``names``."""
        folders = {(self.folder / name).parent for name in names}
        present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
        return [name for name in names if self.path(name) not in present]

    def size(self, names: list[str]) -> int:
        """Return the bytes on disk of the entries that are stored."""
        return sum(path.stat().st_size for path in map(self.path, names) if path.exists())

    def remove(self, names: list[str]) -> None:
        """Delete the entries that are stored."""
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def read(self, name: str) -> Any:
        """Read an entry: an array, or of ``.codes`` a `CodedMap`.

        Raises:
            DamagedEntry: the file is missing or damaged.
        """
        path = self.path(name)
        try:
            return _READERS[self.suffix](_verified(path.read_bytes()))
        except FileNotFoundError:
            raise DamagedEntry(
                f"{path}: is missing; where another command fills this cache, run again when it has ended"
            ) from None
        except Exception as error:  # libraries raise errors of any kind for bytes that are not theirs
            reason = str(error).partition("\n")[0]
            raise DamagedEntry(f"{path}: the stored file is damaged ({reason}); delete it and run again") from None

    def read_or_compute(self, name: str, compute: Callable[[], Any]) -> Any:
        """Read an entry as `read` does; compute and store a missing or damaged one anew, and warn.

        Args:
            name: the entry.
            compute: returns the value to store.

        Raises:
            SppdetError: the entry is missing or damaged, and cannot be computed or written.
        """
        try:
            return self.read(name)
        except DamagedEntry as error:
            state = "damaged" if self.path(name).exists() else "missing"
            logger.warning("%s: the stored file is %s; computing it anew", self.path(name), state)
            logger.debug("%s", error)
        value = compute()
        try:
            self.write(name, value)
        except OSError as error:
            raise self._not_writable(error) from None
        return self.read(name)

    def write(self, name: str, value: Any) -> None:
        """Write an entry atomically: what `read` returns, but of ``.b2nd`` a float32 map.

        Raises:
            OSError: the file cannot be written.
        """
        content = _WRITERS[self.suffix](value)
        checksum = _CHECKSUM_MARK + zlib.crc32(content).to_bytes(4, "big")
        atomic_write(self.path(name), lambda temporary: temporary.write_bytes(content + checksum))

    def _not_writable(self, error: OSError) -> NotWritable:
        return NotWritable(
            f"run.cache: {self.folder} cannot be written ({error.strerror}); what is stored stays, "
            "and the same command goes on from there"
        )


def _verified(content: bytes) -> bytes:
    """Return the content of a file without its checksum.

    Raises:
        ValueError: the content is not what was written.
    """
    end = len(content) - len(_CHECKSUM_MARK) - 4
    value, mark, checksum = content[:end], content[end:-4], content[-4:]
    if mark != _CHECKSUM_MARK:
        return content  # of an earlier version; what has lost its mark is too long for the readers
    if zlib.crc32(value) != int.from_bytes(checksum, "big"):
        raise ValueError("its checksum is wrong")
    return value


def compress_map(feature_map: np.ndarray) -> bytes:
    """Compress a float32 map ``(H, W, C)`` as float16 ``(C, H, W)``, where the zeros of a channel lie side by side.

    Values beyond float16 become its largest ones.

    Examples:
        >>> decompress_map(compress_map(np.array([[[0.5, 1e6]]], np.float32))).tolist()
        [[[0.5, 65504.0]]]
    """
    # Through torch: numpy converts half precision a number at a time, 40 times slower.
    float16 = torch.from_numpy(feature_map).clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half()
    # Without shuffling of bytes, runs of zeros compress better and faster. Level 5 takes longer than the lower ones, a
    # tenth of what the network takes for the map, and gives the files that are smallest and quickest to read.
    return _frame(float16.permute(2, 0, 1).contiguous().numpy(), level=5)


def decompress_map(frame: bytes) -> np.ndarray:
    """Return the map of `compress_map`: float16 ``(H, W, C)``, contiguous."""
    import cv2

    channels_first = blosc2.ndarray_from_cframe(frame)[:]
    channels, height, width = channels_first.shape
    # OpenCV transposes any two-byte numbers, in half the time of torch and numpy.
    cells = cv2.transpose(channels_first.view(np.int16).reshape(channels, height * width))
    return cells.view(np.float16).reshape(height, width, channels)


def compress_rows(rows: np.ndarray) -> bytes:
    """Compress float16 vectors ``(N, D)``. Level 5 would save 2% of the bytes and take seven times as long."""
    return _frame(rows, level=1)


def decompress_rows(frame: bytes) -> np.ndarray:
    """Return the vectors of `compress_rows`."""
    return blosc2.ndarray_from_cframe(frame)[:]


def compress_codes(coded_map: CodedMap) -> bytes:
    """Compress a map of codes.

    Neighbouring cells of a channel are alike: in place of a code its difference from the cell on the left is stored,
    less that difference in the row above, modulo 256. This takes 5 bits per number where codes take 7.5.
    """
    residuals = coded_map.codes.copy()
    residuals[:, 1:] -= coded_map.codes[:, :-1]
    residuals[1:] -= residuals[:-1].copy()
    # As a single block Zstandard reads them fastest, and a higher level would not make them smaller.
    affine = np.stack([coded_map.scale, coded_map.offset]).tobytes()
    shape = residuals.shape
    return _frame(residuals, level=1, chunks=shape, blocks=shape, meta={_AFFINE: affine})


def decompress_codes(frame: bytes) -> CodedMap:
    """Return the map of `compress_codes`."""
    array = blosc2.ndarray_from_cframe(frame)
    codes = array[:]
    for row in range(1, codes.shape[0]):
        codes[row] += codes[row - 1]
    for column in range(1, codes.shape[1]):
        codes[:, column] += codes[:, column - 1]
    scale, offset = np.frombuffer(array.schunk.meta[_AFFINE], np.float32).reshape(2, -1).copy()
    return CodedMap(codes, scale, offset)


def _frame(array: np.ndarray, level: int, **options: Any) -> bytes:
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": level, "nthreads": 1, "filters": [blosc2.Filter.NOFILTER]}
    return blosc2.asarray(array, cparams=cparams, **options).to_cframe()


def _to_npy(array: np.ndarray) -> bytes:
    """Return the content of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


# NumPy reads a header by Python's parser, which in two threads at once may fail: a sound file would count as damaged.
_ONE_HEADER = Lock()


def _from_npy(content: bytes) -> np.ndarray:
    """Return the array of `_to_npy`.

    Raises:
        ValueError: the content is damaged, or longer than its header says.
    """
    file = io.BytesIO(content)
    with _ONE_HEADER:
        array = np.load(file, allow_pickle=False)
    if file.read():
        raise ValueError("it is longer than its header says")
    return array


_READERS: dict[str, Callable[[bytes], Any]] = {
    ".npy": _from_npy,
    ".b2nd": decompress_map,
    ".codes": decompress_codes,
    ".rows": decompress_rows,
}
_WRITERS: dict[str, Callable[[Any], bytes]] = {
    ".npy": _to_npy,
    ".b2nd": compress_map,
    ".codes": compress_codes,
    ".rows": compress_rows,
}


def fill(
    store: Store,
    images: dict[str, Callable[[], np.ndarray]],
    compute: Callable[..., Any],
    workers: int,
    description: str,
    threads: bool = False,
    boxes: dict[str, Callable[[], np.ndarray]] | None = None,
) -> int:
    """Compute and store the entries that are missing.

    Args:
        store: where the entries are stored.
        images: entry -> function that reads its image, RGB uint8 ``(H, W, 3)``. It is sent to other machines, as
            ``compute`` and ``boxes`` are, so it should hold what is needed for this image alone.
        compute: maps an image and, with ``boxes``, the boxes of the entry to the value that is stored.
        workers: processes or threads; 0 is every core.
        description: of the work, for the progress bar.
        threads: whether threads do the work, not processes.
        boxes: entry -> function that returns its boxes ``(N, 4)``.

    Returns:
        How many entries were computed.

    Raises:
        SppdetError: some images cannot be read or used, one per line; all other entries are stored by then.
        NotWritable: the store cannot be written, which ends the work.
    """
    missing = [(name, images[name], boxes and boxes[name]) for name in store.missing(list(images))]
    work = partial(_fill_one, store, compute)
    errors = [error for error in parallel_map(work, missing, workers, description, threads, portable=True) if error]
    if errors:
        more = [f"and {len(errors) - 10} more"] if len(errors) > 10 else []
        raise SppdetError("\n".join(errors[:10] + more))
    return len(missing)


def _fill_one(
    store: Store,
    compute: Callable[..., Any],
    item: tuple[str, Callable[[], np.ndarray], Callable[[], np.ndarray] | None],
) -> str | None:
    """Store one entry; return the error of an image that cannot be used, so that the work on the others goes on.

    An entry that is stored stays as it is: a cluster repeats work whose worker has died before it could report.
    """
    name, read, boxes = item
    if store.path(name).exists():
        return None
    try:
        image = read()
    except SppdetError as error:  # which names the file
        return str(error)
    try:
        value = compute(image, boxes()) if boxes else compute(image)
    except SppdetError as error:
        return f"{name}: {error}"
    try:
        store.write(name, value)
    except OSError as error:
        raise store._not_writable(error) from None
    return None
