"""The diagnosis (:mod:`sppdet.evaluation.diagnosis`) of a run, from the files that its last evaluation left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sppdet.data import Dataset
from sppdet.evaluation.diagnosis import diagnose
from sppdet.evaluation.diagnosis_plot import draw_diagnosis
from sppdet.evaluation.diagnosis_report import report_markdown
from sppdet.evaluation.run import last_measured
from sppdet.features import entry_names, proposal_store
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError, atomic_write, read_json, write_json


def diagnose_run(folder: str | Path, overrides: Iterable[str] = ()) -> str:
    """Diagnose the last evaluation of a run: diagnosis.json, .md and .png there, and the text of the second.

    ``overrides`` are ``key=value`` for what has moved since, such as ``data.root=...`` or ``run.cache=...``.

    Raises:
        SppdetError: a file that is missing or that is of another evaluation, one line that says what makes it.
    """
    folder, last = Path(folder), last_measured(folder, overrides)
    search = SelectiveSearch(**read_json(folder / "model.json")["proposals"])
    stored = _stored_proposals(last.dataset, last.settings.run.cache, search, folder)
    result = diagnose(last.dataset, last.detections, stored)
    last.check(result["mAP"])
    write_json(folder / "diagnosis.json", result)
    text = report_markdown(result)
    atomic_write(folder / "diagnosis.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    atomic_write(folder / "diagnosis.png", draw_diagnosis(result).save)
    return text


def _stored_proposals(dataset: Dataset, cache: str, search: SelectiveSearch, folder: Path) -> Iterable[np.ndarray]:
    if not Path(cache).is_dir():
        raise SppdetError(f"run.cache: {cache} does not exist; say where the run's cache is with run.cache=FOLDER")
    store, names = proposal_store(cache, search), entry_names(dataset)
    missing = store.missing(names)
    if missing:
        raise SppdetError(
            f"{store.folder}: the proposals of {len(missing)} of {len(names)} images are not stored (first: "
            f"{missing[0]}); give run.cache=FOLDER, or make them: python -m sppdet.evaluate {folder} --force"
        )
    return map(store.read, names)
