"""What the commands share: arguments, exit statuses, and how errors, warnings and progress are printed."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TextIO

from sppdet.utils import SppdetError

# The exit status of a command: all is well, the user's mistake, interrupted from the keyboard (128 + SIGINT),
# and ended by SIGTERM (128 + SIGTERM).
OK, FAILED, INTERRUPTED, TERMINATED = 0, 2, 130, 143
_AGAIN = 0.05  # seconds after which a signal that was dropped is sent again


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which takes the same care as an interruption from the keyboard."""


def run(
    command: Callable[[argparse.Namespace], int | None], options: argparse.Namespace, interrupted: str = "interrupted"
) -> int:
    """Call ``command(options)`` and print what it logs, and its errors.

    Args:
        command: does the work; returns the exit status, or None for 0.
        options: its arguments.
        interrupted: printed if the user interrupts the command.

    Returns:
        The exit status: that of the command; 2 for `SppdetError`, for an ``OSError`` that names a file and where memory
        is short; 130 if interrupted, 143 if ended by SIGTERM. Other errors are bugs, and raised.
    """
    warnings.showwarning = _show_warning
    warnings.filterwarnings("always", module=r"PIL\.")  # by default one file's warning silences those of the others
    # joblib replaces a process whose memory grows, which changes no result.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
    _say_once.cache_clear()
    for stream in (sys.stdout, sys.stderr):  # a name of a file or class may not fit the terminal's encoding
        reconfigure = getattr(stream, "reconfigure", None)  # a stream that replaces the real one may lack it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        with _logging_to_terminal(), _sigterm_raises(), _dropped_interruptions_come_again():
            return command(options) or OK
    except SppdetError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, SystemError) as error:
        interruption = interruption_of(error)
        print(f"\n{interrupted}", file=sys.stderr)
        return TERMINATED if isinstance(interruption, _Terminated) else INTERRUPTED
    except MemoryError as error:
        print(f"error: not enough memory ({error or 'none left'}); see memory_gb, workers and scales", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return OK
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return FAILED


def interruption_of(error: BaseException) -> KeyboardInterrupt:
    """Return the interruption that an exception is, or that is its cause; raise another exception again.

    Compiled code that is interrupted ends in a ``SystemError``, as it "returned a result with an exception set".
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return cause
        cause = cause.__cause__
    raise error


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `_Terminated` in the main thread for as long as a command runs."""

    def terminate(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only there can it be set
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _dropped_interruptions_come_again() -> Iterator[None]:
    """Send a signal again whose exception Python has dropped, as it does in destructors, from which none is raised."""
    before, timers = sys.unraisablehook, list[threading.Timer]()

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt) or not hasattr(signal, "pthread_kill"):
            before(dropped)
            return
        number = signal.SIGTERM if issubclass(dropped.exc_type, _Terminated) else signal.SIGINT
        # Later, as from within this hook nothing is raised either.
        timers.append(threading.Timer(_AGAIN, signal.pthread_kill, (threading.main_thread().ident, number)))
        timers[-1].daemon = True
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


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
    """Print a warning as one line, once, without a line of our source: warnings are about the user's files.

    Those of Pillow do not say which file; it is the one that this thread reads.
    """
    images = sys.modules.get("sppdet.data.images")
    file_read = images.being_read.get() if images is not None else None
    text = " ".join(str(message).split())
    _say_once(f"warning: {file_read}: {text}" if file_read and str(file_read) not in text else f"warning: {text}")


@cache
def _say_once(line: str) -> None:
    say(line, sys.stderr)


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse arguments; options may stand between the others, and what follows ``--`` are none.

    Args:
        parser: of the command.
        arguments: None for those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--" in arguments:  # parse_intermixed_args would take a file called -x.jpg for an option all the same
        end = arguments.index("--")
        files = [f"./{text}" if text.startswith("-") else text for text in arguments[end + 1 :]]
        arguments = [*arguments[:end], *files]
    return parser.parse_intermixed_args(arguments)


def add_overrides(parser: argparse.ArgumentParser, example: str = "regions.scales=[480,688]") -> None:
    """Add the argument ``overrides``: any number of ``key=value``."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without it, argparse calls this argument required when another one is missing
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
        nearest = difflib.get_close_matches(first, commands, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"give one of {', '.join(commands)}"
        print(f"error: {program} has no command '{first}'; {hint}", file=stream)
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
