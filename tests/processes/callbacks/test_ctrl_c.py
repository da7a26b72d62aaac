"""Ctrl-C, once and twice, at random moments of a run: what has been trained is saved, and the final message says how it resumes."""

import json
import random
import signal

import pytest
import torch

from tests.helpers.configs import TINY
from tests.helpers.forked import start_all

LONG = (
    *(word for word in TINY if not word.startswith(("callbacks.checkpoint", "trainer.max_steps", "trainer.val"))),
    *("logger=none", "trainer.max_steps=100000", "trainer.val_check_interval=10", "hydra.run.dir=run"),
    *(f"callbacks.{name}.every_n_steps=20" for name in ("sample_grid", "raw_grid", "trajectory")),
)
VALIDATED = "run/checkpoints/best.ckpt"  # written at the first validation


@pytest.mark.parametrize("presses", [1, 2])
def test_a_run_that_was_validated_once_is_never_lost(tmp_path, presses):
    draw, starts = random.Random(presses), []
    for i in range(3):
        (tmp_path / str(i)).mkdir()
        behind = [[VALIDATED, draw.uniform(0, 1), signal.SIGINT], [VALIDATED, draw.uniform(0, 0.05), signal.SIGINT]]
        starts.append({"argv": ["train.py", *LONG], "cwd": str(tmp_path / str(i)), "signals": behind[:presses]})
    steps = []
    for i, result in enumerate(start_all(starts)):
        run = tmp_path / str(i) / "run"
        assert result["code"] == 130, result
        assert result["err"].startswith("\nStopping after this step: the checkpoint is saved first. Press Ctrl-C again")
        assert "Traceback" not in result["err"]
        assert "Resume with: python train.py resume=run" in result["out"]
        summary = json.loads((run / "summary.json").read_text())
        steps.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
        assert (summary["status"], summary["steps"]) == ("interrupted", steps[-1])
        assert steps[-1] >= 10
    again = [
        {"argv": ["train.py", "resume=run", f"trainer.max_steps={step + 2}"], "cwd": start["cwd"]}
        for step, start in zip(steps, starts, strict=True)
    ]
    for i, (result, step) in enumerate(zip(start_all(again), steps, strict=True)):
        assert result["code"] == 0, result
        summary = json.loads((tmp_path / str(i) / "run" / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("finished", step + 2)


def test_the_last_figures_alone_are_lost(tmp_path):
    """The last checkpoint is there before them."""
    few = [word for word in LONG if not word.startswith("trainer.max_steps")]
    slow = [
        "trainer.max_steps=10",
        "callbacks.sample_grid.num_samples=10000",
        "callbacks.sample_grid.every_n_steps=null",
    ]
    saved = "run/checkpoints/step_0000010.ckpt"
    signals = [[saved, 0.2, signal.SIGINT], [saved, 0.2, signal.SIGINT]]
    start = {"argv": ["train.py", *few, *slow], "cwd": str(tmp_path), "signals": signals}
    (result,) = start_all([start])
    assert result["code"] == 130, result
    assert result["err"].startswith("\nTraining is complete, and its checkpoint is saved. Press Ctrl-C again")
    assert "Resume with: python train.py resume=run" in result["out"]
    assert not list(tmp_path.glob("run/samples/grid_*"))
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) > 1
    (result,) = start_all([{"argv": ["train.py", "resume=run"], "cwd": str(tmp_path)}])
    assert result["code"] == 0, result
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_run_without_checkpoints_says_so_and_stops(tmp_path):
    none = ["callbacks.checkpoint=null", "callbacks.best_checkpoint=null"]
    argv = [word for word in LONG if not word.startswith("callbacks.checkpoint")]
    signals = [["run/samples/grid_0000020.png", 0, signal.SIGINT]]
    (result,) = start_all([{"argv": ["train.py", *argv, *none], "cwd": str(tmp_path), "signals": signals}])
    assert result["code"] == 130, result
    assert "Warning: no checkpoint will be saved" in result["out"]
    assert result["err"].startswith("\nStopping after this step, without a checkpoint.")
