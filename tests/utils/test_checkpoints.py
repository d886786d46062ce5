"""Checkpoints: a network, its optimizer and what else a training needs come back; those of others do not."""

from __future__ import annotations

import torch
from torch import nn

from sppdet.utils import checkpoints as checkpoint


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), 0.1)
    for _ in range(steps):
        step(network, optimizer)
    return network, optimizer


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()


def test_what_was_saved_goes_on_as_if_it_had_not_stopped(tmp_path):
    path, (network, optimizer) = tmp_path / "c.safetensors", trained(3)
    checkpoint.save(path, "key", network, optimizer, {"losses": torch.tensor([1.0, 2.0])}, {"epoch": "2"})
    other, its_optimizer = trained(0)
    more, notes = checkpoint.restore(path, "key", other, its_optimizer)
    assert more["losses"].tolist() == [1, 2] and notes == {"epoch": "2"}
    step(network, optimizer)
    step(other, its_optimizer)
    assert torch.equal(network.weight, other.weight)


def test_nothing_is_taken_from_another_training(tmp_path):
    path, (network, optimizer) = tmp_path / "c.safetensors", trained(3)
    assert checkpoint.restore(path, "key", network, optimizer) is None
    checkpoint.save(path, "key", network, optimizer, {})
    other, its_optimizer = trained(0)
    before = other.weight.clone()
    assert checkpoint.restore(path, "another", other, its_optimizer) is None
    assert torch.equal(other.weight, before) and not its_optimizer.state
