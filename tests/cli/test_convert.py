"""``sppdet convert``: what it writes and prints."""

from __future__ import annotations

import pytest
from labelled import voc_xml, write, write_image

from sppdet.cli.convert import main


@pytest.mark.parametrize("form", ["voc", "yolo", "coco"])
def test_a_folder_is_written_in_another_format(tmp_path, capsys, form):
    write_image(tmp_path / "in/a.jpg")
    write(tmp_path / "in/a.xml", voc_xml(("cat", 11, 6, 60, 15)))
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--as", form]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}: {form}, 1 image, 1 object\n"
    assert err == "warning: boxes that reach beyond their image, clipped: 1 (a.xml)\n"


def test_files_that_cannot_be_used_stop_it_unless_they_are_left_out(tmp_path, capsys):
    for name in "ab":
        write_image(tmp_path / f"in/{name}.jpg", seed=ord(name))
        write(tmp_path / f"in/{name}.xml", voc_xml(("cat", 11, 6, 20, 15), filename=f"{name}.jpg"))
    write(tmp_path / "in/b.xml", "<annotation>")
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--as", "yolo"]
    assert main(arguments) == 2 and not (tmp_path / "out").exists()
    assert main([*arguments, "--skip-bad"]) == 0
    assert capsys.readouterr().out.endswith("out: yolo, 1 image, 1 object, 1 file left out\n")
