"""``sppdet train|evaluate|detect ...``, the same as ``python -m sppdet.train ...`` and so on."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "train": "train and evaluate a detector from a config",
    "evaluate": "measure a trained detector on a test split",
    "detect": "find objects in pictures",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        known = bool(arguments) and arguments[0] in ("-h", "--help")
        lines = ["usage: sppdet COMMAND ...", ""] + [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
        print(
            "\n".join([*lines, "", "sppdet COMMAND --help tells more."]),
            file=sys.stdout if known else sys.stderr,
        )
        return 0 if known else 2
    return importlib.import_module(f"sppdet.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
