"""``python -m sppdet.train CONFIG [key=value ...]``: run every stage of training that is not done yet."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common
from sppdet.config import STAGES


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="sppdet train", description="Train and evaluate a detector, stage by stage."
    )
    arguments.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/demo.yaml")
    arguments.add_argument("--stage", choices=STAGES, help="stop after this stage")
    again = arguments.add_mutually_exclusive_group()
    again.add_argument("--force", action="store_true", help="run the --stage given again; without --stage, all stages")
    again.add_argument(
        "--keep", action="store_true", help="with images added or changed, learn only the classes that are new"
    )
    arguments.add_argument("--print-config", action="store_true", help="print every setting and stop")
    common.add_overrides(arguments)
    return arguments


def train(options: argparse.Namespace) -> None:
    """Run the command."""
    from sppdet import config

    settings = config.load(options.config, options.overrides)
    if options.print_config:
        print(config.to_yaml(settings), end="")
        return
    from sppdet.training import Pipeline  # imports torch, which --help and --print-config do not wait for

    Pipeline(settings, options.keep).run(options.stage or STAGES[-1], options.force)


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or with those of the process; return the exit status."""
    options = parser().parse_intermixed_args(arguments)
    without = " without --force" if options.force else ""
    return common.run(train, options, f"interrupted; run the same command{without} to resume")


if __name__ == "__main__":
    sys.exit(main())
