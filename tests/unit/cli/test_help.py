"""What `--help` shows."""

import re

import pytest
import yaml

from ddpm_lightning.cli import menu
from ddpm_lightning.cli.completion import completions
from ddpm_lightning.cli.help import help_text
from tests.helpers.command_line import CONF, SCRIPTS, files
from tests.helpers.configs import ROOT


def section(text, group):
    """The lines below a group's own."""
    return re.search(rf"^  \+?{group}=.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)[0]


def defaults_of(name):
    entries = yaml.safe_load((CONF / f"{name}.yaml").read_text())["defaults"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {group: choice for group, choice in pairs if not group.startswith("override")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_choice_of_every_group_is_shown_with_what_it_is(name):
    text = help_text([CONF], name, does="", width=100)
    starts = [text.index(f"\n  {group}=") for group in defaults_of(name)]
    assert starts == sorted(starts)  # in the defaults list's order
    for group, default in defaults_of(name).items():
        shown = re.findall(r"^    [* ] (\w+)(.*)", section(text, group), re.MULTILINE)
        parts = menu.parts([CONF], group)
        assert [choice for choice, _ in shown] == [name for name in files(group) if name not in parts] + parts
        assert re.findall(r"^    \* (\w+)", section(text, group), re.MULTILINE) == [default] * (default is not None)
    plain = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    for key, value in plain.items():
        if not isinstance(value, dict | list):
            assert re.search(rf"^  {key}=\S", text, re.MULTILINE), key


def test_no_group_is_left_out_and_every_file_has_a_line_about_it():
    text = "\n\n".join(help_text([CONF], name, does="", width=100) for name in SCRIPTS)
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        if group == "." or group.startswith("hydra"):
            continue
        assert re.search(rf"^    [* ] {path.stem}\b", section(text, group), re.MULTILINE), path
        assert menu.about([CONF], path.relative_to(CONF).with_suffix("").as_posix()), (
            f"{path} says nothing of itself: write what it is in its first line, as a comment"
        )


def test_single_callbacks_are_told_apart_from_whole_choices():
    whole, single = section(help_text([CONF], "train", does="", width=100), "callbacks").split("single parts")
    assert re.findall(r"^    [* ] (\w+)", whole, re.MULTILINE) == ["default", "fid", "points", "post_hoc"]
    assert single.startswith(", to add to one of these: callbacks=[default,generation_metrics]\n")
    assert re.search(r"^      ema +exponential moving average of the weights", single, re.MULTILINE)
    assert [group.name for group in menu.groups([CONF], "train") if menu.parts([CONF], group.name)] == ["callbacks"]
    whole = ["default", "fid", "points", "post_hoc"]
    assert completions([CONF], "train", [], "callbacks=") == [f"callbacks={name}" for name in whole]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_are_as_wide_as_the_terminal(width):
    text = help_text([CONF], "train", does="Train", width=width)
    long = [line for line in text.splitlines() if len(line) > width]
    assert all(line.startswith("  ddpm-") or len(line.split()) == 1 for line in long)  # commands are left whole
    assert max(map(len, text.splitlines())) > width - 10


def test_a_users_own_folder_shows_beside_ours(tmp_path):
    """A new choice, a new group, and a file of a name that we have, which Hydra takes from our folder."""
    for group, name, text in (
        ("schedule", "mine", "# one of my own.\nbeta: 1\n"),
        ("schedule", "linear", "# not this one\n"),
        ("extra", "thing", "@package _global_\n"),
    ):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / f"{name}.yaml").write_text(text)
    confs = [CONF, tmp_path]
    text = help_text(confs, "train", does="", width=100)
    assert re.search(r"^      mine +one of my own$", section(text, "schedule"), re.MULTILINE)
    assert "\n  +extra=\n      thing\n" in text
    assert "not this one" not in text
    assert completions(confs, "train", [], "schedule=m") == ["schedule=mine"]
    assert completions(confs, "train", ["schedule=mine"], "schedule.b") == ["schedule.beta="]


@pytest.mark.parametrize(
    "argv",
    [
        ["--config-dir", "mine", "seed=1"],
        ["seed=1", "-cd", "mine"],
        ["--config-dir=mine"],
        ["hydra.searchpath=[mine]"],
        ["hydra.searchpath=['file://mine']"],
    ],
)
def test_a_users_own_folder_is_found_on_the_command_line(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert menu.folders(argv) == [CONF, tmp_path / "mine"]


def test_environment_variables_are_those_that_the_code_reads():
    told = set(re.findall(r"^  (DDPM_\w+)=", help_text([CONF], "train", does="", width=100), re.MULTILINE))
    code = "".join(path.read_text() for path in (ROOT / "ddpm_lightning").rglob("*.py") if path.name != "help.py")
    named = set(re.findall(r'"(DDPM_\w+)"', code))  # where it is read, or as a constant
    assert told == {"DDPM_TRACEBACK", "DDPM_CACHE", "DDPM_TRUST", "DDPM_ALLOW_PIPE", "DDPM_THEME"}
    assert named == told | {"DDPM_LAUNCH"}
