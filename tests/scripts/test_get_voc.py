"""scripts/get_voc.py: what counts as a complete VOC2007, and the messages of failed downloads."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torchvision.datasets

from sppdet.utils.errors import SppdetError

SCRIPT = Path(__file__).parents[2] / "scripts" / "get_voc.py"
SPEC = importlib.util.spec_from_file_location("get_voc", SCRIPT)
get_voc = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(get_voc)

# A VOC2007 of three images.
IDS = {"trainval": ["000005", "000007"], "test": ["000001"]}
COUNTS = {"trainval": 2, "test": 1}


def place(root: Path, split: str) -> None:
    """Lay out the images, annotations and list of one split as the tar does."""
    voc = root / "VOCdevkit" / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (voc / name).mkdir(parents=True, exist_ok=True)
    (voc / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in IDS[split]))
    for name in IDS[split]:
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(b"image")
        (voc / "Annotations" / f"{name}.xml").write_text("<annotation/>")


@pytest.fixture
def voc(tmp_path) -> Path:
    """The ``VOC2007`` folder of a complete tree."""
    for split in IDS:
        place(tmp_path, split)
    return tmp_path / "VOCdevkit" / "VOC2007"


@pytest.fixture
def server(monkeypatch):
    """A stand-in for torchvision's download: ``asked`` lists the splits, ``broken`` maps a split to its error."""

    class Server:
        asked: list[str]
        broken: dict[str, Exception]

    def download(root, year, image_set, download):
        assert year == "2007" and download
        Server.asked.append(image_set)
        if image_set in Server.broken:
            raise Server.broken[image_set]
        place(Path(root), image_set)

    Server.asked, Server.broken = [], {}
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", download)
    return Server


def pack(tar: Path) -> None:
    """Write a whole tar of one small file."""
    with tarfile.open(tar, "w") as archive:
        member = tarfile.TarInfo("VOCdevkit/VOC2007/JPEGImages/000001.jpg")
        member.size = 20_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))


def test_complete_tree_is_summed_up_in_one_line(voc, tmp_path):
    assert get_voc.check(tmp_path, COUNTS) == (
        f"VOC2007 in {voc}: trainval 2 ids, test 1 ids, an image and an annotation for each"
    )


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda voc: (voc / "JPEGImages/000007.jpg").unlink(), "000007.jpg"),
        (lambda voc: (voc / "Annotations/000001.xml").unlink(), "000001.xml"),
        (lambda voc: (voc / "JPEGImages/000005.jpg").write_bytes(b""), "000005.jpg"),
        (lambda voc: (voc / "ImageSets/Main/test.txt").unlink(), "test.txt is missing"),
        (lambda voc: (voc / "ImageSets/Main/trainval.txt").write_text("000005\n"), "lists 1 ids, not 2"),
    ],
    ids=["no image", "no annotation", "empty image", "no list", "short list"],
)
def test_a_missing_or_empty_file_is_named(voc, tmp_path, spoil, words):
    spoil(voc)
    with pytest.raises(SppdetError) as caught:
        get_voc.check(tmp_path, COUNTS)
    message = str(caught.value)
    assert words in message and "data/README.md" in message and "\n" not in message


def test_published_counts_are_what_main_checks(voc, tmp_path, capsys):
    assert get_voc.main(["--root", str(tmp_path), "--check-only"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert "lists 2 ids, not 5011" in err and "lists 1 ids, not 4952" in err


def test_main_on_complete_data_downloads_nothing(voc, tmp_path, server, monkeypatch, capsys):
    for split, count in COUNTS.items():
        monkeypatch.setitem(get_voc.PUBLISHED, split, count)
    assert get_voc.main(["--root", str(tmp_path)]) == 0
    assert server.asked == [] and capsys.readouterr().out.count("\n") == 1


def test_check_only_downloads_nothing(tmp_path, server):
    assert get_voc.main(["--root", str(tmp_path), "--check-only"]) == 2
    assert server.asked == [] and list(tmp_path.iterdir()) == []


def test_fetch_asks_only_for_what_is_missing(tmp_path, server):
    place(tmp_path, "trainval")
    get_voc.fetch(tmp_path, COUNTS)
    assert server.asked == ["test"]
    assert get_voc.faults(tmp_path, COUNTS) == {}


def test_server_down_is_one_line_and_leaves_nothing(tmp_path, server, capsys):
    server.broken["trainval"] = URLError("Connection\nrefused")
    assert get_voc.main(["--root", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Connection refused" in err and "data/README.md" in err
    assert f"{tmp_path}/VOCdevkit/VOC2007/{{Annotations,JPEGImages,ImageSets/Main}}" in err
    assert list(tmp_path.iterdir()) == []  # no mark: images placed by hand later count as complete


def test_failure_after_the_first_split_leaves_the_second_to_download(tmp_path, server):
    server.broken["test"] = RuntimeError("File not found or corrupted.")
    with pytest.raises(SppdetError, match="VOC2007 test failed"):
        get_voc.fetch(tmp_path, COUNTS)
    assert list(get_voc.faults(tmp_path, COUNTS)) == ["test"]
    assert get_voc.mark_of(tmp_path).read_text() == "test\n"  # so that `make train-voc` downloads it

    server.broken.clear()
    get_voc.fetch(tmp_path, COUNTS)
    assert server.asked == ["trainval", "test", "test"]
    assert not get_voc.mark_of(tmp_path).exists() and get_voc.faults(tmp_path, COUNTS) == {}


def test_interrupted_unpacking_is_not_taken_for_complete(voc, tmp_path, server):
    """Every file exists when the interrupt comes, but the last may be cut off: the split is downloaded again."""
    pack(tmp_path / get_voc.TARS["test"])
    get_voc.set_mark(tmp_path, ["test"])
    assert "did not finish" in get_voc.faults(tmp_path, COUNTS)["test"]
    get_voc.fetch(tmp_path, COUNTS)
    assert server.asked == ["test"]
    assert get_voc.faults(tmp_path, COUNTS) == {}


def test_images_placed_by_hand_after_a_failed_download_are_used(tmp_path, server):
    server.broken["test"] = URLError("timed out")
    with pytest.raises(SppdetError):
        get_voc.fetch(tmp_path, COUNTS)
    place(tmp_path, "test")
    get_voc.fetch(tmp_path, COUNTS)
    assert server.asked == ["trainval", "test"]
    assert not get_voc.mark_of(tmp_path).exists()


def test_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path, server, capsys):
    (tmp_path / "data").write_text("a file where the folder should be")
    assert get_voc.main(["--root", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and server.asked == []


def test_broken_tar_is_named_and_a_whole_one_is_not(tmp_path, server):
    whole, cut = tmp_path / get_voc.TARS["trainval"], tmp_path / get_voc.TARS["test"]
    pack(whole)
    cut.write_bytes(whole.read_bytes()[:5000])
    assert get_voc.broken_tars(tmp_path) == [cut]

    server.broken["trainval"] = ConnectionResetError()
    with pytest.raises(SppdetError) as caught:
        get_voc.fetch(tmp_path, COUNTS)
    assert f"broken {cut}" in str(caught.value) and str(whole) not in str(caught.value)
