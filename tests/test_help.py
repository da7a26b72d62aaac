"""`--help`, the Tab key, and wrong names: what a person at the command line gets before anything runs."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from ddpm_lightning.cli import menu
from ddpm_lightning.cli.completion import completions
from ddpm_lightning.cli.help import help_text
from tests.conftest import ROOT, script

CONF = ROOT / "conf"
SCRIPTS = ("train", "sample", "evaluate")
DOES = {
    "train": "Train a diffusion model.",
    "sample": "Draw images from a checkpoint.",
    "evaluate": "Compare a checkpoint's samples with its data.",
}


def section(text, group):
    """The lines below a group's own."""
    return re.search(rf"^  \+?{group}=.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)[0]


def files(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def defaults_of(name):
    entries = yaml.safe_load((CONF / f"{name}.yaml").read_text())["defaults"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {group: choice for group, choice in pairs if not group.startswith("override")}


def complete(line, *, point=None, breaks="", name="train.py"):
    """What Hydra's protocol gives for a line that ends where the cursor stands."""
    env = {"COMP_LINE": line, "COMP_POINT": str(len(line) if point is None else point), "COMP_WORDBREAKS": breaks}
    result = script(name, "-sc", "query=bash", cwd=ROOT, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_choice_of_every_group_is_shown_with_what_it_is(name):
    text = help_text(CONF, name, does="", width=100)
    starts = [text.index(f"\n  {group}=") for group in defaults_of(name)]
    assert starts == sorted(starts)  # in the defaults list's order
    for group, default in defaults_of(name).items():
        shown = re.findall(r"^    [* ] (\w+)(.*)", section(text, group), re.MULTILINE)
        assert [choice for choice, _ in shown] == files(group)
        assert re.findall(r"^    \* (\w+)", section(text, group), re.MULTILINE) == [default] * (default is not None)
    plain = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    for key, value in plain.items():
        if not isinstance(value, dict | list):
            assert re.search(rf"^  {key}=\S", text, re.MULTILINE), key


def test_no_group_is_left_out_and_every_file_has_a_line_about_it():
    text = help_text(CONF, "train", does="", width=100)
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        if group == "." or group.startswith("hydra"):
            continue
        assert re.search(rf"^    [* ] {path.stem}\b", section(text, group), re.MULTILINE), path
        assert menu.about(path), f"{path} says nothing of itself: write what it is in its first line, as a comment"


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


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_are_as_wide_as_the_terminal(width):
    text = help_text(CONF, "train", does="Train", width=width)
    long = [line for line in text.splitlines() if len(line) > width]
    assert all(line.startswith("  python ") or len(line.split()) == 1 for line in long)  # commands are left whole
    assert max(map(len, text.splitlines())) > width - 10


def test_a_pipe_that_closes_early_is_no_error(tmp_path):
    command = f"{sys.executable} {ROOT}/train.py --help | head -1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, DOES["train"] + "\n", "")


def test_a_terminal_without_greek_letters_is_no_error(tmp_path):
    result = script("train.py", "--help", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "linear           ? in equal steps" in result.stdout


def test_a_new_file_and_a_new_group_show_by_themselves(tmp_path):
    conf = shutil.copytree(CONF, tmp_path / "conf")
    (conf / "schedule" / "mine.yaml").write_text("# one of my own.\nbeta: 1\n")
    (conf / "extra").mkdir()
    (conf / "extra" / "thing.yaml").write_text("@package _global_\n")
    text = help_text(conf, "train", does="", width=100)
    assert re.search(r"^      mine +one of my own$", section(text, "schedule"), re.MULTILINE)
    assert "\n  +extra=\n      thing\n" in text
    assert completions(conf, "train", [], "schedule=m") == ["schedule=mine"]


def test_where_there_is_no_conf_nothing_is_offered(tmp_path):
    assert menu.groups(tmp_path / "conf", "train") == menu.settings(tmp_path / "conf", "train") == []


def test_environment_variables_are_those_that_the_code_reads():
    told = set(re.findall(r"^  (DDPM_\w+)=", help_text(CONF, "train", does="", width=100), re.MULTILINE))
    code = "".join(path.read_text() for path in (ROOT / "ddpm_lightning").rglob("*.py") if path.name != "help.py")
    named = set(re.findall(r'"(DDPM_\w+)"', code))  # where it is read, or as a constant
    assert told == {"DDPM_TRACEBACK", "DDPM_CACHE", "DDPM_ALLOW_PIPE"}
    of_a_sweep = {"DDPM_JOB", "DDPM_JOBS", "DDPM_SWEPT", "DDPM_SCRIPT", "DDPM_TELL_SWEEP"}
    of_a_run = {"DDPM_MAIN_PROCESS", "DDPM_RUN_NAME", "DDPM_RESUMED"}
    assert named == told | of_a_sweep | of_a_run


KEYS = {
    "sch": ["schedule.", "schedule="],
    "loss": ["loss.", "loss/times=", "loss="],
    "schedule=c": ["schedule=constant", "schedule=cosine"],
    "loss/times=": [f"loss/times={name}" for name in files("loss/times")],
    "sweep=": [f"sweep={name}" for name in files("sweep")],
    "optimizer.l": ["optimizer.lr="],
    "callbacks.ema.": ["callbacks.ema._target_=", "callbacks.ema.decay="],
    "callbacks.ema.decay=": ["callbacks.ema.decay=0.999"],
    "seed=": ["seed=0"],
    "compile=": ["compile=false", "compile=true"],
    "model.checkpointing=": ["model.checkpointing=false", "model.checkpointing=true"],
    "prediction=": ["prediction=epsilon", "prediction=v", "prediction=x0"],
    "data.num_classes=": [],
    "model.in_channels=": [],
    "~optim": ["~optimized_metric", "~optimizer", "~optimizer."],
    "+sched": ["+schedule="],
    "hydra/sweeper=b": ["hydra/sweeper=basic"],
    "hydra.run.d": ["hydra.run.dir="],
    "run_dir=do": ["run_dir=docs/"],
    "-m schedule=linear,co": ["schedule=linear,constant", "schedule=linear,cosine"],
    "schedule=cosine schedule.s": ["schedule.s="],
    "-m schedule=cosine,linear schedule.s": ["schedule.s="],
    "modle=x 'a b=[ optimizer.lr": ["optimizer.lr="],
    "modle": [],
}


@pytest.mark.parametrize("line", KEYS)
def test_a_word_is_completed(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    *words, word = line.split()
    assert completions(CONF, "train", words, word) == sorted(KEYS[line])


@pytest.mark.parametrize("call", ["python train.py", "python3 ./train.py", f"/usr/bin/python3.11 -u {ROOT}/train.py"])
def test_the_shell_is_answered_however_the_script_is_called(call):
    assert complete(f"{call} schedule=co") == ["schedule=constant", "schedule=cosine"]


def test_the_shell_is_answered_for_the_script_of_its_line_and_the_place_of_its_cursor():
    assert complete("python sample.py format=") == ["format=grid", "format=npz", "format=png"]
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


MISTAKES = {
    "train.py model=unet_smal": "model=unet_smal does not exist: did you mean unet_small?",
    "train.py experiment=digit": "experiment=digit does not exist: did you mean digits?",
    "train.py experimnt=digits": "there is no key experimnt: did you mean experiment?",
    "train.py optimiser.lr=1": "there is no key optimiser: did you mean optimizer?",
    "train.py optimizer.lrr=1": "there is no key optimizer.lrr: did you mean lr?",
    "train.py lr=1": "there is no key lr: did you mean optimizer.lr?",
    "train.py trainer.max_step=3": "there is no key trainer.max_step: did you mean max_steps?",
    "train.py callbacks.ema.decai=0.9": "there is no key callbacks.ema.decai: did you mean decay?",
    "train.py callbacks.emma.decay=0.9": "there is no key callbacks.emma: did you mean ema?",
    "train.py modle=unet_small": "there is no key modle: did you mean model?",
    "train.py loss/time=uniform": "there is no key loss/time: did you mean loss/times?",
    "train.py loss.times=uniform": "loss/times is a config group: did you mean loss/times=uniform?",
    "train.py hydra.run.dirr=x": "there is no key hydra.run.dirr: did you mean dir?",
    "train.py ~optimiser": "~optimiser takes nothing away: did you mean optimizer?",
    "train.py ~loss=simpl": "~loss=simpl takes nothing away: did you mean simple?",
    "train.py ~optimizer": "nothing is chosen for optimizer: choose one of its files (adam, adamw",
    "train.py schedule=linear,cosine": "schedule=linear,cosine holds several values: give -m",
    "train.py -m schedule=linear,cosin": "schedule=cosin does not exist: did you mean cosine?",
    "train.py -m modle=a,b": "there is no key modle: did you mean model?",
    "train.py -sc install=csh": "-sc: install=csh will not do: give install= or uninstall= with bash, zsh or fish",
    "sample.py sampler.num_step=3": "there is no key sampler.num_step: did you mean num_steps?",
    "sample.py schedule=linear": "sample.py has no config group schedule: (choose from sampler)",
    "evaluate.py num_sample=3": "there is no key num_sample: did you mean num_samples?",
    "evaluate.py featurs=inception": "there is no key featurs: did you mean features?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_wrong_name_is_told_with_the_nearest_one(line, tmp_path):
    name, *args = line.split()
    result = script(name, *args, cwd=tmp_path, timeout=30)
    assert result.returncode == 1
    (said,) = result.stderr.splitlines()
    assert said.startswith("error: ")
    assert MISTAKES[line] in said
    assert not any(tmp_path.iterdir())
