"""The commands that change the classes of a model."""

from __future__ import annotations

import pytest

from sppdet.cli import add, join, main, remove, rename


@pytest.mark.parametrize("module", [add, join, remove, rename])
def test_help_tells_the_options(module, capsys):
    with pytest.raises(SystemExit) as status:
        module.main(["--help"])
    assert status.value.code == 0
    assert "--output" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "nothing", "images"], ["add", "nothing", "images", "--background"], ["remove", "nothing", "cat"],
        ["rename", "nothing", "cat", "dog"], ["join", "nothing", "other", "--output", "both"],
    ],
)  # fmt: skip
def test_a_folder_without_a_model_is_one_line(arguments, capsys):
    assert main.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nothing: no finished model" in error


def test_new_classes_and_background_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        add.main(["run", "images", "--background", "--class", "cat"])
    assert "not allowed with" in capsys.readouterr().err
