"""One XML annotation: forms that tools write, and errors that say what was found and expected."""

from __future__ import annotations

import pytest
from labelled import write

from sppdet.data.voc_xml import read_voc_xml
from sppdet.utils.errors import SppdetError

BOX = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15</ymax></bndbox>"
OTHER = BOX.replace("11", "12")


@pytest.mark.parametrize(
    "text",
    [
        f"<annotation><object><name>cat</name>{BOX}{OTHER}</object></annotation>",
        f"<annotation><objects><object><name>cat</name>{BOX}</object><object><name>cat</name>{OTHER}</object></objects>"
        "</annotation>",
        f"<doc><object><name>cat</name>{BOX}{OTHER}</object></doc>",
        f'<annotation xmlns="http://x.org/voc"><object><name>cat</name>{BOX}{OTHER}</object></annotation>',
        f'<v:annotation xmlns:v="http://x.org"><v:object><v:name>cat</v:name>{BOX}{OTHER}</v:object></v:annotation>',
        f"<Annotation><Object><Name>cat</Name>{BOX.replace('bndbox', 'BndBox')}{OTHER}</Object></Annotation>",
    ],
)
def test_every_box_is_an_object_whatever_the_form(tmp_path, text):
    content = read_voc_xml(write(tmp_path / "a.xml", text))
    assert [(item.name, item.corners) for item in content.objects] == [
        ("cat", (11, 6, 20, 15)),
        ("cat", (12, 6, 20, 15)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations><image name='a.jpg'><box/></image></annotations>", "holds <annotations> without <object>, exp"),
        (f"<annotation><item><name>cat</name>{BOX}</item></annotation>", "holds <bndbox> outside of any <object>"),
        ("<annotation><object><name>cat</name><robndbox/></object></annotation>", "no bndbox, but <robndbox>"),
        ("<html/>", "holds <html> without <object>, expected VOC's <annotation>; export it as PASCAL VOC"),
        ("<a><annotation><filename>1</filename><object><name>c</name>" + BOX + "</object></annotation>"
         "<annotation><filename>2</filename></annotation></a>", "describes several images"),
    ],
)  # fmt: skip
def test_other_xml_is_an_error_and_not_an_image_without_objects(tmp_path, text, message):
    with pytest.raises(SppdetError, match=message) as caught:
        read_voc_xml(write(tmp_path / "a.xml", text))
    assert str(caught.value).startswith(f"{tmp_path / 'a.xml'}: ")


def test_an_annotation_without_objects_and_with_odd_sizes(tmp_path):
    assert read_voc_xml(write(tmp_path / "a.xml", "<annotation/>")) == ([], None, None)
    text = "<annotation><filename> a.jpg </filename><size><width>40.0</width><height>30</height></size></annotation>"
    assert read_voc_xml(write(tmp_path / "a.xml", text)) == ([], (40, 30), "a.jpg")


def test_a_box_that_cvat_says_was_turned(tmp_path):
    attribute = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes>"
    for degrees, corners in (("0.0", (11, 6, 20, 13)), ("90.0", (12, 5, 19, 14))):  # 10 x 8 pixels, then 8 x 10
        box = BOX.replace("15", "13") + attribute.format(degrees)
        text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
        assert [item.corners for item in read_voc_xml(write(tmp_path / "a.xml", text)).objects] == [corners]
