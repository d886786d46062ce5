"""The report as a page: its content, names that would break it, and its behaviour in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import ELSEWHERE, HERE, THERE, dataset_of, detections_of, image_of
from PIL import Image

from sppdet.config import Config, override
from sppdet.evaluation.in_memory import evaluate_detections
from sppdet.evaluation.report import page as report_module
from sppdet.evaluation.report.page import report_page, write_report
from sppdet.evaluation.run import PERHAPS_MISSED, LastEvaluation
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import write_json

HOSTILE = ("<script>window.hacked = 1</script>", '猫 😀 & "co" $x_1$ {{ 7 * 7 }} \' </script>', "dog")
SETTINGS = override(Config(), ["data.root=gone"])
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def evaluation_of(folder: Path, images: int = 12, readable: bool = True) -> LastEvaluation:
    """Return an evaluation with one object of each class per image, most of them found, and false alarms."""
    rng = np.random.default_rng(0)
    samples, detections = [], []
    for i in range(images):
        path = folder / f"{i}.jpg"
        if readable:
            Image.fromarray(rng.integers(0, 255, (480, 640, 3), np.uint8)).save(path)
        samples.append(image_of(f"image <{i}>", (HERE, 0), (THERE, 1), (ELSEWHERE, 2), path=str(path)))
        rows = [(HERE, 0, 1 + rng.random()), (ELSEWHERE, 0, rng.random()), ((300, 300, 400, 400), 1, 2 * rng.random())]
        rows += [(THERE, 1, 1 + rng.random())] * (i % 3 > 0)
        detections.append(detections_of(*rows))
    dataset = dataset_of(*samples, classes=HOSTILE)
    metrics = evaluate_detections(dataset, detections) | {
        "proposals": {"windows": 2000.0, "recall@0.5": 0.95, "recall@0.7": 0.7, "average_best_overlap": 0.8}
    }
    write_json(folder / "metrics.json", metrics)
    return LastEvaluation(folder, SETTINGS, dataset, detections, metrics)


@pytest.fixture(scope="module")
def last(tmp_path_factory) -> LastEvaluation:
    return evaluation_of(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(last) -> str:
    return report_page(last)


def text_of(page: str) -> str:
    """Return the text of a page without its elements, on one line."""
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_page_has_the_figures(last, page):
    text = text_of(page)
    assert f"mAP {last.metrics['mAP']:.1f}" in text and f"COCO AP {last.metrics['coco']['AP']:.1f}" in text
    assert "measured on 12 images with 36 objects ( test ); 3 classes" in text
    assert "images that cannot be read any more ( trainval )" in text  # there is no data set in this folder
    assert "all together 36 20 16 24 45.5% 55.6% 50.0%" in text  # at -0.5, where everything is shown
    assert "Perhaps an object without a label" in text and "Missed objects 8 of 12" in text  # at most 8 of one class


def test_a_learning_curve_is_drawn_or_said_how_to_get(last, page):
    assert f"sppdet report {last.folder} --learning-curve" in text_of(page)
    points = [(3, [10.0, 14.0]), (6, [20.0, 24.0]), (12, [30.0])]
    curve = [{"images": images, "mAP": values, "AP75": values} for images, values in points]
    with_curve = LastEvaluation(
        last.folder, last.config, last.dataset, last.detections, last.metrics | {"learning_curve": curve}
    )
    text = text_of(report_page(with_curve))
    assert "From 6 to 12 training images mAP rose by 8.0 points, from 22.0 to 30.0." in text
    assert "3 2 12.0 ± 2.8 12.0 ± 2.8 6 2 22.0 ± 2.8 22.0 ± 2.8 12 1 30.0 30.0" in text
    trained_network = override(last.config, ["end_to_end.enabled=true"])
    other = LastEvaluation(last.folder, trained_network, last.dataset, last.detections, last.metrics)
    assert "More images?" not in text_of(report_page(other))


def test_names_are_text_and_nothing_else(page):
    assert page.count("<script") == 2 and page.count("</script>") == 2  # the data and the program of the page
    assert all(name in text_of(page) for name in ("<script>window.hacked = 1</script>", "{{ 7 * 7 }}", "image <3>"))
    assert "猫 😀" in page


def test_the_page_refers_to_nothing_outside(page):
    assert "http:" not in page and "https:" not in page
    assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) <= {
        "data:",
        "#t-me",
        *re.findall(r'href="(#[\w-]{4})', page),
    }
    assert "default-src 'none'" in page


def test_images_that_are_gone_do_not_cost_the_report(tmp_path):
    page = report_page(evaluation_of(tmp_path, images=3, readable=False))
    assert "cannot be read: " in page and "data:image/jpeg" not in page


@pytest.mark.parametrize("empty", ["no objects", "no detections"])
def test_a_page_without_objects_or_detections(tmp_path, empty):
    dataset = dataset_of(image_of("a", *[(HERE, 0)] * (empty == "no detections")))
    detections = [detections_of(*[(HERE, 0, 1.0)] * (empty == "no objects"))]
    metrics = evaluate_detections(dataset, detections) | {
        "proposals": {"windows": 0.0, "recall@0.5": 0.0, "recall@0.7": 0.0}
    }
    write_json(tmp_path / "metrics.json", metrics)
    text = text_of(report_page(LastEvaluation(tmp_path, SETTINGS, dataset, detections, metrics)))
    assert "No test object was found." in text and "NaN" not in text and "None" not in text


def test_detections_of_another_evaluation_are_refused(last):
    other = LastEvaluation(last.folder, last.config, last.dataset, [d[:1] for d in last.detections], last.metrics)
    with pytest.raises(SppdetError, match="the detections have mAP"):
        report_page(other)


def test_a_run_that_was_not_evaluated_is_named(tmp_path):
    with pytest.raises(SppdetError, match=r"metrics\.json: does not exist"):
        write_report(tmp_path)


PROBE = """<script>
window.problems = [];
window.addEventListener("error", event => problems.push(event.message));
document.addEventListener("securitypolicyviolation", event => problems.push(event.blockedURI));
</script>"""
CHECK = """<script>
const seen = () => ({
  threshold: document.getElementById("threshold").value,
  total: [...document.querySelectorAll("#counts tfoot td")].map(cell => cell.textContent),
  line: document.querySelector("line.mark").getAttribute("x1"),
  point: document.querySelector("circle.mark").getAttribute("cx"),
});
const before = seen();
slider.value = data.thresholds.indexOf(1.5);
slider.dispatchEvent(new Event("input"));
const after = seen();
document.querySelector("button[data-threshold]").click();
const report = { before, after, back: seen(), problems, hacked: window.hacked ?? null,
  requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth };
document.title = JSON.stringify(report);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1100, 500])
def test_the_page_works_in_a_browser(last, page, tmp_path, width):
    path = tmp_path / "report.html"
    path.write_text(page.replace("<head>", "<head>" + PROBE).replace("</body>", CHECK + "</body>"), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", result.stdout, re.DOTALL).group(1)))
    assert seen["problems"] == [] and seen["requests"] == [] and seen["hacked"] is None and seen["overflow"] <= 0
    assert seen["before"] == seen["back"] and seen["before"]["threshold"] == "-0.50"
    assert seen["before"]["total"] == ["36", "20", "16", "24", "45.5%", "55.6%", "50.0%"]
    scores = [(d.scores >= 1.5, d.labels, d.xyxy[:, 0]) for d in last.detections]
    hits = sum(int((high & (((x == 0) & (k == 0)) | ((x == 100) & (k == 1)))).sum()) for high, k, x in scores)
    wrong = sum(int(high.sum()) for high, _, _ in scores) - hits
    assert seen["after"]["threshold"] == "1.50" and seen["after"]["total"][:4] == [
        "36",
        f"{hits}",
        f"{36 - hits}",
        f"{wrong}",
    ]
    assert seen["after"]["line"] != seen["before"]["line"] and seen["after"]["point"] != seen["before"]["point"]


def test_what_the_labels_of_training_images_perhaps_miss_is_shown_if_it_was_looked_for(last, page, monkeypatch):
    title = "in the training images"
    assert title not in page
    write_json(last.folder / PERHAPS_MISSED, {"perhaps_missed": [
        {"image": "image <3>", "class": HOSTILE[0], "box": [300.0, 300.0, 400.0, 400.0], "margin": 1.25}
    ]})  # fmt: skip
    monkeypatch.setattr(report_module, "_training_images", lambda last: (last.dataset, 0))
    text = text_of(report_page(last))
    assert title in text and f"{HOSTILE[0]} 1.25" in html.unescape(text)
    (last.folder / PERHAPS_MISSED).unlink()
