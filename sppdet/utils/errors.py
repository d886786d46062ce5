"""The exception whose message is shown to the user instead of a traceback."""

_LONGEST_LINE = 1500  # characters; a file may hold a value of any length


class SppdetError(Exception):
    """An error that the user can correct.

    The message is one line: which file or setting, what is wrong with it, and what to do. Commands print it as
    ``error: <message>`` and exit with status 2, as they do for an OSError that names a file. Every other exception is
    a bug and keeps its traceback. The middle of a long line is left out.
    """

    def __init__(self, message: str = ""):
        super().__init__("\n".join(map(_shortened, message.split("\n"))))


def _shortened(line: str) -> str:
    """Return a line without the middle of a long one; the end says what to do.

    Examples:
        >>> len(_shortened(9000 * "9" + "; give a smaller number"))
        1500
    """
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[: half - 5]} ... {line[-half:]}"
