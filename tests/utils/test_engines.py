"""Clusters: results as from this machine, repeated work, and what is found before work begins."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from tiny_run import TinyRun

from sppdet.config import load
from sppdet.training.bank import BANK_FILE
from sppdet.training.front_door import run_training
from sppdet.utils import engines
from sppdet.utils.engines import _Work, active_cluster, cluster
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


def refusal() -> Callable[[int], int]:
    """Return a function that workers, which do not have this module, receive whole."""

    def refuse(i: int) -> int:
        raise SppdetError(f"{i}.jpg: cannot be read")

    return refuse


def test_an_error_of_a_unit_reaches_the_caller(address, tmp_path):
    with pytest.raises(SppdetError, match=r"^7\.jpg: cannot be read$"), cluster("dask", address, 1, tmp_path):
        list(parallel_map(refusal(), [7], 1, "errors", portable=True))


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


def without_room(item: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "maps/a.b2nd")


def test_the_full_disk_of_a_worker_is_not_told_as_a_lost_cluster(tmp_path):
    token = tmp_path / "token"
    token.write_text(token.name)
    with pytest.raises(SppdetError, match=r"^maps/a.b2nd: No space left on device$"):
        _Work(pickle.dumps(without_room), token)(1)


STAGES = ("detection.context=1", "calibration.folds=2", "svm.bank=100", "svm.positive_overlap=0.8")


def digests(run: TinyRun) -> dict[str, str]:
    """Return the digests of what a run has stored and learned."""
    files = [*run.cache.rglob("*.npy"), *run.cache.rglob("*.b2nd"), *run.folder.glob("stages/**/*.safetensors"),
             *run.folder.glob("detections/*"), run.folder / "model.safetensors", run.folder / BANK_FILE]  # fmt: skip
    return {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def here(tmp_path_factory, shapes_root) -> dict[str, str]:
    """The digests of a training on this machine."""
    run = TinyRun(tmp_path_factory.mktemp("here"), shapes_root)
    run.train(*STAGES)
    return digests(run)


def test_a_training_whose_images_are_sent_elsewhere_has_the_files_of_one_that_is_not(
    here, tmp_path, shapes_root, elsewhere
):
    run = TinyRun(tmp_path / "there", shapes_root)
    run.train(*STAGES)
    assert digests(run) == here
    assert len(elsewhere) > 20 and max(elsewhere) == 12


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_training_on_a_cluster_has_the_files_of_one_on_this_machine(here, engine, tmp_path, shapes_root, request):
    pytest.importorskip({"dask": "distributed"}.get(engine, engine), reason=f"needs the extra sppdet[{engine}]")
    run = TinyRun(tmp_path / "there", shapes_root)
    where = [f"run.cluster={request.getfixturevalue('address')}"] if engine == "dask" else []
    run_training(load(run.yaml, [*STAGES, f"run.engine={engine}", *where]))
    assert digests(run) == here


def test_ray_keeps_the_order_and_gives_the_work_of_a_worker_that_dies_to_another(tmp_path):
    pytest.importorskip("ray", reason="needs the extra sppdet[ray]")
    died = tmp_path / "died"

    def square_or_die(i: int) -> int:
        if i == 20 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return i * i

    (tmp_path / "cache").mkdir()
    with cluster("ray", None, 2, tmp_path / "cache"):
        assert list(parallel_map(square_or_die, range(50), 1, "squares", portable=True)) == [i * i for i in range(50)]
        with pytest.raises(SppdetError, match=r"^7\.jpg: cannot be read$"):
            list(parallel_map(refusal(), [7], 1, "errors", portable=True))
    assert died.exists()


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
