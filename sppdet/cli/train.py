"""``python -m sppdet.train CONFIG [key=value ...]``: every stage that is not done yet."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli
from sppdet.config import STAGES


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="sppdet train", description="Train and evaluate a detector, stage by stage.")
    made.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/demo.yaml")
    made.add_argument("--stage", choices=STAGES, help="stop after this stage")
    again = made.add_mutually_exclusive_group()
    again.add_argument("--force", action="store_true", help="do it again: the --stage given, or all stages")
    again.add_argument(
        "--keep", action="store_true", help="with images added or changed, learn only the classes that are new"
    )
    made.add_argument("--print-config", action="store_true", help="print every setting and stop")
    cli.add_overrides(made)
    return made


def train(options: argparse.Namespace) -> None:
    from sppdet import config  # imported late: --help does not wait for torch

    settings = config.load(options.config, options.overrides)
    if options.print_config:
        print(config.to_yaml(settings), end="")
        return
    from sppdet.training import Pipeline

    Pipeline(settings, keep=options.keep).run(options.stage or STAGES[-1], options.force)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    without = " without --force" if options.force else ""
    return cli.run(train, options, f"interrupted; the same command{without} goes on from here")


if __name__ == "__main__":
    sys.exit(main())
