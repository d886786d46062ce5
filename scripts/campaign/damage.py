"""Every file of a cache and a run is damaged, and must be noticed: named, or made anew, but never silently used."""

from __future__ import annotations

import shutil
from pathlib import Path

from campaign.workplace import Outcome, Workplace

_OUTPUTS = ("report.html", "coco_results.json")  # which no command reads


def _damaged(content: bytes, how: str) -> bytes:
    middle, data = len(content) // 2, bytearray(content)
    if how == "cut in half":
        return content[:middle]
    if how == "one bit flipped":
        data[middle] ^= 1
    else:
        data[middle : middle + 512] = bytes(len(data[middle : middle + 512]))
    return bytes(data)


def damage(workplace: Workplace, systems: list[str], every: int = 1) -> Outcome:
    """Damage each file in three ways, and use it.

    Args:
        workplace: where.
        systems: whose runs and caches.
        every: damage one file in so many.
    """
    outcome, tried, named = Outcome("Each file of cache and run damaged, in three ways"), 0, 0
    for system in systems:
        place, _, _ = workplace.reference(system)
        copy = workplace.folder / "damaged"
        files = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
        for path in [path for path in files if path.name not in _OUTPUTS][::every]:
            for how in ("cut in half", "one bit flipped", "512 bytes zeroed"):
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(place, copy)
                content = (copy / path).read_bytes()
                changed = _damaged(content, how)
                if changed == content:
                    continue
                (copy / path).write_bytes(changed)
                log, problems = _use(workplace, system, copy, path)
                tried += 1
                named += path.name in log
                problems += ["a traceback"] if "Traceback" in log else []
                outcome.failures += [f"{system}, {path}, {how}: {problem}" for problem in problems]
    outcome.tried = f"{tried} damaged files, {named} of them named; with the others all results were the same"
    return outcome


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
    arguments = commands.get("detections" if path.parts[1] == "detections" else path.name)
    if system == "classify" and path.name in ("config.json", "metrics.json"):
        arguments = commands["classifier.json"] if path.name == "config.json" else None
    if arguments:
        ended = workplace.command(arguments[0], arguments[1:]).wait()
        fine = ended.status == 2 and len(ended.errors) == 1
        return ended.log, [] if fine else [f"status {ended.status}: {ended.log[-300:]}"]
    if path.parts[0] == "cache":
        for stage in ("svm", "bbox", "context"):
            shutil.rmtree(run / "stages" / stage, ignore_errors=True)
    (run / "metrics.json").unlink(missing_ok=True)
    ended = workplace.train(system, copy).wait()
    if ended.status == 0:
        return ended.log, workplace.differences(system, copy)
    return ended.log, [] if ended.errors else [f"status {ended.status}: {ended.log[-300:]}"]
