"""``sppdet check``: what it prints, and its exit status."""

from __future__ import annotations

from labelled import voc_xml, write, write_image

from sppdet.cli.check import main


def test_a_folder_is_described_and_left_alone(tmp_path, capsys):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", voc_xml(("cat", 11, 6, 60, 15)))
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}: voc, 1 image\n1 object of 1 class\n  cat: 1 object in 1 image\n")
    assert "boxes that reach beyond their image, clipped: 1\n  a.xml: object 1 (cat) (xmin=11" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.xml"]


def test_problems_that_stop_a_training_are_the_exit_status(tmp_path, capsys):
    for name in "ab":
        write_image(tmp_path / f"{name}.jpg", seed=ord(name))
        write(tmp_path / f"{name}.xml", voc_xml(("cat", 11, 6, 20, 15), filename=f"{name}.jpg"))
    write(tmp_path / "b.xml", "<annotation>")
    assert main([str(tmp_path)]) == 2
    assert "annotations that cannot be read: 1\n  b.xml: is not well-formed XML" in capsys.readouterr().out


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'none'}: no such folder; give a folder of images and annotations\n"
    )
