"""The one exception that is meant for the reader of a terminal."""


class SppdetError(Exception):
    """Something the user can mend. The message is one line: which file or key, what is wrong, what to do.

    Command lines print it as ``error: <message>`` and exit with status 2, as they do with an OSError that names a file;
    everything else is a bug and keeps its traceback.
    """
