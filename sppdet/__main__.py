"""``sppdet train|evaluate|detect|classify ...``, the same as ``python -m sppdet.train ...`` and so on."""

from __future__ import annotations

import importlib
import sys

from sppdet.cli import common as cli

COMMANDS = {
    "train": "train and evaluate a detector from a config",
    "evaluate": "measure a trained detector on a test split",
    "detect": "find objects in images",
    "combine": "make one detector of several trained ones",
    "classify": "train, measure and use a classifier of whole images",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = cli.choose("sppdet", COMMANDS, arguments)
    if isinstance(chosen, int):
        return chosen
    return importlib.import_module(f"sppdet.{chosen}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
