"""What the commands share: arguments, exit statuses, and how errors, warnings and progress are printed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from sppdet.utils import SppdetError

# The exit status of a command: all is well, the user's mistake, interrupted from the keyboard (128 + SIGINT).
OK, FAILED, INTERRUPTED = 0, 2, 130


def run(
    command: Callable[[argparse.Namespace], int | None], options: argparse.Namespace, interrupted: str = "interrupted"
) -> int:
    """Call ``command(options)`` and print what it logs, and its errors.

    Args:
        command: does the work; returns the exit status, or None for 0.
        options: its arguments.
        interrupted: printed if the user interrupts the command.

    Returns:
        The exit status: that of the command; 2 for `SppdetError` and for an ``OSError`` that names a file; 130
        if interrupted. Other errors are bugs, and raised.
    """
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):  # a name of a file or class may not fit the terminal's encoding
        reconfigure = getattr(stream, "reconfigure", None)  # a stream that replaces the real one may lack it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        with _logging_to_terminal():
            return command(options) or OK
    except SppdetError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return OK
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return FAILED


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


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without a line of our source: warnings are about the user's files."""
    print(f"warning: {message}", file=sys.stderr)


def add_overrides(parser: argparse.ArgumentParser, example: str = "regions.scales=[480,688]") -> None:
    """Add the argument ``overrides``: any number of ``key=value``."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help=f"settings to change, such as {example}",
    )


def choose(program: str, commands: dict[str, str], arguments: list[str]) -> str | int:
    """Return the command that the first argument names, or an exit status if it names none.

    Without a command the usage is printed; on stderr unless the user asked for it.

    Args:
        program: how the user calls the program, such as ``sppdet``.
        commands: name -> what the command does.
        arguments: of the command line.
    """
    first = arguments[0] if arguments else None
    if first in commands:
        return first
    asked = first in ("-h", "--help")
    stream = sys.stdout if asked else sys.stderr
    if first is not None and not asked:
        print(f"error: {program} has no command '{first}'; give one of {', '.join(commands)}", file=stream)
    lines = [f"  {name:<9} {text}" for name, text in commands.items()]
    text = [f"usage: {program} COMMAND ...", "", *lines, "", f"{program} COMMAND --help tells more."]
    print("\n".join(text), file=stream)
    return OK if asked else FAILED


def positive(text: str) -> int:
    """Convert the value of an option that is a positive whole number, as ``type=`` of argparse.

    Examples:
        >>> positive("12")
        12
    """
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return value


def say(text: str, stream: TextIO | None = None) -> None:
    """Print ``text`` on ``stream``, by default stdout, above a progress bar that may be running."""
    from tqdm import tqdm

    stream = stream or sys.stdout
    try:
        tqdm.write(text, file=stream)
        stream.flush()
    except BrokenPipeError:
        # The reader, such as `| head`, has read enough. The work goes on, and nothing may be left to write at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
