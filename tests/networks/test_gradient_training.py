"""The training loop: what a step does, which rate it has, what is logged, and resuming after an interruption."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import pytest
import torch
from log_records import records_of
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from sppdet.networks import gradient_training
from sppdet.networks.gradient_training import Progress, step_decay, train_network, warm_cosine
from sppdet.utils.curves import Curves
from sppdet.utils.errors import SppdetError
from sppdet.utils.execution import Checkpoint

STEPS = 12


def numbers(first: int) -> Iterator[int]:
    """Return the batches of a training: the number of the step."""
    return iter(range(first, 100))


def train_weight(steps: int, share=lambda step: 1.0, learn=None, **options) -> tuple[float, Progress]:
    """Train the single weight 10 by SGD at a rate of 0.1; the gradient of step n is n."""
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, 10.0)
    optimizer = torch.optim.SGD(weight.parameters(), 0.1)

    def default(number: int) -> dict[str, float]:
        (number * weight.weight).sum().backward()
        return {"loss": float(number), "square": float(number**2)}

    settings = {"name": "training", "rate_setting": "some.learning_rate", "report_every": 100} | options
    schedule = LambdaLR(optimizer, share)
    progress = train_network(weight, optimizer, schedule, steps, numbers, learn or default, **settings)
    assert not weight.training
    return weight.weight.item(), progress


# Steps, rates, reports


def test_every_batch_is_learned_once_at_the_rate_of_its_step():
    weight, progress = train_weight(5, share=lambda step: 1 / (step + 1))
    assert weight == pytest.approx(10 - 0.1 * sum(n / (n + 1) for n in range(5)))
    assert progress.step == 5 and progress.losses == {"loss": [0, 1, 2, 3, 4], "square": [0, 1, 4, 9, 16]}


def test_means_are_logged_every_few_steps(caplog):
    with caplog.at_level(logging.INFO, "sppdet"):
        _, progress = train_weight(7, report_every=3)
    expected = [{"step": 3, "loss": 1.0, "square": 1.6667}, {"step": 6, "loss": 4.0, "square": 16.6667}]
    assert records_of(caplog.messages) == progress.reports == expected


def test_curves_have_the_records_of_an_interrupted_training_too(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1.0)  # after every step
    options = {"report_every": 3, "checkpoint": Checkpoint(tmp_path / "a.checkpoint", "key")}

    def stopped(number: int) -> dict[str, float]:
        if number == 7:
            raise KeyboardInterrupt
        return {"loss": float(number)}

    with pytest.raises(KeyboardInterrupt):
        train_weight(9, learn=stopped, curves=Curves(tmp_path, "csv"), **options)
    table = tmp_path / "training.csv"
    assert table.read_text().split() == ["step,loss", "3,1.0", "6,4.0"]
    train_weight(9, learn=lambda number: {"loss": float(number)}, curves=Curves(tmp_path, "csv"), **options)
    assert table.read_text().split() == ["step,loss", "3,1.0", "6,4.0", "9,7.0"]


def test_the_caller_may_choose_what_is_reported():
    _, progress = train_weight(4, report_every=2, report=lambda step, values: {"at": step, "last": values["loss"][-1]})
    assert progress.reports == [{"at": 2, "last": 1.0}, {"at": 4, "last": 3.0}]


@pytest.mark.parametrize(("steps", "mean"), [(3, 2.0), (19, 18.0), (20, 18.5), (50, 47.0)])
def test_the_final_loss_is_the_mean_of_the_last_tenth(steps, mean):
    _, progress = train_weight(steps)
    assert progress.final("loss") == mean


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value):
    seen = []

    def learn(number: int) -> dict[str, float]:
        seen.append(number)
        return {"loss": 1.0, "other": value if number == 3 else 1.0}

    with pytest.raises(SppdetError, match=r"^the loss is not finite; lower some\.learning_rate$"):
        train_weight(10, learn=learn)
    assert seen == [0, 1, 2, 3]


def test_the_cosine_rises_for_a_twentieth_of_the_steps_and_falls_to_zero():
    steps = 400
    shares = [warm_cosine(step, steps) for step in range(steps)]
    assert shares[:19] == pytest.approx([(step + 1) / 20 for step in range(19)])
    assert shares[19:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / steps) for step in range(19, steps)])
    assert max(shares) == shares[19] and shares[200] == pytest.approx(0.5) and shares[-1] < 1e-4


def test_the_step_schedule_is_the_papers():
    # 250k mini-batches at the full rate, then 50k at a tenth of it.
    assert [step_decay(step, 300_000) for step in (0, 249_999, 250_000, 299_999)] == [1, 1, 0.1, 0.1]


# Resuming


class Training:
    """A small network with dropout and batch norm, trained on random batches."""

    def __init__(self, optimizer: str, schedule: str):
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        parameters = [{"params": self.network[0].parameters(), "lr": 0.003}, {"params": self.network[1:].parameters()}]
        options = {"SGD": {"momentum": 0.9}, "AdamW": {"fused": True}, "Adam": {}}[optimizer]
        self.optimizer = getattr(torch.optim, optimizer)(parameters, 0.01, **options)
        if schedule == "one cycle":
            self.schedule = OneCycleLR(self.optimizer, [0.003, 0.01], total_steps=STEPS)
        else:
            self.schedule = LambdaLR(self.optimizer, lambda step: warm_cosine(step, STEPS))
        self.rates: list[tuple] = []

    def run(self, checkpoint: Checkpoint | None = None, stop_at: int | None = None) -> Progress:
        """Train, and interrupt the training in step ``stop_at``."""

        def batches(first: int) -> Iterator[tuple[int, torch.Tensor]]:
            for step in range(first, STEPS):
                yield step, torch.randn(6, 4, generator=torch.Generator().manual_seed(step))

        def learn(batch: tuple[int, torch.Tensor]) -> dict[str, float]:
            if batch[0] == stop_at:
                raise KeyboardInterrupt
            self.rates.append(tuple((group["lr"], group.get("betas")) for group in self.optimizer.param_groups))
            loss = (self.network(batch[1]) - batch[1].sum(1, keepdim=True)).square().mean()
            loss.backward()
            return {"loss": loss.item()}

        torch.manual_seed(4)  # of dropout
        return train_network(
            self.network, self.optimizer, self.schedule, STEPS, batches, learn,
            name="training", rate_setting="rate", report_every=4, checkpoint=checkpoint,
        )  # fmt: skip

    def state(self) -> dict[str, list]:
        return {name: value.tolist() for name, value in self.network.state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Checkpoint:
    """A place for a checkpoint, which is written after every step."""
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    return Checkpoint(tmp_path / "network.checkpoint", "key")


def interrupt(checkpoint: Checkpoint, step: int, *kinds: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        Training(*kinds).run(checkpoint, stop_at=step)


@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
@pytest.mark.parametrize("kinds", [("SGD", "cosine"), ("AdamW", "cosine"), ("Adam", "one cycle")])
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(checkpoint, kinds, stop_at):
    whole, resumed = Training(*kinds), Training(*kinds)
    expected = whole.run()
    interrupt(checkpoint, stop_at, *kinds)
    progress = resumed.run(checkpoint)
    assert resumed.state() == whole.state()
    assert progress == expected  # losses and reports of the steps before the interruption too
    assert resumed.rates == whole.rates[stop_at:]  # momentum is cycled as well


def test_a_training_may_be_interrupted_again_and_again(checkpoint):
    whole = Training("AdamW", "cosine")
    whole.run()
    for step in (2, 3, 8):
        interrupt(checkpoint, step, "AdamW", "cosine")
    resumed = Training("AdamW", "cosine")
    resumed.run(checkpoint)
    assert resumed.state() == whole.state() and len(resumed.rates) == STEPS - 8


def test_a_checkpoint_of_another_key_is_not_resumed_from(checkpoint):
    whole, other = Training("AdamW", "cosine"), Training("AdamW", "cosine")
    whole.run()
    interrupt(checkpoint, 6, "AdamW", "cosine")
    other.run(Checkpoint(checkpoint.path, "another"))
    assert other.state() == whole.state() and len(other.rates) == STEPS


def test_a_damaged_checkpoint_is_not_resumed_from(checkpoint, caplog):
    whole, again = Training("AdamW", "cosine"), Training("AdamW", "cosine")
    whole.run()
    interrupt(checkpoint, 6, "AdamW", "cosine")
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:300])
    again.run(checkpoint)
    assert "damaged checkpoint" in caplog.text
    assert again.state() == whole.state() and len(again.rates) == STEPS


def test_checkpoints_are_written_once_a_minute_and_not_after_the_last_step(checkpoint, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", 60)
    monkeypatch.setattr(gradient_training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gradient_training, "_save", lambda *state: saved.append(state[-1].step))

    def learn(number: int) -> dict[str, float]:
        clock[0] += 25
        return {"loss": 0.0}

    train_weight(9, learn=learn, checkpoint=checkpoint)
    assert saved == [3, 6]  # after 75 and 150 seconds; step 9 is the last
