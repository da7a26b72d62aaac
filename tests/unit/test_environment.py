"""The record by which processes speak: what is one process's alone is not its children's."""

import os
from pathlib import Path

import pytest

from ddpm_lightning import environment


def test_an_error_file_is_the_jobs_alone(monkeypatch):
    job = environment.for_a_job(Path("error"))
    monkeypatch.setenv("DDPM_LAUNCH", job["DDPM_LAUNCH"])
    parent = os.getpid()
    monkeypatch.setattr(os, "getppid", lambda: parent)
    assert environment.current().error_file == "error"
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)  # a process that the job starts
    assert environment.current().error_file == ""


@pytest.mark.parametrize(
    ("script", "program", "commands"),
    [
        ("/repo/train.py", "train", ["python train.py", "python evaluate.py", "python -m ddpm_lightning report"]),
        ("/bin/ddpm-train", "train", ["ddpm-train", "ddpm-evaluate", "ddpm report"]),
        ("/bin/ddpm", "", ["ddpm train", "ddpm evaluate", "ddpm report"]),
        ("/bin/ddpm", "evaluate", ["ddpm train", "ddpm evaluate", "ddpm report"]),  # evaluate-sweep
        *(
            (script, program, [f"python -m ddpm_lightning {name}" for name in ("train", "evaluate", "report")])
            for script, program in [
                ("/lib/ddpm_lightning/__main__.py", ""),
                ("/lib/ddpm_lightning/cli/train.py", "train"),
            ]
        ),
    ],
)
def test_commands_are_named_as_the_user_starts_them(monkeypatch, script, program, commands):
    monkeypatch.delenv("DDPM_LAUNCH", raising=False)
    environment.update(script=script, program=program)
    assert [environment.command(name) for name in ("train", "evaluate", "report")] == commands


def test_a_rank_of_another_launcher_is_none_of_lightnings(monkeypatch):
    monkeypatch.delenv("DDPM_LAUNCH", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    environment.update(main_process=os.getpid())
    assert not environment.started_by_lightning()
    environment.update(main_process=os.getpid() + 1)
    assert environment.started_by_lightning()
