"""What a user sees of work in progress: one live line on a terminal, a line now and then in a pipe or a log file."""

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ddpm_lightning import environment

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Activity", "StdoutHandler", "hidden", "loading"]

_FIRST, _LONGEST = 10.0, 300.0  # seconds until the first line of a log file, and between two lines at most
_READ = 5  # parts that a narrower bar makes room for: count, time left and three figures
_LAYOUTS = ((2, 20), (2, 8), (1, 8), (1, 4))  # spaces between the parts, and the bar's width: the first that fits


class Activity:
    """Work in progress, shown on standard error by the first process of a run.

    A terminal has one line, which shows the innermost activity, never exceeds the terminal's width, and is redrawn by a
    thread. The last state of a bar stays on the screen, unless the bar was part of another activity. Elsewhere, a line is
    written after ten seconds, and then at intervals that grow up to five minutes.

    Args:
        what: the work, such as "sampling".
        total: the number of units; None for no bar, and no lines in a log file.
        unit: the unit, such as "steps".
        done: units that were done before.
    """

    def __init__(self, what: str, *, total: int | None = None, unit: str = "", done: int = 0):
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.figures: list[str] = []  # such as "loss 0.0312", the most important first
        self._done_before, self._began = done, time.monotonic()
        self._next_line = self._began + _FIRST

    def __enter__(self) -> "Activity":
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> "Activity":
        """Show it, until `close`."""
        if environment.is_first():
            _display.activities.append(self)
            _display.start()
        return self

    def advance(self, units: int = 1) -> None:
        """Count units that are done."""
        self.done += units
        if (
            self.total is not None
            and time.monotonic() >= self._next_line
            and self in _display.activities
            and not _display.is_live
        ):
            self._write(self._left())

    def close(self) -> None:
        """Remove it from the display."""
        if self not in _display.activities:
            return
        _display.activities.remove(self)
        if _display.is_live:
            _display.stop(last=self if self.total is not None and not _display.activities else None)
            _display.start()
        elif self.total is not None and self._seconds() >= _FIRST:
            self._write(f"done in {_clock(self._seconds())}")

    def line(self, width: int, *, colored: bool = True, encoding: str = "utf-8") -> "Text":
        """What a terminal shows: the last parts are left out if they do not fit in this width."""
        from rich.text import Text

        if self.total is None:
            return Text(f"{self.what} ... {_clock(self._seconds())}"[:width])
        is_open = self in _display.activities
        when = self._left() if is_open else _clock(self._seconds())
        parts = [f"{self.done:>{len(str(self.total))}}/{self.total}", when, *self.figures]
        for gap, bar in _LAYOUTS:
            fits = [
                n for n in range(len(parts) + 1) if len(self.what) + bar + 2 + len((" " * gap).join(parts[:n])) <= width
            ]
            if fits and fits[-1] >= min(len(parts), _READ):
                break
        if not any(fits):
            return Text(f"{self.what} {parts[0]}"[:width])
        mark = "━" if encoding.startswith("utf") else "-"
        filled = bar * min(self.done, self.total) // max(self.total, 1)
        return Text.assemble(
            (f"{self.what} ", "bold"),
            (mark * filled, "cyan" if is_open else "green"),
            ((mark if colored else " ") * (bar - filled), "bright_black"),
            " " + (" " * gap).join(parts[: fits[-1]]),
        )

    def _write(self, when: str) -> None:
        """Write the line of a log file."""
        self._next_line = time.monotonic() + min(max(_FIRST, self._seconds() / 10), _LONGEST)
        count = f"{self.done:,}/{self.total:,} {self.unit}".rstrip()
        if sys.stderr is not None:
            print(f"{self.what}: {', '.join([count, when, *self.figures])}", file=sys.stderr, flush=True)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _left(self) -> str:
        """The time left, at the speed so far; the time so far where nothing is done yet."""
        new = self.done - self._done_before
        left = self._seconds() / new * ((self.total or 0) - self.done) if new else None
        return _clock(self._seconds()) if left is None else f"{_clock(left)} left"


class _Display:
    """The live line of a terminal: rich draws it, and whatever is printed meanwhile appears above."""

    def __init__(self) -> None:
        self.activities: list[Activity] = []  # the innermost one last
        self._live: Any = None
        self._streams: tuple[Any, Any] | None = None  # standard output and error, while they are replaced

    @property
    def is_live(self) -> bool:
        """Whether a terminal shows the activities."""
        return self._live is not None

    def start(self) -> None:
        """Show the activities, if there are some and standard error is a terminal."""
        if self._live is not None:
            self._live.refresh()
            return
        if not self.activities or sys.stderr is None or not sys.stderr.isatty():
            return
        from rich.file_proxy import FileProxy
        from rich.live import Live

        console = _console()
        if console.is_dumb_terminal:
            return
        self._live = Live(
            get_renderable=lambda: self._line(console),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (
            FileProxy(console, stream) if stream is not None and stream.isatty() else stream for stream in self._streams
        )

    def stop(self, *, last: Activity | None = None) -> None:
        """Remove the line, or leave the last state of an activity."""
        if self._live is not None:
            live, self._live = self._live, None
            self.restore_streams()
            live.stop()
            if last is not None:
                live.console.print(self._fitted(last, live.console))

    def restore_streams(self) -> None:
        """Let standard output and error be what they were."""
        if self._streams is not None:
            (sys.stdout, sys.stderr), self._streams = self._streams, None

    def forget(self) -> None:
        """In a forked process, such as a data worker: the line and its thread are the parent's."""
        self.restore_streams()
        self.activities, self._live = [], None

    def _line(self, console: Any) -> Any:
        activities = [*self.activities]  # the main thread may close one meanwhile
        return self._fitted(activities[-1], console) if activities else ""

    @staticmethod
    def _fitted(activity: Activity, console: Any) -> Any:
        return activity.line(console.width, colored=not console.no_color, encoding=console.encoding)


def _console() -> Any:
    from rich.console import Console

    class Plain(Console):
        """Breaks no lines of others, and does not hide the cursor, which a killed process would leave hidden."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*objects, **{"soft_wrap": True, **options})

        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Plain(stderr=True, highlight=False)


_display = _Display()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_display.forget)


@contextmanager
def hidden() -> Iterator[None]:
    """Leave the terminal to another library's own progress bar, such as that of a download."""
    _display.stop()
    try:
        yield
    finally:
        _display.start()


@contextmanager
def loading() -> Iterator[None]:
    """Import PyTorch and Lightning in this context, without garbage collection: what they define stays until the process ends.

    Otherwise Python would walk it once more at the end, for seconds in which the terminal is silent.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        with Activity("Loading PyTorch"):
            yield
    finally:
        gc.freeze()
        gc.enable()


class StdoutHandler(logging.StreamHandler[Any]):
    """Logs to what is standard output at the time, above the live line."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stdout


def _clock(seconds: float) -> str:
    """A duration: 9 s, 1:15, 2:03:04 or 5 d 2 h."""
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if not minutes:
        return f"{int(seconds)} s"
    if not hours:
        return f"{minutes}:{int(seconds) % 60:02}"
    return f"{hours}:{minutes % 60:02}:{int(seconds) % 60:02}" if not days else f"{days} d {hours % 24} h"
