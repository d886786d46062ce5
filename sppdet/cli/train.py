"""``python -m sppdet.train IMAGES [key=value ...]``: train a detector on labelled images, or by a config."""

from __future__ import annotations

import argparse
import sys

from sppdet import config
from sppdet.cli import common
from sppdet.config import PRESETS, STAGES


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="sppdet train",
        description="Train a detector on a folder of labelled images and measure it. Stages that are done are skipped.",
        epilog="Images are divided into those to learn from and those to measure on, unless the folder does it.",
    )
    arguments.add_argument(
        "source", metavar="IMAGES", help="a folder of labelled images; or a YAML file of settings, as in configs/"
    )
    arguments.add_argument(
        "--preset", choices=PRESETS, help="for a folder: less time or higher accuracy (default: default)"
    )
    arguments.add_argument(
        "--output", metavar="RUN", help="folder of the results (default: runs/NAME for a folder NAME)"
    )
    arguments.add_argument(
        "--folds",
        type=common.positive,
        default=0,
        metavar="K",
        help="measure by cross-validation, so that the model learns from all images",
    )
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
    if options.print_config:
        settings = config.settings_for(options.source, options.overrides, options.preset, options.output)
        print(config.to_yaml(settings), end="")
        return
    from sppdet import training  # imports torch, which --help and --print-config do not wait for

    last = options.stage or STAGES[-1]
    if options.folds:  # before the settings are chosen, which takes up to a minute
        training.check_beside_folds(options.keep, options.force, last)
    settings = training.settings_following_data(
        options.source, options.overrides, options.preset, options.output, options.folds
    )
    training.run_training(settings, keep=options.keep, folds=options.folds, last=last, force=options.force)


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or with those of the process; return the exit status."""
    options = common.parse(parser(), arguments)
    without = " without --force" if options.force else ""
    return common.run(train, options, f"interrupted; run the same command{without} to resume")


if __name__ == "__main__":
    sys.exit(main())
