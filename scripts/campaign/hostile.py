"""Mutants of every kind of input, bombs, and headers that claim more than there is; and memory over many images."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import fuzzing
import psutil

from campaign.workplace import Command, Outcome, Progress, Workplace

_CHUNK = 500  # mutants of one process
_LONGEST = 600.0  # seconds of a process; the fuzzer itself fails a mutant that takes 20
_MOST_MB = 1500.0  # memory that a process may take beyond the fuzzer's beginning


def mutants(workplace: Workplace, family: str, count: int, seed: int) -> Outcome:
    """Try mutants of a family of tests/fuzzing.py."""
    warnings.filterwarnings("ignore")
    outcome, peak, report = Outcome(), 0.0, workplace.folder / "failures.json"
    beginning = psutil.Process().memory_info().rss / 2**20
    progress = Progress(count, "mutants")
    while outcome.tried < count:
        many, before = min(_CHUNK, count - outcome.tried), _others(workplace)
        first = seed + outcome.tried
        with TemporaryDirectory(dir=workplace.folder, prefix="fuzz") as folder:

            def work(many: int = many, first: int = first, folder: str = folder) -> None:
                report.write_text(json.dumps(fuzzing.fuzz(family, many, Path(folder), first)))

            ended = Command(work, workplace.folder / "log", Path(folder)).wait(_LONGEST)
        if ended.status:
            outcome.failures.append(f"from seed {first}: the process ended with status {ended.status} after "
                                    f"{ended.seconds:.0f} s: {ended.log[-600:]}")  # fmt: skip
        else:
            outcome.failures += [f"seed {first}, {failure}" for failure in json.loads(report.read_text())]
        report.unlink(missing_ok=True)
        if ended.memory_mb - beginning > _MOST_MB:
            outcome.failures.append(f"from seed {first}: {ended.memory_mb:.0f} MB of memory")
        if outside := _others(workplace) - before:
            outcome.failures.append(f"from seed {first}: wrote {sorted(outside)}")
        peak, outcome.tried = max(peak, ended.memory_mb), outcome.tried + many
        progress.count(many)
    outcome.details = f"at most {peak:.0f} MB of memory in a process"
    return outcome


def _others(workplace: Workplace) -> set[str]:
    """Return the files of the workplace and beside it that a reader has no reason to write."""
    skipped = ("fuzz", "log", "user_cache", "failures")
    inside = [path for path in workplace.folder.iterdir() if not path.name.startswith(skipped)]
    return {str(path) for path in [*inside, *workplace.folder.parent.iterdir(), *Path.home().iterdir()]}


def bombs(workplace: Workplace, *_: object) -> Outcome:
    """Read files that claim, or unfold to, far more than they hold."""
    folder, before = workplace.folder, psutil.Process().memory_info().rss / 2**20
    readers = _bombs(folder)
    outcome = Outcome(len(readers), ", ".join(readers))
    for name, read in readers.items():
        ended = Command(partial(_refuses, read), folder / "log", folder).wait(300)
        if ended.status != 7 or ended.processor > 20 or ended.memory_mb - before > 500:
            outcome.failures.append(
                f"{name}: status {ended.status}, {ended.processor:.0f} s, {ended.memory_mb - before:.0f} MB more: "
                f"{ended.log[-300:]}"
            )
    return outcome


def _refuses(read: Callable[[], object]) -> int:
    from sppdet.utils import SppdetError

    try:
        read()
    except SppdetError as error:
        return 7 if str(error).count("\n") == 0 else 1
    return 0


def _bombs(folder: Path) -> dict[str, Callable[[], object]]:
    """Return a reader for each bomb, by its name."""
    from sppdet import config
    from sppdet.data.images import read_image
    from sppdet.data.voc_xml import read_voc_xml
    from sppdet.features.store import Store
    from sppdet.utils import read_json, read_tensors

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 20))
    aliases = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))
    huge = b'{"a":{"dtype":"F32","shape":[288230376151711744],"data_offsets":[0,1152921504606846976]}}'
    npy = b"{'descr': '<f4', 'fortran_order': False, 'shape': (288230376151711744, 4), }"
    contents = {
        "image.png": b"\x89PNG\r\n\x1a\n" + chunks,
        "entities.xml": f'<!DOCTYPE a [<!ENTITY a0 "x">{entities}]><annotation>&a19;</annotation>'.encode(),
        "external.xml": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>',
        "aliases.yaml": f"a0: &a0 x\n{aliases}\n".encode(),
        "deep.yaml": b"[" * 100_000,
        "deep.json": b"[" * 100_000,
        "length.safetensors": struct.pack("<Q", 2**60) + b"{}",
        "shape.safetensors": struct.pack("<Q", len(huge)) + huge,
    }
    for name, content in contents.items():
        (folder / f"bomb-{name}").write_bytes(content)
    readers: dict[str, Callable[[Path], object]] = {
        ".png": read_image, ".xml": read_voc_xml, ".yaml": lambda path: config.load(path), ".json": read_json,
        ".safetensors": lambda path: read_tensors(path, "train again"),
    }  # fmt: skip
    read = {name: lambda name=name: readers[Path(name).suffix](folder / f"bomb-{name}") for name in contents}
    store = Store(folder / "bombs", "proposals", {}, ".npy")
    store.path("shape").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(npy)) + npy)
    return read | {"shape.npy": lambda: store.read("shape")}


def flat_memory(workplace: Workplace, _: str, count: int) -> Outcome:
    """Let one loaded detector predict ``count`` images, and look at its memory."""
    outcome = Outcome(count)
    place = workplace.reference("spp-net")[0]
    report = workplace.folder / "memory.json"

    def work() -> None:
        import sppdet

        detector, process, megabytes = sppdet.load(place / "run", device="cpu"), psutil.Process(), []
        images = sorted((workplace.folder / "shapes/JPEGImages").iterdir())
        for number in range(count):
            detector.predict(images[number % len(images)])
            if number % max(1, count // 10) == 0:
                megabytes.append(round(process.memory_info().rss / 2**20, 1))
        report.write_text(json.dumps(megabytes))

    ended = Command(work, workplace.folder / "log", workplace.folder).wait(3600)
    if ended.status:
        outcome.failures.append(f"status {ended.status}: {ended.log[-400:]}")
        return outcome
    megabytes = json.loads(report.read_text())
    growth = max(megabytes) - megabytes[2]  # after a fifth, when kernels and buffers exist
    outcome.details = f"{', '.join(f'{value:.0f}' for value in megabytes)} MB after each tenth"
    if growth > 20:
        outcome.failures.append(f"grew by {growth:.0f} MB")
    return outcome
