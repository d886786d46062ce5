"""Checkpoint files: network, optimizer and the caller's values come back; other or damaged files change nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sppdet.utils import checkpoints
from sppdet.utils.execution import Checkpoint

TENSORS, NOTES = {"losses": torch.tensor([1.0, 2.0])}, {"reports": [{"step": 2, "loss": 1.5}]}


def trained(steps: int, optimizer: str = "AdamW") -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network and its optimizer after some steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    groups = [{"params": network[0].parameters(), "lr": 0.05}, {"params": network[2].parameters()}]
    options = {"momentum": 0.9} if optimizer == "SGD" else {"fused": True}
    result = network, getattr(torch.optim, optimizer)(groups, 0.1, **options)
    for _ in range(steps):
        step(*result)
    return result


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(1, 3, 3, 3)).square().sum().backward()
    optimizer.step()


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    """A saved training of three steps, whose first group of parameters has another learning rate since."""
    checkpoint, (network, optimizer) = Checkpoint(tmp_path / "c.checkpoint", "key"), trained(3)
    optimizer.param_groups[0]["lr"] = 0.02
    checkpoints.save(checkpoint, network, optimizer, TENSORS, NOTES)
    return checkpoint


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_restored_training_goes_on_to_the_same_weights(tmp_path, optimizer):
    checkpoint, whole = Checkpoint(tmp_path / "c.checkpoint", "key"), trained(3, optimizer)
    whole[1].param_groups[0]["lr"] = 0.02
    checkpoints.save(checkpoint, *whole, TENSORS, NOTES)
    resumed = trained(0, optimizer)
    tensors, notes = checkpoints.restore(checkpoint, *resumed)
    assert tensors["losses"].tolist() == [1, 2] and notes == NOTES
    step(*whole)
    step(*resumed)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name


def test_settings_of_the_optimizer_and_its_memory_order_come_back(checkpoint):
    network, optimizer = trained(0)
    checkpoints.restore(checkpoint, network, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.1]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    weight = network[0].weight
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()


def changes_nothing(checkpoint: Checkpoint) -> bool:
    """Whether nothing is restored from a file, and network and optimizer stay as they were."""
    network, optimizer = trained(0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    if checkpoints.restore(checkpoint, network, optimizer) is not None:
        return False
    same = all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return same and not optimizer.state and optimizer.param_groups[0]["lr"] == 0.05


def test_nothing_is_restored_without_a_file_or_from_one_of_another_key(checkpoint):
    assert changes_nothing(Checkpoint(checkpoint.path.with_name("none"), "key"))
    assert changes_nothing(Checkpoint(checkpoint.path, "another"))
    assert not changes_nothing(checkpoint)


def test_files_of_earlier_versions_are_ignored(tmp_path):
    path = tmp_path / "c.checkpoint"
    save_file({"network.weight": torch.ones(2)}, path, metadata={"key": "key"})
    assert changes_nothing(Checkpoint(path, "key"))
    save_file({"network.weight": torch.ones(2)}, path)
    assert changes_nothing(Checkpoint(path, "key"))


@pytest.mark.parametrize("length", [0, 5, 400, -1])
def test_a_damaged_file_is_ignored_with_a_warning(checkpoint, caplog, length):
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:length])
    with caplog.at_level(logging.WARNING, "sppdet"):
        assert changes_nothing(checkpoint)
    assert caplog.messages == [f"{checkpoint.path}: damaged checkpoint; training starts from the beginning"]
