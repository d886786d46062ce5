"""One line of progress for several stages: what is left, corrected by the pace so far."""

from __future__ import annotations

import time

import pytest

from sppdet.utils import progress as module
from sppdet.utils.parallel import parallel_map
from sppdet.utils.progress import Estimate, Progress, active, bar, note


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_before_anything_ran_what_is_left_is_the_sum_of_the_estimates(clock):
    progress = Progress({"maps": Estimate(60, 10), "svm": Estimate(30)}, clock)
    progress.begin("maps")
    assert progress.left() == 90


def test_items_tell_the_time_of_their_stage_and_the_pace_of_the_others(clock):
    progress = Progress({"maps": Estimate(60, 10), "svm": Estimate(30)}, clock)
    progress.begin("maps")
    for _ in range(5):
        progress.count()
    clock.now = 60  # twice as long as expected
    pace = (60 + 9) / (30 + 9)  # a tenth of the whole estimate, 9 seconds, counts for a pace of 1
    assert progress.left() == pytest.approx(60 + 30 * pace)
    progress.end()
    clock.now = 120
    progress.begin("svm")
    pace = (60 + 9) / (60 + 9)
    assert progress.left() == pytest.approx(30 * pace)


def test_a_stage_without_items_is_told_by_time_alone_and_never_below_0(clock):
    progress = Progress({"svm": Estimate(30), "bbox": Estimate(10)}, clock)
    progress.begin("svm")
    clock.now = 20
    assert progress.left() == 20
    clock.now = 50
    assert progress.left() == 10


def test_what_is_left_is_unknown_as_long_as_a_stage_has_no_estimate(clock):
    progress = Progress({"pretrain": Estimate(None), "svm": Estimate(None)}, clock)
    progress.begin("pretrain")
    assert progress.left() is None
    progress.end()
    progress.add({"pretrain": Estimate(99), "svm": Estimate(5)})  # pretrain has ended
    assert progress.left() == 5


def test_loops_count_for_the_active_progress_alone(capsys):
    with Progress({"maps": Estimate(10, 3)}) as progress:
        assert active() is progress
        progress.begin("maps")
        assert list(parallel_map(abs, [-1, 2, -3], 1, "maps at 480", threads=True)) == [1, 2, 3]
        assert progress._items == 3
        progress.end()
    assert active() is None
    with bar(2, "alone") as update:
        update()
    assert "alone" in capsys.readouterr().err


def test_the_line_goes_on_where_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(module, "_TICK", 0.01)
    shown = []
    with Progress({"bbox": Estimate(10)}) as progress:
        progress.begin("bbox")
        note("fitting box regressions, 1 of 3")
        monkeypatch.setattr(progress, "_show", lambda bar, text: shown.append(text))
        deadline = time.monotonic() + 60
        while len(shown) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert shown[:3] == ["fitting box regressions, 1 of 3"] * 3
    assert not progress._ticker.is_alive()


def test_the_progress_ends_with_an_error(monkeypatch):
    with pytest.raises(KeyboardInterrupt), Progress({}):
        raise KeyboardInterrupt
    assert module.active() is None
