"""What the command lines share: arguments and how errors are told."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable

from sppdet.errors import SppdetError

STAGES = ("pretrain", "proposals", "end_to_end", "maps", "finetune", "svm", "bbox", "evaluate")


def run(
    command: Callable[[argparse.Namespace], int | None], options: argparse.Namespace, interrupted: str = "interrupted"
) -> int:
    """Call ``command(options)``; the exit status: its own or 0, 2 for user errors, 130 if interrupted."""
    warnings.showwarning = _show_warning
    try:
        return command(options) or 0
    except SppdetError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """One line without a place in our source: warnings here are about the user's files."""
    print(f"warning: {message}", file=sys.stderr)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings to change, such as regions.scales=[480,688]",
    )
