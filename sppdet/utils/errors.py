"""The exception whose message is shown to the user instead of a traceback."""


class SppdetError(Exception):
    """An error that the user can correct.

    The message is one line: which file or setting, what is wrong with it, and what to do. Commands print it as
    ``error: <message>`` and exit with status 2, as they do for an OSError that names a file. Every other exception is
    a bug and keeps its traceback.
    """
