"""The values that all stages receive together."""

from __future__ import annotations

import dataclasses

import pytest

from sppdet.config.settings import Config
from sppdet.utils.execution import Execution


def test_defaults_are_those_of_the_settings():
    settings, execution = Config(), Execution()
    assert (execution.seed, execution.workers) == (settings.run.seed, settings.workers)
    assert execution.checkpoint is None


def test_values_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Execution().seed = 4
