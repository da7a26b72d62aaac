"""Processes side by side."""

import os
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from ddpm_lightning.runs import processes
from tests.helpers.configs import ROOT


def test_processes_side_by_side_share_the_gpus_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sys.modules["tempfile"], "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    processes.take_gpu.cache_clear()
    processes.take_gpu()  # outside a sweep all are its own
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        HydraConfig.instance().set_config(compose("train", ["hydra/launcher=joblib"], return_hydra_config=True))
    taken = []
    for named in (None, None, None, "5,7", "5,7", "3"):
        processes.take_gpu.cache_clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        processes.take_gpu()
        processes.take_gpu()  # a process keeps what it has
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["0", "1", "0", "5", "7", "3"]
    processes.take_gpu.cache_clear()
    (tmp_path / "precious").write_text("mine")
    for lock in tmp_path.glob("ddpm_lightning_*_gpu_5_0"):
        lock.unlink()
        lock.symlink_to(tmp_path / "precious")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with pytest.raises(OSError, match="symbolic link|loop"):
        processes.take_gpu()
    assert (tmp_path / "precious").read_text() == "mine"
    HydraConfig.instance().cfg = None
