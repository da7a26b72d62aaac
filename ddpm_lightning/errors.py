"""Errors that are not the program's own."""

import signal

__all__ = ["Diverged", "Stopped", "UserError", "brief"]


class UserError(Exception):
    """One sentence that names the key, its value and the way out; the entry points print it and exit with 1."""


class Diverged(UserError):
    """A number of the training, its loss or what follows from it, became NaN or infinite.

    Args:
        what: the number.
        step: the optimiser step after which it was so.
        way_out: the rest of the sentence.
    """

    def __init__(self, what: str, step: int, way_out: str):
        super().__init__(f"{what} became NaN or infinite at step {step}; {way_out}")
        self.what, self.step = what, step


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
