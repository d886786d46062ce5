"""What the commands share: exit statuses, how errors and log messages are printed, the choice of a command."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
import warnings

import pytest
from PIL import Image
from tqdm import tqdm

from sppdet.cli import common as cli
from sppdet.data.images import read_image
from sppdet.utils.errors import SppdetError

NO_OPTIONS = argparse.Namespace()


def failing(error: BaseException):
    def command(options: argparse.Namespace) -> None:
        raise error

    return command


def interrupted_in_compiled_code() -> SystemError:
    error = SystemError("CPUDispatcher(<function segment>) returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    return error


# Exit statuses and errors


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (2, 2)])
def test_the_exit_status_is_that_of_the_command(returned, status):
    assert cli.run(lambda options: returned, NO_OPTIONS) == status


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (SppdetError("a.jpg: is empty; replace it"), 2, "error: a.jpg: is empty; replace it\n"),
        (SppdetError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (OSError(28, "No space left on device", "runs/x"), 2, "error: runs/x: No space left on device\n"),
        (KeyboardInterrupt(), 130, "\nstopped, go on later\n"),
        (interrupted_in_compiled_code(), 130, "\nstopped, go on later\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_errors_of_the_user_and_the_system_are_one_line(capsys, error, status, text):
    assert cli.run(failing(error), NO_OPTIONS, interrupted="stopped, go on later") == status
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize("error", [OSError("without a file"), ValueError("a bug"), SystemError("another")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        cli.run(failing(error), NO_OPTIONS)


# Warnings and log messages


def test_log_messages_are_printed_while_a_command_runs(capsys):
    logger = logging.getLogger("sppdet.somewhere")
    level = logging.getLogger("sppdet").level

    def command(options: argparse.Namespace) -> None:
        logger.debug("not shown")
        logger.info("%d images", 3)
        logger.warning("a file is missing")
        logger.error("a file is broken")
        logging.getLogger("another.package").warning("not ours")

    assert cli.run(command, NO_OPTIONS) == 0
    out, err = capsys.readouterr()
    assert out == "3 images\n"
    assert err.startswith("warning: a file is missing\nerror: a file is broken\n") and "warning: not ours" not in err
    logger.info("nobody asked")
    assert capsys.readouterr().out == "" and logging.getLogger("sppdet").level == level


def test_log_messages_are_printed_once_by_a_command_within_a_command(capsys):
    def inner(options: argparse.Namespace) -> None:
        logging.getLogger("sppdet").info("inside")

    cli.run(inner, NO_OPTIONS)
    cli.run(inner, NO_OPTIONS)
    assert capsys.readouterr().out == "inside\ninside\n"


def test_log_messages_stand_above_a_progress_bar(capsys):
    def command(options: argparse.Namespace) -> None:
        with tqdm(total=3, file=sys.stderr) as bar:
            bar.update()
            logging.getLogger("sppdet").info("between")

    cli.run(command, NO_OPTIONS)
    out, err = capsys.readouterr()
    assert out == "between\n"
    assert "\r" + " " * 10 in err  # the bar's line is blanked before, and drawn again after


def test_warnings_are_one_line_without_a_line_of_our_source(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back after the test
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.run(lambda options: warnings.warn("a.xml: no objects", stacklevel=1), NO_OPTIONS)
    assert capsys.readouterr().err == "warning: a.xml: no objects\n"


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_within_a_destructor_is_not_lost(capsys, number, status):
    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def command(options: object) -> None:
        Closing()
        time.sleep(30)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        assert cli.run(command, NO_OPTIONS) == status
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_that_joblib_replaces_a_process_that_grew_is_not_said(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    text = "A worker stopped while some jobs were given to the executor. This can be caused by a too short timeout."
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.run(lambda options: warnings.warn(text, UserWarning, stacklevel=1), NO_OPTIONS)
    assert capsys.readouterr().err == ""


def test_text_goes_to_the_stream_that_is_named(capsys):
    cli.say("result")
    cli.say("error: trouble", sys.stderr)
    assert capsys.readouterr() == ("result\n", "error: trouble\n")


def test_a_reader_that_has_read_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        cli.say("first", stream)
        cli.say("second", stream)
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev


# Arguments


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "²"])
def test_only_positive_whole_numbers_count(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a positive whole number"):
        cli.positive(text)


def test_what_follows_two_dashes_is_no_option():
    parser = argparse.ArgumentParser()
    parser.add_argument("images", nargs="*")
    parser.add_argument("--json", action="store_true")
    options = cli.parse(parser, ["a.jpg", "--json", "b.jpg", "--", "-x.jpg", "c.jpg"])
    assert options.json and options.images == ["a.jpg", "b.jpg", "./-x.jpg", "c.jpg"]


def test_overrides_are_all_that_is_left():
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    cli.add_overrides(parser, "nms=0.4")
    assert parser.parse_args(["x", "a=1", "b=2"]).overrides == ["a=1", "b=2"]
    assert "such as nms=0.4" in parser.format_help()


COMMANDS = {"train": "learns", "detect": "looks"}
USAGE = """\
usage: tool COMMAND ...

  train     learns
  detect    looks

tool COMMAND --help tells more.
"""


@pytest.mark.parametrize("arguments", [["train"], ["detect", "train", "--help"]])
def test_the_first_argument_is_the_command(capsys, arguments):
    assert cli.choose("tool", COMMANDS, arguments) == arguments[0]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_usage_is_printed_on_request(capsys, option):
    assert cli.choose("tool", COMMANDS, [option]) == 0
    assert capsys.readouterr() == (USAGE, "")


def test_usage_without_a_command_is_an_error(capsys):
    assert cli.choose("tool", COMMANDS, []) == 2
    assert capsys.readouterr() == ("", USAGE)


@pytest.mark.parametrize(
    ("command", "remedy"), [("detekt", "did you mean 'detect'?"), ("xyz", "give one of train, detect")]
)
def test_an_unknown_command_is_named(capsys, command, remedy):
    assert cli.choose("tool", COMMANDS, [command, "a.jpg"]) == 2
    assert capsys.readouterr() == ("", f"error: tool has no command '{command}'; {remedy}\n" + USAGE)


def test_settings_are_not_called_required(capsys):
    parser = argparse.ArgumentParser("tool")
    parser.add_argument("source", metavar="IMAGES")
    cli.add_overrides(parser)
    with pytest.raises(SystemExit):
        parser.parse_intermixed_args([])
    assert capsys.readouterr().err.endswith("the following arguments are required: IMAGES\n")


def test_sigterm_ends_a_command_as_the_keyboard_does(capsys):
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def command(options: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)

    assert cli.run(command, NO_OPTIONS, interrupted="stopped, go on later") == 143
    assert capsys.readouterr().err == "\nstopped, go on later\n" and cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_too_little_memory_is_one_line(capsys):
    assert cli.run(failing(MemoryError("Unable to allocate 1.1 PiB")), NO_OPTIONS) == 2
    assert capsys.readouterr().err.startswith("error: not enough memory (Unable to allocate 1.1 PiB); ")


def test_warnings_of_pillow_name_their_files_and_come_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    for name in ("a.png", "b.png"):
        Image.new("L", (10, 10)).save(tmp_path / name)

    def command(options: argparse.Namespace) -> None:
        for name in ("a.png", "b.png", "a.png"):
            read_image(tmp_path / name)

    with warnings.catch_warnings():
        assert cli.run(command, NO_OPTIONS) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {tmp_path / 'a.png'}: Image size (100 pixels) exceeds limit of 90 pixels")
    assert second.startswith(f"warning: {tmp_path / 'b.png'}: Image size")
