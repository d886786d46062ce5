"""Training in several processes: the losses and weights of one process with the same images per step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from two_ranks import train

from sppdet.networks.ranks import add_gradients, add_over_ranks, process_group, rank, rank_count, wait_for_ranks

ROOT = Path(__file__).parents[2]


def test_a_process_that_was_started_alone_is_the_first_and_only_rank():
    layer = torch.nn.Linear(2, 1)
    with process_group():
        assert (rank(), rank_count()) == (0, 1)
        assert add_over_ranks(3, 0.5) == [3, 0.5]
        add_gradients(layer)
        wait_for_ranks()
    assert layer.weight.grad is None


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, shapes_root) -> Path:
    """A folder with what two processes of torchrun have written."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(ROOT / "tests" / "two_ranks.py"), str(shapes_root), str(folder)],
        env=environment, check=True, timeout=600,
    )  # fmt: skip
    return folder


def losses(path: Path) -> np.ndarray:
    """Return the losses of every step: ``(2, steps)``."""
    return np.array([*json.loads(path.read_text()).values()])


def test_two_processes_have_the_loss_curve_and_the_weights_of_one(two_ranks, shapes_root):
    train(shapes_root, two_ranks)
    one, first, second = (losses(two_ranks / f"{name}.json") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert one.shape == (2, 6)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, one, rtol=1e-4)
    alone, together = (torch.load(two_ranks / f"0-of-{count}.pt", weights_only=True) for count in (1, 2))
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-5)


def test_all_processes_have_the_same_weights(two_ranks):
    first, second = (torch.load(two_ranks / f"{number}-of-2.pt", weights_only=True) for number in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
