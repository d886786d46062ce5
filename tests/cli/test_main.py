"""``sppdet``: its version, its usage, and that it reaches every command."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sppdet
from sppdet.cli import common as cli
from sppdet.cli.main import COMMANDS, main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sppdet {sppdet.__version__}\n"


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: sppdet COMMAND ...\n")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_an_unknown_command_is_named_before_the_usage(capsys):
    assert main(["detekt"]) == 2
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("error: sppdet has no command 'detekt'") and second.startswith("usage:")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_reached(capsys, command):
    try:
        status = main([command, "--help"])
    except SystemExit as exit:
        status = exit.code
    assert status == 0
    assert capsys.readouterr().out.startswith(f"usage: sppdet {command}")


def test_arguments_are_handed_on(capsys, tmp_path):
    assert main(["combine", str(tmp_path / "a"), "--output", str(tmp_path / "b")]) == cli.FAILED
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'a'}: no finished model")


def test_the_package_is_a_program_that_starts_without_torch():
    command = [sys.executable, "-X", "importtime", "-m", "sppdet", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert result.stdout == f"sppdet {sppdet.__version__}\n"
    assert "argparse" in imported and not imported & {"torch", "numpy", "PIL"}
