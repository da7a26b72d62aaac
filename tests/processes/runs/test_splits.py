"""Batches of 32 images in one, two and four processes: the same draws, and losses that agree but for rounding."""

import csv
import shutil

import pytest

from tests.helpers.configs import NO_FIGURES, TINY
from tests.helpers.scripts import script

STEPS = 50
GIVEN = [
    *(
        text
        for text in TINY
        if not text.startswith(("data.batch_size", "trainer.max_steps", "trainer.log", "trainer.val", "callbacks"))
    ),
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=25",
    "callbacks.checkpoint.every_n_train_steps=25",
    "callbacks.checkpoint.save_top_k=-1",
    "data.num_classes=10",
    "data.flip=true",
    "logger=none",
    *NO_FIGURES,
]


def train(cwd, name, processes, *overrides):
    several = [f"trainer.devices={processes}", *(["trainer.strategy=ddp"] if processes > 1 else [])]
    result = script(
        "train.py", *GIVEN, f"data.batch_size={32 // processes}", *several, f"hydra.run.dir={name}", *overrides, cwd=cwd
    )
    assert result.returncode == 0, result.stderr
    return losses(cwd / name)


def losses(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_the_same_training_in_one_two_and_four_processes(tmp_path):
    whole = train(tmp_path, "one", 1, f"trainer.max_steps={STEPS}")
    assert len(whole) == STEPS
    assert whole[-1] < 0.9 * whole[0]
    halves = train(tmp_path, "two", 2, f"trainer.max_steps={STEPS}")
    assert halves == pytest.approx(whole, rel=1e-5)

    # Two processes are killed half-way, and one or four go on.
    for path in (tmp_path / "two" / "checkpoints").glob("*.ckpt"):
        if path.name != "step_0000025.ckpt":
            path.unlink()
    (tmp_path / "two" / "summary.json").unlink()
    for processes in (1, 4):
        shutil.copytree(tmp_path / "two", tmp_path / f"on_{processes}")
        change = [f"trainer.devices={processes}", f"data.batch_size={32 // processes}"]
        result = script("train.py", f"resume=on_{processes}", *change, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert losses(tmp_path / f"on_{processes}") == pytest.approx(whole, rel=1e-5)
