"""What the documents show in Python is run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch


def test_the_parts_work_as_design_md_shows():
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["boxes"].shape[1] == 4 and names["vectors"].shape == (2, 50, 8) and names["whole"].shape == (1, 400)
    np.testing.assert_array_equal(names["gradients_too"], torch.from_numpy(names["vectors"]))
    assert ((names["scores"] > 0) == (names["labels"] > 0)).mean() > 0.9
    assert names["kept"][0] == 0 and len(names["kept"]) < len(names["boxes"])
