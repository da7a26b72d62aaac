"""The Tab key, as a shell asks."""

import subprocess

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.scripts import script


def complete(line, *, point=None, breaks="", name="train.py"):
    """What Hydra's protocol gives for a line that ends where the cursor stands."""
    env = {"COMP_LINE": line, "COMP_POINT": str(len(line) if point is None else point), "COMP_WORDBREAKS": breaks}
    result = script(name, "-sc", "query=bash", cwd=ROOT, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize("call", ["python train.py", "python3 ./train.py", f"/usr/bin/python3.11 -u {ROOT}/train.py"])
def test_the_shell_is_answered_however_the_script_is_called(call):
    assert complete(f"{call} schedule=co") == ["schedule=constant", "schedule=cosine"]


def test_the_shell_is_answered_for_the_script_of_its_line_and_the_place_of_its_cursor():
    assert complete("python sample.py format=") == [
        "format=grid",
        "format=html",
        "format=npy",
        "format=npz",
        "format=png",
        "format=tiff",
    ]
    assert complete("python sample.py schedule") == []
    assert complete("python train.py schedule=co seed=1", point=len("python train.py sched")) == [
        "schedule.",
        "schedule=",
    ]
    assert complete("python train.py schedule=co", breaks=" =:") == ["constant", "cosine"]
    assert complete("ls train.pyx ") == []


def test_bash_itself_completes(tmp_path):
    install = script("train.py", "-sc", "install=bash", cwd=tmp_path)
    assert install.returncode == 0
    code = (
        install.stdout + '\nfor COMP_LINE in "python x/train.py schedule=co" "python other.py sch"; do\n'
        "COMP_POINT=${#COMP_LINE}; _ddpm_lightning_complete; echo ${COMPREPLY[@]}.; done; complete -p python3"
    )
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    answers = result.stdout.splitlines()
    assert answers[:2] == ["constant cosine.", "."]  # bash's own word breaks are left as they are
    assert answers[2].endswith("-F _ddpm_lightning_complete python3")
    removed = script("train.py", "-sc", "uninstall=bash", cwd=tmp_path).stdout
    result = subprocess.run(
        ["bash", "-c", f"{install.stdout}\n{removed}\ncomplete -p python"], capture_output=True, text=True, check=False
    )
    assert "no completion" in result.stderr


@pytest.mark.parametrize(("shell", "says"), [("zsh", "bashcompinit"), ("fish", "complete -c $name")])
def test_other_shells_get_lines_of_their_own(shell, says, tmp_path):
    result = script("sample.py", "-sc", f"install={shell}", cwd=tmp_path)
    assert result.returncode == 0
    assert says in result.stdout
