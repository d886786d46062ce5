"""What the stages of a run cost: the file RUN/stages.json."""

from __future__ import annotations

from pathlib import Path

from sppdet.proposals import recall_line
from sppdet.utils import read_json, write_json

_FILE = "stages.json"


def read_costs(folder: Path) -> dict[str, dict]:
    """Read what each stage of the run in ``folder`` cost when its result was last computed.

    Returns:
        From stage to cost: ``seconds``, ``peak_memory_mb`` and what else the stage records. Empty without the file.

    Raises:
        SppdetError: if the file cannot be read.
    """
    path = folder / _FILE
    if not path.exists():
        return {}
    costs = read_json(path)
    return read_json(path, **dict.fromkeys(costs, dict))


def record_cost(folder: Path, stage: str, cost: dict) -> None:
    """Write the cost of ``stage`` into the run in ``folder``; the costs of other stages stay."""
    write_json(folder / _FILE, read_costs(folder) | {stage: cost}, sealed=True)


def forget_cost(folder: Path, stage: str) -> None:
    """Remove the cost of ``stage``, which the run in ``folder`` no longer has; the file stays as it is without one."""
    costs = read_costs(folder)
    if costs.pop(stage, None) is not None:
        write_json(folder / _FILE, costs, sealed=True)


def stage_line(stage: str, cost: dict, computed: bool = True) -> str:
    """Format the cost of a stage for a terminal.

    Args:
        stage: its name.
        cost: an entry of `read_costs`.
        computed: whether the stage was run now; otherwise its result is of an earlier training.

    Examples:
        >>> stage_line("maps", {"seconds": 24.4, "peak_memory_mb": 3217, "disk_mb": 266.2})
        'maps          24.4 s   3217 MB memory  266 MB disk'
        >>> stage_line("maps", {"seconds": 24.4}, computed=False)
        'maps       finished earlier'
    """
    if not computed:
        columns = [f"{stage:<10} finished earlier"]
    else:
        columns = [f"{stage:<10} {cost.get('seconds', 0):7.1f} s {cost.get('peak_memory_mb', 0):6.0f} MB memory"]
    if computed and "disk_mb" in cost:
        columns.append(f"{cost['disk_mb']:.0f} MB disk")
    for split in ("train", "test"):
        if split in cost:
            columns.append(f"{split}: {cost[split]['windows']:.0f} windows, {recall_line(cost[split])}")
    return "  ".join(columns)
