"""One flipped bit in a file that is read again is found, or lies in a byte that nothing reads."""

import random
import shutil

import pytest

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.interop import from_diffusers, to_diffusers
from ddpm_lightning.runs.loading import load_checkpoint
from tests.helpers.configs import config_of
from tests.helpers.damage import flipped, silent
from tests.helpers.resuming import assert_same_run, interrupted

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def test_a_checkpoint(tiny_run, tmp_path):
    path = tmp_path / "last.ckpt"
    shutil.copy(tiny_run / "checkpoints" / "last.ckpt", path)
    lost, found = silent(path, lambda: load_checkpoint(path), 400)
    assert lost == []
    assert found > 300  # the rest are in the padding between the tensors


def test_weights_in_a_folder_of_diffusers(tiny_run, tmp_path):
    to_diffusers(runs.load_denoiser(tiny_run / "checkpoints" / "last.ckpt"), tmp_path / "d")
    path = tmp_path / "d" / "unet" / "diffusion_pytorch_model.safetensors"
    lost, found = silent(path, lambda: from_diffusers(tmp_path / "d").state_dict(), 200)
    assert lost == []
    assert found > 190


@pytest.mark.parametrize("seed", range(3))
def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(whole, tmp_path, caplog, seed):
    folder = interrupted(whole, tmp_path / "run", step=6)
    newest = folder / "checkpoints" / "step_0000006.ckpt"
    content, chance = newest.read_bytes(), random.Random(seed)
    while True:
        newest.write_bytes(flipped(content, chance))
        try:
            load_checkpoint(newest)
        except UserError:
            break
    runs.train(config_of(f"resume={folder}"))
    assert f"{newest} cannot be loaded" in caplog.text
    assert "(resuming from the one before it)" in caplog.text
    assert_same_run(whole, folder)
