"""What is said at the start, to whom."""

import io
import sys

import pytest

from ddpm_lightning.cli import starting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    starting.announce.cache_clear()


def test_a_terminal_is_told_once(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for text in (starting.TORCH, starting.TORCH, starting.DATA, starting.SAMPLES):
        starting.announce(text)
        assert len(text) < 80
    assert sys.stderr.getvalue().splitlines() == [starting.TORCH, starting.DATA, starting.SAMPLES]


def test_neither_a_script_nor_a_further_process_is_told(monkeypatch, capsys):
    starting.announce(starting.TORCH)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("LOCAL_RANK", "1")
    starting.announce(starting.DATA)
    assert sys.stderr.getvalue() == ""
