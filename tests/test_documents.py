"""The documents name files, configs, settings, commands and functions that exist, and their examples run."""

from __future__ import annotations

import ast
import importlib
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import sppdet
from sppdet.config import ClassifierConfig, keys
from sppdet.config.settings import RENAMED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"  # the pages of the site, which links do not leave
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md", *(ROOT / "docs").rglob("*.md")]
CONFIGS = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
FOLDERS = "sppdet|configs|scripts|benchmarks|docs|tests"
WRITTEN_BY_RUNS = re.compile(r"site/|runs/|cache/|detections/")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def code_in(text: str) -> list[str]:
    """Return what a document shows as code: fenced and indented blocks, line by line, and spans in backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4}.*$", text, re.M)
    return [line for block in fenced for line in block.splitlines()] + indented + re.findall(r"`([^`\n]+)`", text)


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {title.strip().replace(" ", "-") for title in titles}


@each_document
def test_links_lead_to_files_and_headings(path):
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name) if name else path
        inside = DOCS not in path.parents or DOCS in file.resolve().parents
        if not (inside and file.exists() and (not heading or heading in anchors(file.read_text(encoding="utf-8")))):
            broken.append(target)
    assert broken == []


@each_document
def test_no_blank_line_parts_the_rows_of_a_table(path):
    assert re.findall(r"\n\|.*\|\n\n(\|.*\|)\n(?!\|--)", path.read_text(encoding="utf-8")) == []


@each_document
def test_named_files_exist(path):
    text = " ".join(code_in(path.read_text(encoding="utf-8")))
    names = set(re.findall(rf"(?<![\w/.=])((?:{FOLDERS})/[\w./-]*\w(?:\.\w+)?/?)", text))
    assert {name for name in names if not (ROOT / name).exists() and not WRITTEN_BY_RUNS.search(name)} == set()


@each_document
def test_named_configs_exist(path):
    named = re.findall(r"\b((?:voc07|shapes)_[a-z0-9_]*[a-z0-9])\b", path.read_text(encoding="utf-8"))
    assert set(named) - CONFIGS == set()


def test_readme_names_every_config():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {name for name in CONFIGS if f"`{name}`" not in text} == set()


@each_document
def test_named_settings_exist(path):
    """A name such as ``svm.positive_overlap`` whose section is one of the config must be a setting."""
    known = {*keys(), *keys(ClassifierConfig)}
    sections = {key.split(".")[0] for key in known if "." in key}
    named = set()
    for code in code_in(path.read_text(encoding="utf-8")):
        named |= set(re.findall(r"(?<![\w./])([a-z_]+\.[A-Za-z_]+)(?![\w./(])", code))
    settings = {name for name in named if name.split(".")[0] in sections}
    old = {f"{section}.{name}" for section in sections for name in RENAMED}
    files = {name for name in settings if name.endswith((".py", ".json", ".md", ".txt"))}
    assert settings - known - old - files == set()


@each_document
def test_named_commands_and_options_exist(path, capsys):
    for code in code_in(path.read_text(encoding="utf-8")):
        called = re.search(r"(?:python -m sppdet\.|(?<![\w./])sppdet )(\w+)(?: (train|eval|predict)\b)?(.*)", code)
        if not called or called[1] == "COMMAND":
            continue
        command, subcommand, rest = called.groups()
        module = importlib.import_module(f"sppdet.{command}")
        with suppress(SystemExit):
            module.main([subcommand, "--help"] if subcommand else ["--help"])
        options = set(re.findall(r"(?<!\S)(--[a-z][\w-]*)", rest))
        text = capsys.readouterr().out
        assert {option for option in options if option not in text} == set(), code


@each_document
def test_named_targets_of_make_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    called = {
        name for code in code_in(path.read_text(encoding="utf-8")) for name in re.findall(r"^\s*make ([a-z-]+)", code)
    }
    assert called - targets == set()


@each_document
def test_python_examples_use_names_that_exist(path):
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        names = {
            node.attr
            for node in ast.walk(ast.parse(block))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sppdet"
        }
        assert {name for name in names if not hasattr(sppdet, name)} == set()


def test_api_page_shows_every_public_name():
    text = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: sppdet\.(\w+)$", text, re.M))
    assert shown == {name for name in sppdet.__all__ if not name.startswith("_")}


def test_site_has_every_page():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text.split("\nmarkdown_extensions:")[0])["nav"]

    def files(entry) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        return set().union(*map(files, entry.values() if isinstance(entry, dict) else entry))

    assert files(nav) == pages


def test_readme_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 140
    assert len(text.split()) <= 1250


def test_the_parts_work_as_shown():
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["boxes"].shape[1] == 4 and names["vectors"].shape == (2, 50, 8) and names["whole"].shape == (1, 400)
    np.testing.assert_array_equal(names["with_gradients"], torch.from_numpy(names["vectors"]))
    assert ((names["scores"] > 0) == (names["labels"] > 0)).mean() > 0.9
    assert names["kept"][0] == 0 and len(names["kept"]) < len(names["boxes"])


def test_configs_use_the_new_names_of_settings():
    for path in (ROOT / "configs").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert [name for name in RENAMED if name in text] == [], path.name


@each_document
def test_no_folder_outside_of_the_project_is_named(path):
    assert "../shared" not in path.read_text(encoding="utf-8")
