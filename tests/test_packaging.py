"""What an installation and the Makefile promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

from sppdet.config import PRESETS
from sppdet.detection.shipped import shipped_model

ROOT = Path(__file__).parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> str:
    """What ``make`` prints."""
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_folder_of_modules_is_a_package():
    """setuptools leaves a folder without ``__init__.py`` out of the wheel, silently."""
    folders = {path.parent for path in (ROOT / "sppdet").rglob("*.py")}
    assert ROOT / "sppdet" / "data" in folders
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_presets_and_the_detector_are_in_the_wheel(tmp_path):
    """They are data, which setuptools packs only where pyproject.toml names them."""
    shutil.copytree(ROOT / "sppdet", tmp_path / "sppdet", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=True)
    with ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
    assert {f"sppdet/config/presets/{name}.yaml" for name in PRESETS} <= names
    assert {f"sppdet/detection/voc07/{path.name}" for path in shipped_model().iterdir()} <= names


def test_command_is_callable():
    (command,) = metadata.distribution("sppdet").entry_points.select(group="console_scripts", name="sppdet")
    assert command.value == "sppdet.__main__:main"
    assert callable(command.load())


def test_every_dependency_is_pinned():
    """A requirement that constraints.txt forgets would be installed in whatever version is newest."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in pins}
    required = {re.match(r"[\w.-]+", line).group() for line in metadata.requires("sppdet")}
    assert "torch" in required and required <= pinned


def test_pins_name_versions_only():
    """No paths, no hosts: the pins hold wherever packages come from."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pin = re.compile(r"[a-z0-9-]+==[0-9][\w.]*( ; [^/@]+)?")
    assert [line for line in pins if not pin.fullmatch(line)] == []


def test_one_opencv():
    """Each OpenCV wheel overwrites the ``cv2`` of the others; only contrib holds selective search."""
    names = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    assert {name for name in names if name.startswith("opencv")} == {"opencv-contrib-python"}


@needs_make
def test_help_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M).group(1)
    assert re.findall(r"^  make (\S+)", make(), re.M) == targets.split()


@needs_make
def test_named_voc_root_is_never_downloaded_to(tmp_path):
    commands = make("-n", "train-voc", f"VOC_ROOT={tmp_path / 'absent'}", f"VENV={tmp_path / 'venv'}")
    assert f"data.root={tmp_path / 'absent'}" in commands
    assert "get_voc" not in commands


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_of_openmp_wait_asleep_unless_the_user_says_otherwise(given, expected):
    """The variable has no effect once torch has loaded OpenMP."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_WAIT"))}
    code = "import sppdet, os, sys; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True).stdout
    assert output == f"False {expected}\n"
