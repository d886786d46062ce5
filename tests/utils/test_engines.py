"""Clusters: results as from this machine, repeated work, and what is found before work begins."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from sppdet.utils import engines
from sppdet.utils.engines import active_cluster, cluster
from sppdet.utils.errors import SppdetError
from sppdet.utils.parallel import parallel_map


@pytest.fixture(scope="module")
def address():
    """The address of a Dask cluster of two threads in this process."""
    distributed = pytest.importorskip("distributed", reason="needs the extra sppdet[dask]")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp", **options) as local:
        yield local.scheduler_address


def square(i: int) -> int:
    return i * i


def test_dask_keeps_the_order(address, tmp_path):
    with cluster("dask", address, 1, tmp_path):
        assert list(parallel_map(square, range(50), 1, "squares", portable=True)) == [i * i for i in range(50)]
        assert list(parallel_map(square, [], 1, "squares", portable=True)) == []
    assert active_cluster() is None
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_unit_reaches_the_caller(address, tmp_path):
    def refuse(i: int) -> int:
        raise SppdetError(f"{i}.jpg: cannot be read")

    with pytest.raises(SppdetError, match=r"^7\.jpg: cannot be read$"), cluster("dask", address, 1, tmp_path):
        list(parallel_map(refuse, [7], 1, "errors", portable=True))


def test_work_that_is_not_portable_stays_here(address, tmp_path):
    with cluster("dask", address, 1, tmp_path):
        assert list(parallel_map(lambda i: os.getpid(), [0, 1], 1, "here", threads=True)) == 2 * [os.getpid()]


def test_blocks_may_be_nested(address, tmp_path):
    with cluster("dask", address, 1, tmp_path):
        outer = active_cluster()
        with cluster("dask", address, 1, tmp_path):
            assert active_cluster() is outer
        assert active_cluster() is outer


def test_processes_are_no_cluster(tmp_path):
    with cluster("processes", None, 1, tmp_path):
        assert active_cluster() is None


def test_a_training_on_dask_has_the_files_of_one_on_this_machine(address, tmp_path, shapes_root):
    from tiny_run import TinyRun

    from sppdet.config import load
    from sppdet.training.front_door import run_training

    def digests(run: TinyRun) -> dict[str, str]:
        files = [*run.cache.rglob("*.npy"), *run.cache.rglob("*.b2nd"), *run.folder.glob("detections/*"),
                 run.folder / "model.safetensors"]  # fmt: skip
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    here, there = TinyRun(tmp_path / "here", shapes_root), TinyRun(tmp_path / "there", shapes_root)
    here.train()
    run_training(load(there.yaml, ["run.engine=dask", f"run.cluster={address}"]))
    assert digests(here) == digests(there)
    assert len(digests(here)) > 2 * 18


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_an_engine_that_is_not_installed_is_named(engine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"dask": "distributed"}.get(engine, engine), None)
    message = rf"^run.engine: {engine} is not installed; pip install 'sppdet\[{engine}\]'$"
    with pytest.raises(SppdetError, match=message):
        engines.require_engine(engine)
    with pytest.raises(SppdetError, match=message):
        ExitStack().enter_context(cluster(engine, None, 1, tmp_path))
    engines.require_engine("processes")


def test_a_cluster_that_does_not_answer_is_named(address, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_ANSWER", 0.5)
    with pytest.raises(SppdetError, match=r"^run.cluster: tcp://127.0.0.1:9 does not answer \(.*\); start it"):
        ExitStack().enter_context(cluster("dask", "tcp://127.0.0.1:9", 1, tmp_path))


def test_a_folder_that_workers_do_not_see_is_told_before_work(address, tmp_path, monkeypatch):
    def write_elsewhere(path: Path, write) -> None:
        write(path.parent.parent / path.name)

    monkeypatch.setattr(engines, "atomic_write", write_elsewhere)
    (tmp_path / "cache").mkdir()
    with pytest.raises(SppdetError, match=r"^run.cluster: the worker tcp:\S+ on .* does not see the files of .*cache;"):
        ExitStack().enter_context(cluster("dask", address, 1, tmp_path / "cache"))
