"""The script that measures a GPU, run through on a CPU at sizes that mean nothing."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.configs import ROOT
from tests.helpers.forked import start_all

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu


def commands_of(script, folder):
    """The commands of a script in their order: bash runs it, with a `python` that only notes what it would run."""
    shim, noted = folder / "python", folder / "commands"
    shim.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\necho "$*" >> "{noted}"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "TINY": "1"}
    subprocess.run(["bash", script], check=True, env=environment)
    return [line.split() for line in noted.read_text().splitlines() if line.startswith("gpu.py")]


def forked(command, **_):
    """Run one of our scripts by a fork that has imported everything."""
    name = Path(command[1]).name
    (result,) = start_all([{"argv": [name, *command[2:]], "cwd": str(ROOT), "seconds": 300}])
    assert result["code"] == 0, result["err"]


@pytest.mark.filterwarnings("ignore")  # of the peers, and of their compilation
def test_the_script_runs_from_its_first_line_to_its_last(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=forked, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # without minutes of C++
    commands = commands_of(ROOT / "benchmarks" / "gpu.sh", tmp_path)
    for command in commands:
        monkeypatch.setattr(sys, "argv", [*command, "--device", "cpu"])
        gpu.main()
    lines = capsys.readouterr().out.splitlines()
    steps = [command for command in commands if command[1] == "step"]
    measured = r"\w+ +\w+ +\w+ +(bf16|tf32) +[\d.]+ ms +[\d.]+ host +\d+ images/s +[\d.]+% MFU"
    assert len(steps) >= 12
    assert len([line for line in lines if re.match(measured, line)]) == len(steps)
    assert len([line for line in lines if "train.py compile=" in line]) == 4
    assert len([line for line in lines if "evaluations/s" in line]) == 3
    assert len([line for line in lines if line.endswith("bit-identical")]) == 2
