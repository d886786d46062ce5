"""What the command lines share: arguments and how errors are told."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sppdet.utils import SppdetError


def run(
    command: Callable[[argparse.Namespace], int | None], options: argparse.Namespace, interrupted: str = "interrupted"
) -> int:
    """Call ``command(options)``; the exit status: its own or 0, 2 for user errors, 130 if interrupted."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):  # the name of a file or class need not be text in the terminal's encoding
        if hasattr(stream, "reconfigure"):  # not one that stands in for it
            stream.reconfigure(errors="backslashreplace")
    try:
        with _logging_to_terminal():
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
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2


@contextmanager
def _logging_to_terminal() -> Iterator[None]:
    """Print what the package logs for as long as a command runs."""
    logger, handler = logging.getLogger("sppdet"), _TerminalHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _TerminalHandler(logging.Handler):
    """Prints log messages above progress bars: information on stdout, ``warning: ...`` and ``error: ...`` on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.levelno < logging.WARNING:
                say(record.getMessage())
            else:
                say(f"{record.levelname.lower()}: {record.getMessage()}", sys.stderr)
        except Exception:
            self.handleError(record)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """One line without a place in our source: warnings here are about the user's files."""
    print(f"warning: {message}", file=sys.stderr)


def add_overrides(parser: argparse.ArgumentParser, example: str = "regions.scales=[480,688]") -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help=f"settings to change, such as {example}",
    )


def choose(program: str, commands: dict[str, str], arguments: list[str]) -> str | int:
    """The one of ``commands`` (their names and what they do) that comes first, or the exit status if none does."""
    if arguments and arguments[0] in commands:
        return arguments[0]
    known = bool(arguments) and arguments[0] in ("-h", "--help")
    lines = [f"  {name:<9} {text}" for name, text in commands.items()]
    text = [f"usage: {program} COMMAND ...", "", *lines, "", f"{program} COMMAND --help tells more."]
    print("\n".join(text), file=sys.stdout if known else sys.stderr)
    return 0 if known else 2


def positive(text: str) -> int:
    """The type of an option that counts something."""
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return value


def say(text: str, stream=None) -> None:
    """Print above a progress bar that may be running; ``stream`` is the output if not given."""
    from tqdm import tqdm

    stream = stream or sys.stdout
    try:
        tqdm.write(text, file=stream)
        stream.flush()
    except BrokenPipeError:
        # `| head` has read enough; what is being made is still made, and nothing is left to be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
