"""Download PASCAL VOC2007 into ``data/`` and check what arrived: ``python scripts/get_voc.py --root data``.

torchvision fetches the two tars, verifies their checksums and unpacks them to ``ROOT/VOCdevkit/VOC2007``. A
split that is there and complete is not fetched again, so images placed by hand (``data/README.md``) are
taken as they are.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sppdet.utils.errors import SppdetError
from sppdet.utils.files import atomic_write

# Split -> number of image ids, as published (Everingham et al., the VOC2007 development kit, section 1.4).
PUBLISHED = {"trainval": 5011, "test": 4952}
TARS = {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"}
# What torchvision raises when the server is away, the connection drops, a checksum or a tar is wrong.
DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException)


def voc_folder(root: Path) -> Path:
    """Where the images of VOC2007 lie under ``root``."""
    return root / "VOCdevkit" / "VOC2007"


def mark_of(root: Path) -> Path:
    """The file that names the splits that an unfinished download owes; the Makefile looks for it."""
    return root / "VOCdevkit" / ".incomplete"


def set_mark(root: Path, splits: Sequence[str]) -> None:
    """Record that ``splits`` are still to be fetched; none takes the mark away."""
    mark = mark_of(root)
    if not splits:
        mark.unlink(missing_ok=True)
        return
    text = "".join(f"{split}\n" for split in splits)
    atomic_write(mark, lambda temporary: temporary.write_text(text))


def non_empty(folder: Path) -> set[str]:
    """Names of the files of ``folder`` that hold anything; none when there is no such folder."""
    if not folder.is_dir():
        return set()
    return {entry.name for entry in os.scandir(folder) if entry.is_file() and entry.stat().st_size}


def fault(root: Path, split: str, count: int) -> str | None:
    """What is wrong with a split, in words, or None: ``count`` ids, an image and an annotation for each."""
    # Unpacking that was cut short can leave an image that exists, is not empty, and is not whole. Without a
    # whole tar it never began: what lies there was placed by hand since.
    mark = mark_of(root)
    if mark.exists() and split in mark.read_text().split() and reads(root / TARS[split]):
        return f"the unpacking of {root / TARS[split]} did not finish"
    folder = voc_folder(root)
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        return f"{listing} is missing"
    ids = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(ids) != count:
        return f"{listing} lists {len(ids)} ids, not {count}"
    for part, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        there = non_empty(folder / part)
        absent = [name + suffix for name in ids if name + suffix not in there]
        if absent:
            return f"{len(absent)} files of {split} are missing or empty in {folder / part}, such as {absent[0]}"
    return None


def faults(root: Path, counts: Mapping[str, int] = PUBLISHED) -> dict[str, str]:
    """Split -> what is wrong with it, for the splits of ``counts`` that are not complete."""
    found = {split: fault(root, split, count) for split, count in counts.items()}
    return {split: what for split, what in found.items() if what}


def broken_tars(root: Path) -> list[Path]:
    """The tars of VOC2007 under ``root`` that do not read to their end: downloads that were cut short."""
    return [root / name for name in TARS.values() if (root / name).is_file() and not reads(root / name)]


def reads(tar: Path) -> bool:
    """Whether a tar can be walked from its first member to its last."""
    try:
        with tarfile.open(tar) as archive:
            return bool(archive.getmembers())
    except (tarfile.TarError, EOFError, OSError):
        return False


def fetch(root: Path, counts: Mapping[str, int] = PUBLISHED) -> None:
    """Download the splits of ``counts`` that are not complete under ``root``.

    Raises :class:`SppdetError` when a download or the unpacking fails.
    """
    todo = list(faults(root, counts))
    while todo:
        from torchvision.datasets import VOCDetection  # slow to import, and a complete VOC2007 does without

        try:
            set_mark(root, todo)
            VOCDetection(root, year="2007", image_set=todo[0], download=True)
        except DOWNLOAD_ERRORS as error:
            drop_idle_mark(root)
            raise SppdetError(download_failure(root, todo[0], error)) from error
        todo.pop(0)
    set_mark(root, [])


def drop_idle_mark(root: Path) -> None:
    """Take the mark away where nothing was unpacked: images placed by hand later are not to be doubted."""
    devkit = mark_of(root).parent
    if devkit.is_dir() and not voc_folder(root).exists():
        set_mark(root, [])
        if not any(devkit.iterdir()):
            devkit.rmdir()


def download_failure(root: Path, split: str, error: Exception) -> str:
    """One line: what failed, which broken tars it left, and how to do without the server."""
    cause = " ".join(str(error).split()) or type(error).__name__
    left = ", ".join(str(tar) for tar in broken_tars(root))
    return (
        f"downloading VOC2007 {split} failed ({cause}); "
        + (f"it left a broken {left}, which the next try replaces; " if left else "")
        + f"try again later, or place the images by hand as data/README.md says: {layout(root)}"
    )


def layout(root: Path) -> str:
    """The folders that a reader of VOC2007 looks for."""
    return f"{voc_folder(root)}/{{Annotations,JPEGImages,ImageSets/Main}}"


def check(root: Path, counts: Mapping[str, int] = PUBLISHED) -> str:
    """One line that sums up a complete VOC2007; raises :class:`SppdetError` that names what is wrong."""
    found = faults(root, counts)
    if found:
        raise SppdetError(
            f"VOC2007 is not complete: {'; '.join(found.values())}; run `make data-voc`, or place the "
            f"images by hand as data/README.md says: {layout(root)}"
        )
    ids = ", ".join(f"{split} {count} ids" for split, count in counts.items())
    return f"VOC2007 in {voc_folder(root)}: {ids}, an image and an annotation for each"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 when VOC2007 is not complete in the end."""
    parser = argparse.ArgumentParser(description="Download PASCAL VOC2007 and check that it is complete.")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder that gets VOCdevkit (data)")
    parser.add_argument("--check-only", action="store_true", help="download nothing")
    options = parser.parse_args(argv)
    try:
        if not options.check_only:
            socket.setdefaulttimeout(60)  # seconds; a server that falls silent would hang torchvision for ever
            fetch(options.root)
        print(check(options.root))
    except SppdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
