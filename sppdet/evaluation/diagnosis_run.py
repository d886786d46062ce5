"""Diagnose a run (`sppdet.evaluation.diagnosis`) from the files of its last evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from sppdet.data import Dataset, Tiles, tile_dataset
from sppdet.evaluation.diagnosis import diagnose
from sppdet.evaluation.diagnosis_plot import draw_diagnosis
from sppdet.evaluation.diagnosis_report import report_markdown, report_text
from sppdet.evaluation.run import LastEvaluation, read_last_evaluation
from sppdet.features import entry_names, proposal_store
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError, atomic_write, errors_naming, read_json, write_json


def diagnose_run(folder: str | os.PathLike, overrides: Iterable[str] = ()) -> str:
    """Diagnose the last evaluation of a run and write diagnosis.json, diagnosis.md and diagnosis.png into its folder.

    Args:
        folder: the run's folder.
        overrides: ``key=value`` settings for files that have moved since, such as ``data.root=...`` or
            ``run.cache=...``.

    Returns:
        The diagnosis in a few lines; diagnosis.md has all tables.

    Raises:
        SppdetError: if a file is missing or belongs to another evaluation.
    """
    folder = Path(folder)
    last = read_last_evaluation(folder, overrides)
    result = diagnose(last.dataset, last.detections, stored_proposals(last))
    last.check_map(result["mAP"])
    write_json(folder / "diagnosis.json", result)
    text = report_markdown(result)
    atomic_write(folder / "diagnosis.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    atomic_write(folder / "diagnosis.png", draw_diagnosis(result).savefig)
    return f"{report_text(result)}\nper class: {folder / 'diagnosis.md'}, {folder / 'diagnosis.png'}"


def stored_proposals(last: LastEvaluation) -> Iterable[np.ndarray]:
    """Read the proposals of every test image from the cache of a run.

    Raises:
        SppdetError: if the cache does not exist or misses some.
    """
    cache, folder = last.config.run.cache, last.folder
    model = folder / "model.json"
    with errors_naming(model, "train again, or copy the model's folder again"):
        search = SelectiveSearch(**read_json(model, proposals=dict)["proposals"])
    if not Path(cache).is_dir():
        raise SppdetError(f"run.cache: {cache} does not exist; say where the run's cache is with run.cache=FOLDER")
    pieces = tile_dataset(last.dataset, Tiles.of(last.config.data))
    store, names = proposal_store(cache, search), entry_names(pieces)
    missing = store.missing(names)
    if missing:
        raise SppdetError(
            f"{store.folder}: the proposals of {len(missing)} of {len(names)} images are not stored (first: "
            f"{missing[0]}); give run.cache=FOLDER, or compute them: python -m sppdet.evaluate {folder} --force"
        )
    return map(np.concatenate, _by_image(pieces, map(store.read, names)))


def _by_image(pieces: Dataset, proposals: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield the proposals of all tiles of an image, in its pixels, or those of the whole image."""
    for _, of_image in groupby(zip(pieces, proposals), lambda pair: pair[0].path if pair[0].tile else pair[0].id):
        yield [boxes + np.array(2 * (sample.tile or (0, 0))[:2], np.float32) for sample, boxes in of_image]
