"""A short form of the fuzzer of fuzzing.py, which tries more: ``python tests/fuzzing.py 10000``."""

from __future__ import annotations

import pytest
from fuzzing import FAMILIES, fuzz

MUTANTS = {
    "settings": 200, "images": 160, "models": 40, "classifiers": 20, "records": 120, "annotations": 70, "lists": 60,
    "videos": 60, "large images": 60, "runs": 40, "caches": 100,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged files
def test_a_mutant_is_read_or_refused_in_one_line(tmp_path, family):
    failures = fuzz(family, MUTANTS[family], tmp_path)
    assert not failures, "\n\n".join(failures[:5])
