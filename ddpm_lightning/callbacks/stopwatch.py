"""Wall time of training, without pauses."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Measures seconds since the start, excluding pauses; synchronizes the device at both ends."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start or the last reset."""
        return self._counted + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self, seconds: float | None = None) -> None:
        """Start or continue, optionally from a number of seconds."""
        self._counted = self._counted if seconds is None else seconds
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stop, after synchronizing the device."""
        if self._since is not None:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self._counted, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause within this context."""
        was_counting = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if was_counting:
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                self.start()
