"""Benchmarks: ``python scripts/bench.py NAME``. A module each; ``run(bench)`` returns its rows."""

import sppdet  # noqa: F401  before torch, which asks it for how to take memory
