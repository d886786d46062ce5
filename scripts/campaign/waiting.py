"""How much a training loses beside another busy process: threads that wait must not hold their cores."""

from __future__ import annotations

import os
import subprocess
import sys

from campaign.workplace import Outcome, Workplace

_STEPS = """
import sppdet, time, torch
from torch import nn
network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))
images = torch.rand(4, 3, 64, 64)
for number in range({steps} + 3):
    if number == 3:
        start = time.perf_counter()
    network(images).square().mean().backward()
print(time.perf_counter() - start)
"""
_BUSY = "while True: pass"


def waiting(_: Workplace, of: str, steps: int) -> Outcome:
    """Time steps of training alone and beside one busy process, as by default and with threads that spin."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    seconds: dict[str, float] = {}
    for beside in (False, True):
        busy = subprocess.Popen([sys.executable, "-c", _BUSY]) if beside else None
        try:
            for policy in ({}, {"OMP_WAIT_POLICY": "active"}):
                text = subprocess.run(
                    [sys.executable, "-c", _STEPS.format(steps=steps)], env=environment | policy,
                    stdout=subprocess.PIPE, text=True, check=True,
                ).stdout  # fmt: skip
                seconds[("spinning" if policy else "default") + (" beside" if beside else " alone")] = float(text)
        finally:
            if busy:
                busy.kill()
                busy.wait()
    load = os.getloadavg()[0]
    ratio = seconds["default beside"] / seconds["default alone"]
    loss = seconds["default alone"] / seconds["spinning alone"]
    return Outcome(
        steps,
        f"steps; {ratio:.2f} times the time alone ({seconds['spinning beside'] / seconds['spinning alone']:.2f} with "
        f"OMP_WAIT_POLICY=active); alone {loss:.2f} times that of spinning threads; load {load:.1f} on "
        f"{os.cpu_count()} cores",
    )
