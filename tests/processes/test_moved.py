"""A run that was made before classes moved is resumed after it."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.configs import ROOT
from tests.helpers.scripts import script

BEFORE = ROOT / "tests" / "fixtures" / "run_before_the_wings"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BEFORE, tmp_path / "run"))


def test_it_is_resumed(folder):
    done = script("train.py", f"resume={folder}", "trainer.max_steps=14", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 14
    assert state["config"]["logger"]["tensorboard"]["_target_"] == "ddpm_lightning.loggers.TensorBoardLogger"
