"""A tiny end-to-end training in each process of ``torchrun``: ``two_ranks.py IMAGES FOLDER``, see test_ranks.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from end_to_end_images import Workplace

from sppdet.networks.ranks import process_group, rank, rank_count
from sppdet.training import end_to_end


def train(root: Path, folder: Path) -> None:
    """Train, and write the losses of every step and the weights to ``folder/RANK-of-RANKS``."""
    curves = []

    def remember(*arguments, **options):
        curves.append(train_network(*arguments, **options))
        return curves[-1]

    train_network, end_to_end.train_network = end_to_end.train_network, remember
    workplace = Workplace(root, folder / f"work-{rank()}-of-{rank_count()}")
    try:
        network, _ = workplace.train(images_per_step=4, epochs=2.0, hard_of=24)
    finally:
        end_to_end.train_network = train_network
    name = f"{rank()}-of-{rank_count()}"
    (folder / f"{name}.json").write_text(json.dumps(curves[-1].losses))
    torch.save(network.state_dict(), folder / f"{name}.pt")
    (folder / f"{name}.checkpoint").write_text(str(workplace.checkpoint.exists()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group():
        train(Path(sys.argv[1]), Path(sys.argv[2]))
