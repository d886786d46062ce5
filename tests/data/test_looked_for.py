"""Images in which only some classes were looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppdet.data.dataset import Dataset, Sample
from sppdet.data.looked_for import read_looked_for, with_looked_for
from sppdet.utils.errors import SppdetError

CLASSES = ("cat", "cow", "dog")


def dataset(*names: str) -> Dataset:
    nothing = np.zeros(0, np.int64)
    samples = [Sample(Path(n).stem, Path(n), 8, 6, np.zeros((0, 4), np.float32), nothing, nothing > 0) for n in names]
    return Dataset(CLASSES, tuple(samples))


def write(folder: Path, text: str) -> Path:
    path = folder / "looked_for.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_name_an_image_and_its_classes(tmp_path):
    table = read_looked_for(write(tmp_path, "image,classes\na.jpg,dog, cat\n\n# later\nb,\n"), CLASSES)
    assert {name: row.tolist() for name, row in table.items()} == {"a.jpg": [True, False, True], "b": [False] * 3}


def test_images_are_found_by_id_or_file_name_and_others_have_all_classes(tmp_path):
    path = write(tmp_path, "a.jpg,dog\nb,cat")
    first, second, third = with_looked_for(dataset("a.jpg", "b.png", "c.jpg"), str(path))
    assert first.was_looked_for([0, 2]).tolist() == [False, True]
    assert second.was_looked_for([0, 2]).tolist() == [True, False]
    assert third.looked_for is None and third.was_looked_for([0, 1, 2]).all()
    assert first.mirror().looked_for is first.looked_for


def test_without_a_file_nothing_changes():
    data = dataset("a.jpg")
    assert with_looked_for(data, None) is data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,cat\nb,dgo", "line 2: no class 'dgo' in the annotations, which have cat, cow, dog"),
        ("a,cat\na,dog", "line 2: the image 'a' has a line already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, message):
    with pytest.raises(SppdetError, match=message):
        read_looked_for(write(tmp_path, text), CLASSES)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SppdetError, match=r"data.labelled_classes: .*none.csv cannot be read"):
        read_looked_for(tmp_path / "none.csv", CLASSES)
