"""``sppdet detect`` as its users call it, with a tiny detector of random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from sppdet.cli.detect import default_model, main
from sppdet.config.settings import DetectionSettings
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.backbone import Backbone
from sppdet.ops.products import Products
from sppdet.proposals.search import SelectiveSearch

CLASSES = ("cat", "dog", "ünïcode 🐶")


@pytest.fixture(scope="module")
def detector():
    backbone = Backbone.create("small", "random", device="cpu", precision="float32", engine="auto")
    features = PyramidFeatures(
        backbone.grid, backbone.channels, scales=(96,), max_side=300, target=96, shrink=6.5, levels=(2, 1)
    )
    random = np.random.default_rng(0)
    weight = random.normal(size=(3, features.dimension)).astype(np.float32)
    search = SelectiveSearch(max_side=100, min_size=10)
    # Whatever the weights are, the margins of the test image's windows go from -3 to 1, 0.9 and 0.8.
    image = np.asarray(random_image())
    maps = [backbone(image, factor) for factor in features.factors(120, 90)]
    windows = features.windows(search(image), (120, 90), maps)
    raw, _ = features.products(maps, windows, Products(weight))
    best = np.array([1, 0.9, 0.8], np.float32)
    scale = (best + 3) / (raw.max(axis=0) - raw.min(axis=0))
    move = random.normal(scale=0.01, size=(3, 4, features.dimension)).astype(np.float32)
    return Detector(
        classes=CLASSES,
        backbone=backbone,
        features=features,
        search=search,
        classifier=LinearSVMs(weight * scale[:, None], best - raw.max(axis=0) * scale),
        regressors=BoxRegressors(move, np.zeros((3, 4), np.float32)),
        detection=DetectionSettings(),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch, detector):
    """An empty working folder with one finished run, ``runs/x``."""
    monkeypatch.chdir(tmp_path)
    detector.save("runs/x")
    (tmp_path / "runs/x/metrics.json").write_text("{}")
    return tmp_path


def random_image(seed=0, width=120, height=90):
    """Coloured rectangles on noise."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 60, (height, width, 3), np.uint8)
    for _ in range(5):
        x, y = random.integers(0, width - 30), random.integers(0, height - 30)
        image[y : y + 30, x : x + 30] = random.integers(60, 256, 3)
    return Image.fromarray(image)


def save(path, image=None, **options):
    path.parent.mkdir(exist_ok=True)
    (image or random_image()).save(path, **options)
    return str(path)


def document(capsys, *arguments, status=0):
    """What --json prints."""
    assert main([*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


# Output


def test_report_of_an_image(folder, capsys, detector):
    save(folder / "a.png")
    assert main(["a.png", "--max-detections", "2", "--threshold", "0"]) == 0
    best = detector.predict("a.png").to_list()[:2]
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"a.png: 2 found -> {os.path.join('detections', 'a.jpg')}"
    corners = [" ".join(f"{edge:.0f}" for edge in one["box"]) for one in best]
    assert lines == [f"  {one['label']} {one['score']:.2f} {box}" for one, box in zip(best, corners)]
    assert len(lines) == 2


def test_the_best_detection_below_the_threshold_is_named_if_none_is_above(folder, capsys, detector):
    save(folder / "a.png")
    assert main(["a.png", "--threshold", "1e6", "--no-pictures"]) == 0
    best = detector.predict("a.png").to_list()[0]
    nearest = f"(nearest: {best['label']} {best['score']:.2f}; --threshold lowers it)"
    assert capsys.readouterr().out == f"a.png: nothing above the threshold {nearest}\n"
    (entry,) = document(capsys, "a.png", "--threshold", "1e6")["images"]
    assert entry["detections"] == [] and entry["nearest"] == best
    assert not (folder / "detections").exists()


def test_json_is_one_document_with_the_detections_of_predict(folder, capsys, detector):
    paths = [save(folder / f"{seed}.png", random_image(seed)) for seed in range(2)]
    printed = document(capsys, *paths)
    expected = [detector.predict(path).to_list() for path in paths]
    assert expected[0]
    assert printed == {
        "model": os.path.join("runs", "x"),
        "classes": list(CLASSES),
        "threshold": -0.5,
        "images": [
            {"path": path, "width": 120, "height": 90, "detections": rows} for path, rows in zip(paths, expected)
        ],
    }


def test_json_draws_only_into_a_folder_that_is_named(folder, capsys):
    save(folder / "a.png")
    document(capsys, "a.png")
    assert not (folder / "detections").exists()
    document(capsys, "a.png", "--output", "b/c")
    assert (folder / "b/c/a.jpg").exists()


def test_threshold_is_the_lowest_margin_shown(folder, capsys, detector):
    """Also below the ``min_margin`` that the model was saved with."""
    save(folder / "a.png")
    low, high = (
        [one["score"] for one in document(capsys, "a.png", "--threshold", margin)["images"][0]["detections"]]
        for margin in ("-9", "0.5")
    )
    scores = detector.predict("a.png", threshold=None).scores
    assert min(low) < detector.detection.min_margin < scores.min()
    assert len(low) > len(scores) > len(high) == (scores > 0.5).sum() > 0


@pytest.mark.parametrize(
    "option",
    [
        ["--threshold", "nan"],
        ["--threshold", "x"],
        ["--max-detections", "0"],
        ["--output", "d", "--no-pictures"],
    ],
)
def test_options_without_sense_are_named(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["a.png", *option])
    assert option[0] in capsys.readouterr().err


def test_options_may_stand_between_images(folder, capsys):
    for name in "ab":
        save(folder / f"{name}.png")
    assert len(document(capsys, "a.png", "--max-detections", "1", "b.png")["images"]) == 2


# Drawings


def test_a_drawing_is_a_jpeg_of_the_image_with_its_detections(folder, detector):
    save(folder / "a.png")
    main(["a.png", "--threshold", "0"])
    with Image.open(folder / "detections/a.jpg") as drawn:
        assert drawn.format == "JPEG" and drawn.size == (120, 90)
        pixels = np.asarray(drawn, float)
    expected = detector.predict("a.png", threshold=0).draw("a.png")
    error = [np.abs(pixels - image).mean() for image in (expected, np.asarray(random_image()))]
    assert 2 * error[0] < error[1]  # what JPEG loses of the noise, and what was drawn
    assert os.listdir("detections") == ["a.jpg"]


def test_another_file_in_the_folder_of_an_image_is_never_overwritten(folder, capsys):
    for name in ("a.png", "a.jpg"):
        save(folder / "photos" / name)
    before = (folder / "photos/a.jpg").read_bytes()
    assert main(["photos/a.png", "--output", "photos"]) == 2
    assert "may be an image of yours" in capsys.readouterr().err
    assert (folder / "photos/a.jpg").read_bytes() == before


def test_a_link_that_leads_nowhere_does_not_stop_the_others(folder, capsys):
    save(folder / "photos/a.jpg")
    os.symlink("nowhere.jpg", "photos/link.jpg")
    assert main(["photos", "--output", "out"]) == 2
    assert (folder / "out/a.jpg").exists() and "link.jpg" in capsys.readouterr().err


def test_an_image_is_never_overwritten_by_its_copy(folder, capsys):
    save(folder / "photos/a.jpg")
    before = (folder / "photos/a.jpg").read_bytes()
    os.symlink("photos", "link")
    for output in ("photos", "link"):
        assert main(["photos", "--output", output]) == 2
        assert "would be overwritten" in capsys.readouterr().err
    assert (folder / "photos/a.jpg").read_bytes() == before


def test_output_that_is_a_file(folder, capsys):
    save(folder / "a.png")
    assert main(["a.png", "--output", "a.png"]) == 2
    assert capsys.readouterr().err.startswith("error: a.png: cannot be made")


# Arguments and kinds of images


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("none.jpg", "none.jpg: no such image or folder"),
        ("none/*.jpg", "none/*.jpg: no image matches this pattern"),
        ("", "'': no such image"),
        ("empty", "empty: no images in this folder"),
    ],
)
def test_arguments_without_an_image(folder, capsys, argument, message):
    save(folder / "a.png")
    (folder / "empty").mkdir()
    assert main(["a.png", argument]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.png", random_image().convert("L")),
        ("transparent.png", random_image().convert("RGBA")),
        ("palette.gif", random_image().convert("P")),
        ("deep.png", Image.fromarray(np.asarray(random_image().convert("L"), np.uint16) * 257)),
        ("flat.png", random_image(height=31).crop((0, 0, 120, 1))),
        ("dot.png", Image.new("RGB", (1, 1))),
        ("wide.png", random_image(width=3000, height=31).crop((0, 0, 3000, 8))),
        ("plain.png", Image.new("RGB", (120, 90), "grey")),
    ],
)
def test_every_kind_of_image(folder, capsys, name, image):
    save(folder / name, image)
    (entry,) = document(capsys, name, "--output", "out")["images"]
    assert (entry["width"], entry["height"]) == image.size
    with Image.open((folder / "out" / name).with_suffix(".jpg")) as drawn:
        assert drawn.size == image.size
    for one in entry["detections"]:
        x1, y1, x2, y2 = one["box"]
        assert 0 <= x1 < x2 <= image.size[0] and 0 <= y1 < y2 <= image.size[1]


def test_boxes_are_those_of_the_image_as_displayed(folder, capsys):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # viewers turn it clockwise
    save(folder / "turned.png", random_image().transpose(Image.Transpose.ROTATE_90), exif=turned)
    save(folder / "upright.png")
    turned, upright = document(capsys, "turned.png", "upright.png")["images"]
    assert turned | {"path": ""} == upright | {"path": ""}
    assert upright["detections"]


# Several images


def test_a_broken_image_does_not_stop_the_others(folder, capsys):
    save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:200])
    save(folder / "c.png")
    assert main(["a.png", "b.png", "c.png"]) == 2
    printed = capsys.readouterr()
    heads = [line.split(":")[0] for line in printed.out.splitlines() if not line.startswith("  ")]
    assert heads == ["a.png", "c.png"]
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: b.png: cannot be read")
    assert sorted(os.listdir("detections")) == ["a.jpg", "c.jpg"]


def test_a_broken_image_in_json(folder, capsys):
    save(folder / "a.png")
    (folder / "b.png").write_text("no image")
    good, bad = document(capsys, "a.png", "b.png", status=2)["images"]
    assert good["detections"]
    assert bad == {
        "path": "b.png",
        "error": "b.png: is no image Pillow knows; replace it by a JPEG or PNG file",
    }


def test_many_images_come_in_order_and_as_one_by_one(folder, capsys, detector):
    """More than three are processed at the same time."""
    for seed in range(6):
        save(folder / f"photos/{seed}.png", random_image(seed))
    (folder / "photos/3.png").write_text("no image")
    entries = document(capsys, "photos", status=2)["images"]
    assert [entry["path"] for entry in entries] == [os.path.join("photos", f"{seed}.png") for seed in range(6)]
    assert "error" in entries.pop(3)
    for entry in entries:
        expected = detector.predict(entry["path"]).to_list()
        assert [one["label"] for one in entry["detections"]] == [one["label"] for one in expected]
        for one, other in zip(entry["detections"], expected):
            # Another number of threads adds up in another order.
            assert one["score"] == pytest.approx(other["score"], abs=1e-3)
            assert one["box"] == pytest.approx(other["box"], abs=0.1)


def test_a_reader_that_has_read_enough_does_not_stop_the_drawing(folder, monkeypatch):
    """As in `sppdet detect ... | head -1`."""
    for name in "ab":
        save(folder / f"{name}.png")
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert main(["*.png"]) == 0
    assert sorted(os.listdir("detections")) == ["a.jpg", "b.jpg"]


def test_a_drawing_that_cannot_be_written_is_named(folder, capsys):
    save(folder / "a.png")
    (folder / "detections/a.jpg").mkdir(parents=True)
    assert main(["a.png"]) == 2
    assert f"error: a.png: {os.path.join('detections', 'a.jpg')} cannot be written" in capsys.readouterr().err


# The model


def test_the_newest_finished_run_is_taken_and_named(folder, capsys, detector):
    save(folder / "a.png")
    detector.save("runs/y")
    (folder / "runs/y/metrics.json").write_text("{}")
    detector.save("runs/unfinished")
    (folder / "runs/empty").mkdir()
    (folder / "runs/empty/metrics.json").write_text("{}")
    os.utime(folder / "runs/x/metrics.json", (1, 1))
    assert default_model()[0].name == "y"
    os.utime(folder / "runs/x/metrics.json", (4e9, 4e9))
    assert default_model()[0].name == "x"
    main(["a.png"])
    assert f"model: {os.path.join('runs', 'x')}" in capsys.readouterr().err


def test_without_a_run_the_detector_of_the_package_is_taken_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    assert main(["a.png", "--json"]) == 0
    printed = capsys.readouterr()
    assert "VOC's 20 classes that comes with sppdet" in printed.err
    assert len(json.loads(printed.out)["classes"]) == 20


def test_a_folder_without_a_model(folder, capsys):
    save(folder / "a.png")
    assert main(["a.png", "--model", "runs/none"]) == 2
    assert capsys.readouterr().err.startswith("error: runs/none: no finished model")


def test_an_unknown_device(folder, capsys):
    save(folder / "a.png")
    assert main(["a.png", "--device", "abacus"]) == 2
    assert "'abacus' is unknown" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    command = [sys.executable, "-X", "importtime", "-m", "sppdet.detect", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "numpy", "PIL"}
    assert "probability that the detection is right" in result.stdout and "pixel edges" in result.stdout


def test_of_two_classes_in_one_place_the_better_is_shown_unless_all_are_asked_for(folder, capsys, detector):
    save(folder / "a.png")
    every = detector.predict("a.png")
    shown = every.one_per_place()
    assert 0 < len(shown) < len(every)
    for options, expected in (([], shown), (["--all-classes"], every)):
        assert main(["a.png", "--no-pictures", *options]) == 0
        assert f"a.png: {len(expected)} found" in capsys.readouterr().out


def test_one_image_needs_neither_torch_nor_scipy(folder):
    random_image().save("a.png")
    main(["a.png", "--no-pictures"])  # writes the network into the cache, if it is not there
    code = (
        "import sys; from sppdet.cli.detect import main; main(['a.png', '--model', 'runs/x']); "
        "print(sorted({'torch', 'torchvision', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert output.stdout.splitlines()[-1] == "[]" and "detections" in output.stdout


def test_detections_survive_a_drawing_that_fails(folder, capsys, monkeypatch):
    save(folder / "a.png")
    monkeypatch.setattr("sppdet.cli.drawings._JPEG_SIDE", 10)
    assert main(["a.png", "--threshold", "-100", "--max-detections", "1"]) == 2
    printed = capsys.readouterr()
    assert "a.png: 1 found\n" in printed.out
    assert "error: a.png: not drawn, as JPEG ends at 10 pixels per side and the image has more" in printed.err
    assert main(["a.png", "--json", "--output", "out", "--threshold", "-100"]) == 2
    (entry,) = json.loads(capsys.readouterr().out)["images"]
    assert entry["detections"] and "not drawn" in entry["error"]


def test_files_of_a_folder_that_are_not_taken_are_told(folder, capsys):
    save(folder / "photos" / "a.png")
    for name in ("b.heic", "c.heic", "d.psd"):
        (folder / "photos" / name).touch()
    assert main(["photos", "--no-pictures"]) == 0
    assert "warning: photos: passed over 2 .heic, 1 .psd; name files" in capsys.readouterr().err


# Other tools


def test_json_in_the_form_of_transformers(folder, capsys, detector):
    paths = [save(folder / f"{seed}.png", random_image(seed)) for seed in range(2)]
    assert main([*paths, "--as", "transformers"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps([detector.predict(path).to_transformers() for path in paths]))
    assert printed[0]


def test_json_in_the_form_of_megadetector(folder, capsys, detector):
    path = save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    assert main([path, "b.png", "--as", "megadetector"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["info"]["detector"] == os.path.join("runs", "x")
    assert printed["detection_categories"] == {"1": "cat", "2": "dog", "3": "ünïcode 🐶"}
    assert printed["images"] == [
        {"file": path, "detections": detector.predict(path).to_megadetector((120, 90))},
        {"file": "b.png", "detections": None, "failure": "image access failure"},
    ]
    assert printed["images"][0]["detections"] and not (folder / "detections").exists()
