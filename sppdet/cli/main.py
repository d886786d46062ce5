"""``sppdet COMMAND ...``: every command of the package; ``python -m sppdet.COMMAND ...`` does the same."""

from __future__ import annotations

import importlib
import sys

import sppdet
from sppdet.cli import common as cli

COMMANDS = {
    "train": "train a detector on a folder of labelled images, or by a config",
    "evaluate": "measure a trained detector on a test split",
    "report": "write a page about a run: figures, curves, errors, examples",
    "detect": "find objects in images",
    "label": "write detections as annotations, to be corrected",
    "check": "say what a folder of labelled images holds, and what is wrong with it",
    "convert": "write labelled images in another format",
    "add": "teach a trained detector new classes from images of these alone, or more background",
    "remove": "take classes out of a trained detector",
    "rename": "give a class of a trained detector another name",
    "join": "make one detector of two with different classes",
    "combine": "make one detector of several trained ones",
    "classify": "train, measure and use a classifier of whole images",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that ``arguments`` (by default those of the process) name, and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(f"sppdet {sppdet.__version__}")
        return 0
    command = cli.choose("sppdet", COMMANDS, arguments)
    if isinstance(command, int):
        return command
    return importlib.import_module(f"sppdet.cli.{command}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
