"""Check work on clusters: real schedulers and workers on this machine, which are killed, join late, and see no folder.

    python scripts/check_cluster.py FOLDER            # all parts, a table at the end
    python scripts/check_cluster.py FOLDER dask ray   # some of the parts, see PARTS

As root on Linux each worker of Dask and each node of Ray has a network namespace, linked by a bridge, and a working
folder of its own; all that it shares with the others is FOLDER. Elsewhere they are plain processes, and the table says
so. Both engines must be installed: pip install 'sppdet[dask,ray]'.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from pathlib import Path

from cluster_checks.limits import measure_limits
from cluster_checks.machines import DaskCluster, RayCluster, cluster_of, kill, wait_for_workers
from cluster_checks.work import Training, Work, at_entry, refused


def check_dask(folder: Path, images: int, pause: float) -> str:
    """Four workers, one killed in mid-run, one joining late."""
    work = Work(folder, "dask", images, pause)
    with cluster_of(DaskCluster, folder, 4) as dask:
        wait_for_workers(dask.address, 4)

        def disturb() -> None:
            dask.workers[0].kill()
            dask.add()

        with at_entry(work, images // 8, disturb):
            work.run("dask", dask.address)
    return f"4 workers {dask.where}, 1 killed, 1 late: {work.calls()}; {work.compared()}"


def check_training(folder: Path, images: int, pause: float) -> str:
    """All stages of a training on four workers, one killed in the middle of mining, one joining late."""
    training = Training(folder, "training-dask", images)
    with cluster_of(DaskCluster, folder, 4) as dask:
        wait_for_workers(dask.address, 4)

        def disturb() -> None:
            kill(dask.workers[0])
            dask.add()

        with at_entry(training, 3, disturb):
            training.run("dask", dask.address)
        tasks = ", ".join(f"{name} {count}" for name, count in dask.tasks().items())
    return f"4 workers {dask.where}, w1 killed while mining, w5 late; tasks: {tasks}; {training.compared()}"


def check_scheduler(folder: Path, images: int, pause: float) -> str:
    """The scheduler dies in mid-run: one line; then another cluster goes on."""
    work = Work(folder, "scheduler", images, pause / 4)
    with cluster_of(DaskCluster, folder, 2) as dask, at_entry(work, images // 4, dask.scheduler.kill):
        begun = time.monotonic()
        line = refused(lambda: work.run("dask", dask.address))
        seconds, before = time.monotonic() - begun, work.done
    work.run("dask")
    return f"after {seconds:.0f} s '{line}'; resumed from {before}: {work.calls()}; {work.compared()}"


def check_unshared(folder: Path, images: int, pause: float) -> str:
    """A worker that does not see the shared folder is found before work begins."""
    work = Work(folder, "unshared", images)
    with cluster_of(DaskCluster, folder, 1) as dask:
        if not dask.separate:
            return "skipped: needs root on Linux"
        dask.add(hide=work.folder)
        wait_for_workers(dask.address, 2)
        return f"'{refused(lambda: work.run('dask', dask.address))}'; {work.calls()}"


def check_ray(folder: Path, images: int, pause: float) -> str:
    """Two nodes of Ray; a worker process and a node are killed in mid-run, and a node joins late."""
    work = Work(folder, "ray", images, pause)
    with cluster_of(RayCluster, folder, 1) as nodes:
        nodes.wait(2)

        def disturb() -> None:
            pid = int(next(work.compute.folder.iterdir()).name.split("-")[1])  # of a worker that has done some
            os.kill(pid, signal.SIGKILL)
            nodes.add()
            while work.done < images // 2:
                time.sleep(0.05)
            kill(nodes.workers[0])

        with at_entry(work, images // 8, disturb):
            work.run("ray", nodes.address)
    disturbed = f"2 nodes {nodes.where}, 1 worker killed, 1 node late, 1 node killed"
    return f"{disturbed}: {work.calls()}; {work.compared()}"


def check_ray_training(folder: Path, images: int, pause: float) -> str:
    """All stages of a training on Ray's two nodes, one killed in the middle of mining, one joining late."""
    training = Training(folder, "training-ray", images)
    with cluster_of(RayCluster, folder, 1) as nodes:
        nodes.wait(2)

        def disturb() -> None:
            nodes.add()
            kill(nodes.workers[0])

        with at_entry(training, 3, disturb):
            training.run("ray", nodes.address)
    return f"2 nodes {nodes.where}, 1 killed while mining, 1 late; {training.compared()}"


PARTS = {
    "dask": check_dask,
    "training": check_training,
    "scheduler": check_scheduler,
    "unshared": check_unshared,
    "ray": check_ray,
    "ray-training": check_ray_training,
    "limits": measure_limits,
}


def main() -> None:
    """Run the parts that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder for images and results; its content may be replaced")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds that each image takes longer")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    lines = []
    for part in options.parts or PARTS:
        lines.append(f"| {part} | {PARTS[part](options.folder.absolute(), options.images, options.pause)} |")
        print(lines[-1], flush=True)
    print("\n| part | result |", "|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    main()
