"""`--help`, as a person at the command line gets it."""

import os
import subprocess
import sys
import time

import pytest

from tests.helpers.command_line import SCRIPTS
from tests.helpers.configs import ROOT
from tests.helpers.scripts import script

DOES = {
    "train": "Train a diffusion model.",
    "sample": "Sample images from a checkpoint.",
    "evaluate": "Compare a checkpoint's samples with its data.",
}


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["-m", "schedule=linear,cosin", "--help", "nonsense=["]])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_comes_at_once_whatever_else_is_typed(name, args, tmp_path):
    started = time.monotonic()
    result = script(f"{name}.py", *args, cwd=tmp_path, env={"COLUMNS": "80"})
    print(f"{time.monotonic() - started:.2f} s")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(DOES[name] + "\n")
    for said in (f"python {name}.py --cfg job", f"python {name}.py --hydra-help", "DDPM_TRACEBACK=1", "DDPM_CACHE"):
        assert said in result.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("args", [["--help"], ["-sc", "query=bash"]])
def test_nothing_heavy_is_imported(args, tmp_path):
    code = (
        f"import sys, runpy; sys.argv = ['{ROOT}/train.py', *{args}]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'lightning', 'wandb', 'numpy', 'matplotlib'} & {*sys.modules}))"
    )
    env = {**os.environ, "COMP_LINE": "python train.py optimizer."}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, check=True
    )
    assert said.stdout.endswith("HEAVY []\n")


def test_a_pipe_that_closes_early_is_no_error(tmp_path):
    command = f"{sys.executable} {ROOT}/train.py --help | head -1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, DOES["train"] + "\n", "")


def test_a_terminal_without_greek_letters_is_no_error(tmp_path):
    result = script("train.py", "--help", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "linear           ? increases linearly" in result.stdout


@pytest.mark.parametrize(
    "line", ["sample.py ckpt_path=nowhere.ckpt", "train.py resume=nowhere", "evaluate.py sampler=plms"]
)
def test_a_terminal_hears_of_pytorch_before_it_is_imported(line, tmp_path):
    """What is refused before that says nothing of it."""
    name, *args = line.split()
    code = (
        "import io, sys, runpy\n"
        "class Terminal(io.StringIO):\n"
        "    isatty = lambda self: True\n"
        "    def write(self, text): print(repr(text), 'torch' in sys.modules)\n"
        f"sys.argv, sys.stderr = ['{ROOT / name}', *{args}], Terminal()\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: print(end)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    if name == "sample.py":
        assert "'Loading PyTorch ... 0 s' False\n" in said
        assert "'Loading the checkpoint ... 0 s' True\n" in said
    else:
        assert "PyTorch" not in said
        assert "\nerror: " in said
