"""Runs on a stream of shards."""

import logging

import pytest
import torch

from ddpm_lightning import runs
from tests.helpers.configs import train_config
from tests.helpers.shards import SHORT


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")
@pytest.mark.parametrize("labels", ["null", "3"])
def test_it_trains_and_goes_on_as_if_it_had_not_stopped(shards, tmp_path, labels, caplog):
    options = [*SHORT, f"data.root={shards}", f"data.num_classes={labels}", "data.dataset.workers=1"]
    with caplog.at_level(logging.WARNING):
        runs.train(train_config(tmp_path / "whole", *options, "trainer.max_steps=6"))
    if labels == "3":
        return
    runs.train(train_config(tmp_path / "part", *options, "trainer.max_steps=4"))
    config = train_config(tmp_path / "unused", *options, f"resume={tmp_path / 'part'}")
    held = torch.load(tmp_path / "part" / "checkpoints" / "last.ckpt", weights_only=True)
    assert held["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["images"] == 20
    held["config"]["trainer"]["max_steps"] = 6
    torch.save(held, tmp_path / "part" / "checkpoints" / "last.ckpt")
    for other in (tmp_path / "part" / "checkpoints").glob("step*"):
        other.unlink()
    runs.train(config)
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "part")
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 6
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key
