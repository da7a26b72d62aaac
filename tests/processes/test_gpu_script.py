"""The script that measures a GPU, run through on a CPU at sizes that mean nothing."""

import re
import sys

from tests.helpers.configs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu


def test_a_step_is_measured(monkeypatch, capsys):
    line = ["gpu.py", "step", "--device", "cpu", "--seconds", "0.05", "--tiny"]
    monkeypatch.setattr(sys, "argv", line)
    gpu.main()
    assert re.search(
        r"unet_35m +\w+ +graphs +bf16 +[\d.]+ ms +[\d.]+ host +\d+ images/s +[\d.]+% MFU", capsys.readouterr().out
    )


def test_sampling_and_resuming_are_measured(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the run that is resumed, beside other tests
    for part in ("sample", "resume"):
        monkeypatch.setattr(sys, "argv", ["gpu.py", part, "--device", "cpu", "--seconds", "0.05", "--tiny"])
        gpu.main()
    out = capsys.readouterr().out
    assert out.count("evaluations/s") == 3
    assert out.count("bit-identical") == 2


def test_every_part_of_the_script_is_one(monkeypatch):
    """The arguments of gpu.sh are those that gpu.py knows."""
    lines = re.findall(r"part (\w+)([^;&\n]*)", (ROOT / "benchmarks" / "gpu.sh").read_text())
    assert {name for name, _ in lines} == {"step", "run", "sample", "resume", "fashion"}
    for shape in re.findall(r"--shape (\w+)", " ".join(rest for _, rest in lines)):
        assert shape in gpu.SHAPES
