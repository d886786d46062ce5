"""Every file of a cache and a run is damaged, and must be noticed: named, or made anew, but never silently used."""

from __future__ import annotations

import shutil
from itertools import groupby
from pathlib import Path

from campaign.workplace import Outcome, Progress, Workplace

_WAYS = ("cut in half", "one bit flipped", "512 bytes zeroed")
_OUTPUTS = ("report.html", "coco_results.json", "coco_ground_truth.json")  # which no command reads
# After fc layers a class that is learned again alone has other last bits (sppdet/training/mining.py): its file must be
# named, but results need not be the same.
_OTHER_LAST_BITS = ("spp-net, fine-tuned", "end to end")


def _damaged(content: bytes, how: str) -> bytes:
    middle, data = len(content) // 2, bytearray(content)
    if how == "cut in half":
        return content[:middle]
    if how == "one bit flipped":
        data[middle : middle + 1] = bytes(byte ^ 1 for byte in data[middle : middle + 1])
    else:
        data[middle : middle + 512] = bytes(len(data[middle : middle + 512]))
    return bytes(data)


def damage(workplace: Workplace, system: str, every: int) -> Outcome:
    """Damage each file of a training's run and cache in three ways, and use it.

    The proposals of all images are damaged together, and so are the maps: each of them has to be named, or made anew.

    Args:
        workplace: where.
        system: whose run and cache.
        every: damage one file in so many.
    """
    outcome, named = Outcome(), 0
    place, _, _ = workplace.reference(system)
    copy = workplace.folder / "damaged"
    files = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
    files = [path for path in files if path.name not in _OUTPUTS][::every]
    groups = [[path] for path in files if not _is_entry(path)]
    groups += [[*group] for _, group in groupby(filter(_is_entry, files), lambda path: path.parts[1])]
    progress = Progress(len(groups) * len(_WAYS), "files")
    for group in groups:
        for how in _WAYS:
            progress.count()
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place, copy)
            changed = [path for path in group if _damage(copy / path, how)]
            if not changed:
                continue
            log, problems = _use(workplace, system, copy, group[0])
            outcome.tried += len(changed)
            named += sum(path.name in log for path in changed)
            if system in _OTHER_LAST_BITS and group[0].name in log:
                problems = []
            problems += ["a traceback"] if "Traceback" in log else []
            if _is_entry(group[0]):
                problems += [
                    f"{path} is used, or left" for path in changed
                    if path.name not in log and (copy / path).read_bytes() != (place / path).read_bytes()
                ]  # fmt: skip
            outcome.failures += [f"{group[0]}, {how}: {problem}" for problem in problems]
    outcome.details = f"{named} of them named; with the others all results were the same"
    return outcome


def _is_entry(path: Path) -> bool:
    """Whether a file is an entry of the cache, of one image."""
    return path.parts[0] == "cache" and path.suffix != ".json"


def _damage(path: Path, how: str) -> bool:
    """Damage a file; return whether that changes it."""
    content = path.read_bytes()
    changed = _damaged(content, how)
    path.write_bytes(changed)
    return changed != content


def _use(workplace: Workplace, system: str, copy: Path, path: Path) -> tuple[str, list[str]]:
    """Use a run with a damaged file; return what was printed, and how it was used without a word.

    Files of the model, of the evaluation and config.json must be refused. Another file is used by learning and
    evaluating again what depends on it: the results have to be the same, or the file is named as an error.
    """
    run = copy / "run"
    commands = {
        "model.json": ["detect", str(workplace.folder / "shapes/JPEGImages/test_00000.jpg"), "--model", str(run)],
        "config.json": ["evaluate", str(run)],
        "metrics.json": ["report", str(run)],
        "classifier.json": ["classify", "eval", str(run)],
    }
    commands["model.safetensors"], commands["detections"] = commands["model.json"], commands["metrics.json"]
    commands["classifier.safetensors"] = commands["classifier.json"]
    commands["bank.safetensors"] = ["add", str(run), str(workplace.folder / "new"), "--output", str(copy / "added")]
    arguments = commands.get("detections" if path.parts[1] == "detections" else path.name)
    if system == "classify" and path.name in ("config.json", "metrics.json"):
        arguments = commands["classifier.json"] if path.name == "config.json" else None
    if arguments:
        ended = workplace.command(arguments[0], arguments[1:]).wait()
        fine = ended.status == 2 and len(ended.errors) == 1
        return ended.log, [] if fine else [f"status {ended.status}: {ended.log[-300:]}"]
    if path.parts[0] == "cache":
        shutil.rmtree(run / "stages")
    (run / "metrics.json").unlink(missing_ok=True)
    ended = workplace.start(system, copy).wait()
    if ended.status == 0:
        return ended.log, workplace.differences(system, copy)
    return ended.log, [] if ended.errors else [f"status {ended.status}: {ended.log[-300:]}"]
