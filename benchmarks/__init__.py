"""Benchmarks: ``python scripts/bench.py NAME``. A module each; ``run(bench)`` returns its rows."""
