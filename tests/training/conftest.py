"""A finished training, runs that continue from it, and what the package logs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored_models import MODEL
from tiny_run import TinyRun


@pytest.fixture(scope="session")
def trained(tmp_path_factory, shapes_root) -> TinyRun:
    """A finished run. Read only: other runs use its cache."""
    run = TinyRun(tmp_path_factory.mktemp("trained"), shapes_root)
    run.train()
    return run


@pytest.fixture
def run(tmp_path, trained) -> TinyRun:
    """A run that has not begun, with the images and the cache of the finished one."""
    return TinyRun(tmp_path, trained.root, trained.cache)


@pytest.fixture
def copied_data(tmp_path, shapes_root) -> Path:
    """The images and annotations of the other runs, to be changed."""
    return Path(shutil.copytree(shapes_root, tmp_path / "shapes"))


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """What the package logs, line by line."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("sppdet"), Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def model(tmp_path, trained) -> Path:
    """A copy of the finished run's model and bank, and nothing else of the run."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in MODEL:
        shutil.copy(trained.folder / name, folder / name)
    return folder
