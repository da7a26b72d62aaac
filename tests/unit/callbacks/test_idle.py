"""The warning of a GPU that waits, with a program in the driver's place that answers as it does."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from ddpm_lightning.callbacks.idle import IdleWatch


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """`nvidia-smi`, which gives these answers in turn, and refuses any GPU but the one."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1a-2b"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def give(*lines):
        (tmp_path / "answers").write_text("\n".join(lines))
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\npath = Path({str(tmp_path / 'answers')!r})\n"
            "first, *rest = path.read_text().split('\\n')\npath.write_text('\\n'.join(rest))\n"
            "assert sys.argv[-2:] == ['-i', 'GPU-1a-2b']\nprint(first)\n"
        )
        program.chmod(0o755)

    return give


def looks(caplog, steps, first=0):
    watch = IdleWatch(torch.device("cuda"), first)
    for step in steps:
        watch.look(step)
    watch.close()
    return [record.getMessage() for record in caplog.records]


def test_a_gpu_that_waits_is_named_once(answers, caplog):
    answers("30", "50", "40", "0", "0", "0")
    (warning,) = looks(caplog, range(50, 500, 50))
    assert warning.startswith("the GPU idles 60% of the time: try a larger data.batch_size")


@pytest.mark.parametrize("busy", [("90", "60", "99"), ("67", "67", "67"), ("[N/A]", "[N/A]", "[N/A]")])
def test_a_gpu_that_works_is_not(answers, caplog, busy):
    answers(*busy, *busy)
    assert looks(caplog, range(50, 250, 50)) == []


def test_nothing_is_said_before_200_steps_of_this_start(answers, caplog):
    answers(*["0"] * 9)
    assert looks(caplog, range(1050, 1200, 50), first=1000) == []
    answers(*["0"] * 9)
    assert len(looks(caplog, range(1050, 1300, 50), first=1000)) == 1


def test_without_the_program_nothing_is_said(monkeypatch, tmp_path, caplog, answers):
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert looks(caplog, range(50, 500, 50)) == []
