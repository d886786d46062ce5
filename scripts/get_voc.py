"""Download PASCAL VOC2007 into ``data/`` and check what arrived: ``python scripts/get_voc.py --root data``.

torchvision downloads the two tars, verifies their checksums and unpacks them to ``ROOT/VOCdevkit/VOC2007``. A complete
split is not downloaded again, so images placed by hand (``data/README.md``) are used as they are.
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

# Split -> published number of image ids (Everingham et al., the VOC2007 development kit, section 1.4).
PUBLISHED = {"trainval": 5011, "test": 4952}
TARS = {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"}
# What torchvision raises when the server cannot be reached, the connection drops, or a checksum or a tar is wrong.
DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException)


def voc_folder(root: Path) -> Path:
    """Return the folder of VOC2007 under ``root``."""
    return root / "VOCdevkit" / "VOC2007"


def mark_of(root: Path) -> Path:
    """Return the file that names the splits of an unfinished download; the Makefile looks for it."""
    return root / "VOCdevkit" / ".incomplete"


def set_mark(root: Path, splits: Sequence[str]) -> None:
    """Record the splits that are still to be downloaded; without any, remove the file."""
    mark = mark_of(root)
    if not splits:
        mark.unlink(missing_ok=True)
        return
    text = "".join(f"{split}\n" for split in splits)
    atomic_write(mark, lambda temporary: temporary.write_text(text))


def non_empty(folder: Path) -> set[str]:
    """Return the names of the files in ``folder`` that are not empty; none if there is no such folder."""
    if not folder.is_dir():
        return set()
    return {entry.name for entry in os.scandir(folder) if entry.is_file() and entry.stat().st_size}


def fault(root: Path, split: str, count: int) -> str | None:
    """Say why a split is not complete; None if it has ``count`` ids, each with an image and an annotation."""
    # Interrupted unpacking can leave an image that is not empty and not whole. Without a whole tar the unpacking never
    # began, and the files were placed by hand since.
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
    for subfolder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        present = non_empty(folder / subfolder)
        absent = [name + suffix for name in ids if name + suffix not in present]
        if absent:
            return f"{len(absent)} files of {split} are missing or empty in {folder / subfolder}, such as {absent[0]}"
    return None


def faults(root: Path, counts: Mapping[str, int] = PUBLISHED) -> dict[str, str]:
    """Return why splits are not complete, by split; empty if all splits of ``counts`` are."""
    by_split = {split: fault(root, split, count) for split, count in counts.items()}
    return {split: text for split, text in by_split.items() if text}


def broken_tars(root: Path) -> list[Path]:
    """Return the tars of VOC2007 under ``root`` that cannot be read to their end: interrupted downloads."""
    return [root / name for name in TARS.values() if (root / name).is_file() and not reads(root / name)]


def reads(tar: Path) -> bool:
    """Whether a tar can be read from its first member to its last."""
    try:
        with tarfile.open(tar) as archive:
            return bool(archive.getmembers())
    except (tarfile.TarError, EOFError, OSError):
        return False


def fetch(root: Path, counts: Mapping[str, int] = PUBLISHED) -> None:
    """Download the splits of ``counts`` that are not complete under ``root``.

    Raises:
        SppdetError: if a download or the unpacking fails.
    """
    todo = list(faults(root, counts))
    while todo:
        from torchvision.datasets import VOCDetection  # slow to import, and not needed if VOC2007 is complete

        try:
            set_mark(root, todo)
            VOCDetection(root, year="2007", image_set=todo[0], download=True)
        except DOWNLOAD_ERRORS as error:
            drop_idle_mark(root)
            raise SppdetError(download_failure(root, todo[0], error)) from error
        todo.pop(0)
    set_mark(root, [])


def drop_idle_mark(root: Path) -> None:
    """Remove the mark if nothing was unpacked: images that are placed by hand later are then taken as complete."""
    devkit = mark_of(root).parent
    if devkit.is_dir() and not voc_folder(root).exists():
        set_mark(root, [])
        if not any(devkit.iterdir()):
            devkit.rmdir()


def download_failure(root: Path, split: str, error: Exception) -> str:
    """Say in one line what failed, which broken tars it left, and how to do without the server."""
    cause = " ".join(str(error).split()) or type(error).__name__
    left = ", ".join(str(tar) for tar in broken_tars(root))
    return (
        f"downloading VOC2007 {split} failed ({cause}); "
        + (f"it left a broken {left}, which the next try replaces; " if left else "")
        + f"try again later, or place the images by hand as data/README.md says: {layout(root)}"
    )


def layout(root: Path) -> str:
    """Return the folders that a reader of VOC2007 looks for."""
    return f"{voc_folder(root)}/{{Annotations,JPEGImages,ImageSets/Main}}"


def check(root: Path, counts: Mapping[str, int] = PUBLISHED) -> str:
    """Sum up a complete VOC2007 in one line.

    Raises:
        SppdetError: if a split of ``counts`` is not complete; says why.
    """
    problems = faults(root, counts)
    if problems:
        raise SppdetError(
            f"VOC2007 is not complete: {'; '.join(problems.values())}; run `make data-voc`, or place the "
            f"images by hand as data/README.md says: {layout(root)}"
        )
    ids = ", ".join(f"{split} {count} ids" for split, count in counts.items())
    return f"VOC2007 in {voc_folder(root)}: {ids}, an image and an annotation for each"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status: 0, or 2 if VOC2007 is not complete in the end."""
    parser = argparse.ArgumentParser(description="Download PASCAL VOC2007 and check that it is complete.")
    parser.add_argument(
        "--root", type=Path, default=Path("data"), help="where the folder VOCdevkit goes; default: %(default)s"
    )
    parser.add_argument("--check-only", action="store_true", help="check only, download nothing")
    options = parser.parse_args(argv)
    try:
        if not options.check_only:
            socket.setdefaulttimeout(60)  # seconds; torchvision alone waits for ever for a server that stops sending
            fetch(options.root)
        print(check(options.root))
    except SppdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
