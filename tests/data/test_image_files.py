"""Which images a command is given."""

from __future__ import annotations

from sppdet.data.image_files import find_images


def test_folders_and_patterns_give_their_images_sorted_and_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/b.png", "d/a.jpg", "d/._a.jpg", "d/notes.txt", "d/e/c.png", "f[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(["d"]) == ["d/a.jpg", "d/b.png"]
    assert find_images(["d/*.png", "d"]) == ["d/b.png", "d/a.jpg"]
    assert find_images(["d/**/*.png"]) == ["d/b.png", "d/e/c.png"]
    assert find_images(["f[1].png"]) == ["f[1].png"]
    assert find_images(["d/notes.txt"]) == ["d/notes.txt"]
