"""CVAT's own XML."""

from __future__ import annotations

import pytest
from labelled import kinds_of, objects_of, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError

XML = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>t</name><labels><label><name>cat</name></label></labels></task></meta>
  <image id="0" name="sub/a.jpg" width="40" height="30">
    <box label="cat" source="manual" occluded="0" xtl="10.50" ytl="5.00" xbr="20.00" ybr="15.25" z_order="0"></box>
    <polygon label="dog" points="1.00,2.00;9.50,3.00;4.00,8.00" z_order="0"></polygon>
    <box label="cat" rotation="90.0" xtl="10" ytl="10" xbr="20" ybr="14"></box>
    <ellipse label="cat" rotation="90.0" cx="20" cy="15" rx="8" ry="3"></ellipse>
    <mask label="dog" rle="3, 4, 5" left="4" top="6" width="3" height="4"></mask>
    <points label="dog" points="3,4"></points>
  </image>
  <image id="1" name="sub/b.jpg" width="40" height="30"></image>
</annotations>
"""


def test_boxes_polygons_ellipses_masks_and_turned_boxes(tmp_path):
    write_image(tmp_path / "images/sub/a.jpg")
    write_image(tmp_path / "images/sub/b.jpg", seed=1)
    write(tmp_path / "annotations.xml", XML)
    folder = read_folder(tmp_path)
    assert folder.format == "cvat" and kinds_of(folder) == ["object left out"]
    boxes = [("cat", 10.5, 5, 20, 15.25), ("dog", 1, 2, 9.5, 8), ("cat", 13, 7, 17, 17)]
    boxes += [("cat", 17, 7, 23, 23), ("dog", 4, 6, 7, 10)]
    assert objects_of(folder) == {"a": boxes, "b": []}


def test_xml_for_videos_is_refused(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "annotations.xml", "<annotations><meta/><track id='0' label='cat'/></annotations>")
    with pytest.raises(SppdetError, match=r"annotations\.xml: is CVAT's XML for videos; export the task as"):
        read_folder(tmp_path)


def test_subsets_are_splits(tmp_path):
    entries = []
    for seed, subset in enumerate(("Train", "Validation", "Test", "other")):
        write_image(tmp_path / f"{seed}.jpg", seed=seed)
        box = "<box label='cat' xtl='10' ytl='5' xbr='20' ybr='15'/>"
        entries.append(f"<image id='{seed}' name='{seed}.jpg' subset='{subset}' width='40' height='30'>{box}</image>")
    write(tmp_path / "annotations.xml", f"<annotations><version>1.1</version>{''.join(entries)}</annotations>")
    splits = {name: images[0].id for name, images in read_folder(tmp_path).splits().items()}
    assert splits == {"train": "0", "val": "1", "test": "2"}


def test_a_corner_that_is_no_number_is_an_error(tmp_path):
    write_image(tmp_path / "images/sub/a.jpg")
    write_image(tmp_path / "images/sub/b.jpg", seed=1)
    write(tmp_path / "annotations.xml", XML.replace("9.50,3.00", "nan,3.00"))
    with pytest.raises(SppdetError, match=r"annotations\.xml: object 2 \(dog\) has a corner that is no finite number"):
        read_folder(tmp_path)
