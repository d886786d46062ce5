"""Versions and the description of the machine."""

from __future__ import annotations

import importlib.metadata
import platform
from types import SimpleNamespace

import torch

from sppdet.utils import environment
from sppdet.utils.environment import free_memory_gb, machine, versions


def test_versions_are_those_that_run():
    assert versions()["python"] == platform.python_version()
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_package_that_pip_did_not_install_is_named_as_such(monkeypatch):
    def version(name: str) -> str:
        if name == "opencv-contrib-python":
            raise importlib.metadata.PackageNotFoundError(name)
        return f"1.0 of {name}"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions()["opencv-contrib-python"] == "not installed by pip"
    assert versions()["numpy"] == "1.0 of numpy"


def test_the_machine_is_one_sentence_of_hardware_and_one_of_versions(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    monkeypatch.setattr(environment, "Path", lambda name: cpuinfo)
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * 2**30))
    monkeypatch.setattr(environment, "versions", lambda: {"python": "3.12", "torch": "2.5"})
    for cores, text in ((1, "1 core"), (2, "2 cores")):
        monkeypatch.setattr(environment.joblib, "cpu_count", lambda cores=cores: cores)
        assert machine() == f"Some CPU @ 2 GHz, {text}, 8 GB of memory. python 3.12, torch 2.5."


def test_free_memory_is_that_of_the_machine_or_of_the_container_if_that_is_less(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: SimpleNamespace(available=8e9))
    monkeypatch.setattr(environment, "_CGROUP", tmp_path)
    assert free_memory_gb() == 8  # no container
    (tmp_path / "memory.current").write_text("1000000000\n")
    for limit, free in (("max", 8), ("3000000000", 2), ("16000000000", 8), ("500000000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert free_memory_gb() == free, limit
