"""Benchmarks, a module each: ``python scripts/bench.py NAME``. ``run(bench)`` returns the rows of the table."""

import sppdet  # noqa: F401  before torch: it sets how torch allocates memory
