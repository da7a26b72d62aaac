"""A run that was made before classes moved is sampled, resumed and read after it."""

import shutil
from pathlib import Path

import pytest
import torch

from ddpm_lightning import load_denoiser, runs
from ddpm_lightning.moved import _MOVED, _OLD, rename_targets
from ddpm_lightning.report.reading import read_runs
from tests.conftest import config_of, script

BEFORE = Path(__file__).parent / "fixtures" / "run_before_the_wings"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BEFORE, tmp_path / "run"))


def test_its_checkpoint_is_sampled(folder, tmp_path):
    denoiser = load_denoiser(folder / "checkpoints" / "last.ckpt")
    assert sum(p.numel() for p in denoiser.parameters()) == 2_977
    runs.sample(
        config_of(
            f"ckpt_path={folder}", "num_samples=4", "sampler.num_steps=3", f"out_dir={tmp_path}/out", name="sample"
        )
    )
    assert (tmp_path / "out" / "grid.png").exists()


def test_it_is_resumed(folder):
    done = script("train.py", f"resume={folder}", "trainer.max_steps=14", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 14
    assert state["config"]["logger"]["tensorboard"]["_target_"] == "ddpm_lightning.loggers.TensorBoardLogger"


def test_it_is_reported(folder):
    (run,) = read_runs(folder)
    assert run.config["logger"]["tensorboard"]["_target_"] == "ddpm_lightning.loggers.TensorBoardLogger"


def test_every_new_name_is_there():
    from ddpm_lightning.runs.trust import _class

    assert all(callable(_class(new)) for new in _MOVED.values())
    assert not any(_OLD.search(new) for new in _MOVED.values())


def test_other_names_stay_and_shared_parts_end():
    node = {"a": ["x=ddpm_lightning.sweeps.Jobs", "my.ddpm_lightning.sweeps.Jobs", "ddpm_lightning.sweeps.Jobs2"]}
    node["itself"] = node
    rename_targets(node)
    assert node["a"] == [
        "x=ddpm_lightning.cli.sweeps.Jobs",
        "my.ddpm_lightning.sweeps.Jobs",
        "ddpm_lightning.sweeps.Jobs2",
    ]
