"""What becomes of the output when nobody reads it any more, as of `python train.py | head`."""

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

__all__ = ["outlive_readers"]


def outlive_readers() -> None:
    """Go on without output, in this process and those that it starts, once the reader of a pipe has ended: a run is not lost."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            for name in ("write", "flush"):
                setattr(stream, name, _guarded(getattr(stream, name), stream))


def _guarded(method: Callable[..., Any], stream: TextIO) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return method(*args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return None

    return call
