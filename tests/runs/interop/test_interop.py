"""Runs that are handed to diffusers, and begun with its weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddpm_lightning import runs
from ddpm_lightning.__main__ import main
from ddpm_lightning.errors import UserError
from ddpm_lightning.samplers import DDIM
from tests.helpers.configs import config_of, train_config

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def test_a_trained_run_sampled_by_diffusers_own_ddim(tiny_run, tmp_path, capsys):
    folder = tmp_path / "pipeline"
    assert main(["export", str(tiny_run / "checkpoints" / "last.ckpt"), str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    theirs = diffusers.DDPMPipeline.from_pretrained(folder)
    scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    denoiser = runs.load_denoiser(tiny_run / "checkpoints" / "last.ckpt")
    noise = torch.randn(4, 1, 8, 8)
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = theirs.unet(x, t).sample
            x = scheduler.step(out, t, x, use_clipped_model_output=True).prev_sample
    # its ε is kept unclipped unless told otherwise, and its last ᾱ is 1 as ours is
    torch.testing.assert_close(DDIM(10)(denoiser, noise), x, rtol=0, atol=1e-4)
    images = theirs(batch_size=2, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_a_folder_is_sampled_like_a_checkpoint(tiny_run, tmp_path):
    options = ["sampler=ddim", "sampler.num_steps=4", "num_samples=3", "format=npz"]
    checkpoint = tiny_run / "checkpoints" / "last.ckpt"
    assert main(["export", str(checkpoint), str(tmp_path / "pipeline")]) == 0
    drawn = []
    for path, out in ((checkpoint, "a"), (tmp_path / "pipeline", "b")):
        runs.sample(config_of(f"ckpt_path={path}", f"out_dir={tmp_path / out}", *options, name="sample"))
        drawn.append(np.load(tmp_path / out / "samples.npz")["images"])
    assert np.array_equal(*drawn)


def test_weights_as_safetensors(tiny_run, tmp_path):
    arguments = ["export", str(tiny_run), str(tmp_path / "out"), "--format", "safetensors", "--weights", "raw"]
    assert main(arguments) == 0
    state = load_file(tmp_path / "out" / "model.safetensors")
    expected = runs.load_denoiser(tiny_run, weights="raw").state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, state[key]) for key, value in expected.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["prediction"] == "epsilon"


def test_training_begins_with_the_weights_of_another(tiny_run, tmp_path):
    checkpoint = tiny_run / "checkpoints" / "last.ckpt"
    assert main(["export", str(checkpoint), str(tmp_path / "pipeline")]) == 0
    weights = []
    for name, source in (("one", checkpoint), ("two", tmp_path / "pipeline")):
        runs.train(train_config(tmp_path / name, f"init_from={source}", "optimizer.lr=0", "trainer.max_steps=2"))
        weights.append(runs.load_denoiser(tmp_path / name, weights="raw").state_dict())
    for state in weights:
        assert all(torch.equal(v, state[k]) for k, v in runs.load_denoiser(checkpoint).state_dict().items())
    with pytest.raises(UserError, match=r"holds a different network: .* choose the model=... that it was trained with"):
        runs.train(train_config(tmp_path / "three", f"init_from={checkpoint}", "model.base_channels=16"))
    assert not (tmp_path / "three").exists()
