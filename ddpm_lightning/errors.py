"""Errors that are not the program's own."""

import signal

__all__ = ["Stopped", "UserError", "brief"]


class UserError(Exception):
    """One sentence that names the key, its value and the way out; the entry points print it and exit with 1."""


class Stopped(Exception):
    """A signal asked the run to end, and it has saved what it needs to go on.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def brief(error: BaseException) -> str:
    """Another package's error: its type and at most 240 characters of its text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
