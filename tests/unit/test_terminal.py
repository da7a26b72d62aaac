"""What is shown of work in progress: on a terminal, and in a pipe."""

import itertools
import logging
import sys

import pytest

from ddpm_lightning import terminal
from ddpm_lightning.terminal import Activity, StdoutHandler, hidden
from tests.helpers.screen import Terminal

FIGURES = ["loss 0.0412", "val 0.0398", "1,234 images/s", "3.21 bits/dim"]


def terminal_of(monkeypatch):
    """A terminal of 80 columns, which is both standard output and error from here on."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    for key in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return screen


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("width", [12, 30, 60, 80, 200])
@pytest.mark.parametrize(("done", "total"), [(0, 20), (1250, 2500), (123456, 800000), (3, 0)])
def test_a_line_never_exceeds_the_width(width, done, total, clock):
    activity = Activity("training", total=total, done=0)
    activity.figures = FIGURES
    clock[0] += 3600
    activity.done = done
    line = str(activity.line(width))
    assert len(line) <= width
    assert line.startswith("training")


def test_eighty_columns_hold_what_is_read(clock):
    activity = Activity("training", total=2500)
    activity.figures = FIGURES
    with activity:
        clock[0] += 45
        activity.advance(1250)
        line = str(activity.line(80))
    assert line == "training ━━━━━━━━ 1250/2500  45 s left  loss 0.0412  val 0.0398  1,234 images/s"
    assert str(activity.line(80, colored=False)).startswith("training ━━━━     1250/2500  45 s  loss")


def test_the_innermost_activity_is_shown_and_only_an_outermost_bar_stays(monkeypatch):
    seen = terminal_of(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with Activity("Loading"):
        assert seen.screen == ["Loading ... 0 s"]
    assert seen.screen == []
    with Activity("sampling", total=4) as sampling:
        with Activity("saving", total=2) as saving:
            assert seen.screen[0].startswith("saving")
            saving.advance(2)
        sampling.advance(4)
        print("a line of " + 100 * "x")
        with hidden():
            print("download")
    full = "sampling ━━━━━━━━━━━━━━━━━━━━ 4/4  0 s"
    assert seen.screen == ["a line of " + 100 * "x", "download", full]
    assert "\x1b[3" not in seen.getvalue()
    assert sys.stdout is sys.stderr is seen


def test_colors_are_for_terminals(monkeypatch):
    seen = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", "xterm-256color")
    with Activity("sampling", total=1) as sampling:
        sampling.advance()
    assert "\x1b[32m" in seen.getvalue()  # green


def test_a_dumb_terminal_gets_lines(monkeypatch):
    seen = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with Activity("sampling", total=1):
        pass
    assert seen.getvalue() == ""


def test_a_pipe_gets_lines_at_growing_intervals(capsys, clock):
    with Activity("training", total=28800, unit="steps") as training:
        training.figures = FIGURES[:1]
        for _ in range(28800):
            clock[0] += 0.125
            training.advance()
    with Activity("Loading"):
        clock[0] += 63
    with Activity("sampling", total=3, unit="steps") as short:
        clock[0] += 2
        short.advance(3)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert "\r" not in err
    assert lines[0] == "training: 80/28,800 steps, 59:50 left, loss 0.0412"
    assert lines[-1] == "training: 28,800/28,800 steps, done in 1:00:00, loss 0.0412"
    steps = [int(line.split()[1].partition("/")[0].replace(",", "")) for line in lines[:-1]]
    gaps = [(after - before) / 8 for before, after in itertools.pairwise(steps)]
    assert gaps == sorted(gaps)
    assert (min(gaps), 290 < max(gaps) < 301) == (10, True)
    assert 35 < len(steps) < 55


def test_other_ranks_show_nothing(clock, monkeypatch):
    seen = terminal_of(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Activity("sampling", total=2) as sampling:
        clock[0] += 100
        sampling.advance()
    assert seen.getvalue() == ""


def test_warnings_are_whole_lines_above_the_bar(monkeypatch):
    seen = terminal_of(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    log = logging.Logger("a logger")
    log.addHandler(StdoutHandler())
    with Activity("sampling", total=1):
        log.warning("careful")
        assert seen.screen[0] == "careful"
        assert seen.screen[1].startswith("sampling")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (75, "1:15"), (7384, "2:03:04"), (86400 * 5 + 7200, "5 d 2 h")],
)
def test_durations(seconds, text):
    assert terminal._clock(seconds) == text
