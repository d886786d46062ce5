"""One line of progress for a work of several stages, whose time is estimated before and corrected on the way.

`bar` shows the progress of one loop: inside the line of the `Progress` that is active, else as a bar of its own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, RLock, Thread

from tqdm import tqdm

_PRIOR = 0.1  # share of the whole estimate that counts as evidence for the estimate, against the measured pace
_UNKNOWN, _KNOWN = "{desc}", "{percentage:3.0f}% |{bar:20}| {desc}"
_TICK = 2.0  # seconds after which what is left is shown again, though nothing was counted
_ENOUGH = 0.05  # share of a stage's items from which their pace tells the time of the stage


@dataclass(frozen=True)
class Estimate:
    """How long a stage will take.

    Attributes:
        seconds: None where it is not known.
        items: how many items its loops will have in all; 0 where it is not known, and time alone tells the progress.
    """

    seconds: float | None
    items: int = 0


class Progress:
    """Context manager that shows one line for all stages.

    Args:
        estimates: the stages that will run, in order.
        clock: returns seconds.

    Examples:
        >>> seconds = iter([0, 0, 30, 30])
        >>> progress = Progress({"maps": Estimate(10, 20), "svm": Estimate(5)}, clock=lambda: next(seconds))
        >>> progress.begin("maps")
        >>> for _ in range(10):
        ...     progress.count()
        >>> round(progress.left())  # 10 items took 30 seconds: the other stage is expected to take longer, too
        54
    """

    def __init__(self, estimates: Mapping[str, Estimate], clock: Callable[[], float] = time.monotonic):
        self._estimates, self._clock = dict(estimates), clock
        self._stage: str | None = None
        self._start, self._begun, self._items, self._done = clock(), 0.0, 0, 0.0  # _done: the share that was shown last
        self._spent: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._text = ""
        self._lock, self._ended = RLock(), Event()
        self._ticker = Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        global _active
        _active = self
        # Where nobody watches, as in a file, a line every half a minute is enough.
        interval = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(total=100, bar_format=_UNKNOWN, mininterval=interval)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = None
        self._ended.set()
        self._ticker.join()
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()

    def _tick(self) -> None:
        """Show what is left now and then: a fit or a product may take minutes without counting anything."""
        while not self._ended.wait(_TICK):
            self.show(self._text)

    def add(self, estimates: Mapping[str, Estimate]) -> None:
        """Replace the estimates of stages that have not begun."""
        with self._lock:
            self._estimates |= {stage: estimate for stage, estimate in estimates.items() if stage not in self._spent}

    def begin(self, stage: str) -> None:
        """Begin a stage."""
        with self._lock:
            self._stage, self._begun, self._items = stage, self._clock(), 0
        self.show(stage)

    def end(self) -> None:
        """End the stage."""
        with self._lock:
            if self._stage is not None:
                self._spent[self._stage] = self._clock() - self._begun
                self._stage = None

    def count(self) -> None:
        """Count an item of the stage as done."""
        self._items += 1

    def left(self) -> float | None:
        """Return the seconds that are left; None where a stage that is to come has no estimate."""
        now = self._clock() - self._begun
        waiting = [stage for stage in self._estimates if stage not in self._spent and stage != self._stage]
        known = [self._estimates[stage].seconds for stage in waiting]
        current = self._estimates.get(self._stage or "", Estimate(0.0))
        # More than one loop of a stage may count.
        share = min(1.0, self._items / current.items) if current.items else 0.0
        if current.seconds is None and share < _ENOUGH:
            return None
        expected = sum(self._estimates[stage].seconds or 0.0 for stage in self._spent if stage in self._estimates)
        actual = sum(self._spent[stage] for stage in self._spent if stage in self._estimates)
        if current.seconds is not None:
            expected, actual = expected + share * current.seconds, actual + (now if share else 0.0)
        prior = _PRIOR * sum(estimate.seconds or 0.0 for estimate in self._estimates.values())
        pace = (actual + prior) / (expected + prior) if expected + prior else 1.0
        here = now / share - now if share >= _ENOUGH else max((current.seconds or 0.0) * pace - now, 0.0)
        return None if None in known else here + pace * sum(seconds or 0.0 for seconds in known)

    def show(self, text: str) -> None:
        """Show ``text`` after the share that is done and the time that is left."""
        if self._bar is not None:
            with self._lock:
                self._show(self._bar, text)

    def _show(self, bar: tqdm, text: str) -> None:
        self._text = text
        left, spent = self.left(), self._clock() - self._start
        text = text if self._stage in (None, text) else f"{self._stage}: {text}"
        if left is not None:
            self._done = max(self._done, spent / (spent + left) if spent + left else 0.0)
            text = f"{text}; {duration(left)} left"
        bar.bar_format = _UNKNOWN if left is None else _KNOWN
        bar.n = round(100 * self._done)
        bar.set_description_str(text, refresh=False)
        bar.update(0)
        if time.time() - bar.last_print_t >= bar.mininterval:
            bar.refresh()
            bar.last_print_t = time.time()


_active: Progress | None = None


def active() -> Progress | None:
    """Return the progress that is shown now; None outside of any."""
    return _active


def note(text: str) -> None:
    """Show what is done now, where no loop says it."""
    if _active is not None:
        _active.show(text)


@contextmanager
def bar(total: int, description: str, done: int = 0) -> Iterator[Callable[[], object]]:
    """Show the progress of a loop, and yield the function to call after every item.

    Args:
        total: the number of items; nothing is shown for 0.
        description: what the loop does.
        done: items that are done already.
    """
    progress = _active
    if progress is None:
        # Of several processes of torchrun, the first one shows what all do.
        hidden = not total or os.environ.get("RANK", "0") != "0"
        with tqdm(total=total, initial=done, desc=description, disable=hidden, mininterval=0.5, unit="") as single:
            yield single.update
        return
    count = done

    def update() -> None:
        nonlocal count
        count += 1
        progress.count()
        progress.show(f"{description}, {count} of {total}")

    for _ in range(done):
        progress.count()
    yield update


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    Examples:
        >>> duration(8), duration(100), duration(5000)
        ('10 s', '2 min', '1 h 23 min')
    """
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
