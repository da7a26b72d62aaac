"""Several averages of the weights side by side."""

import pytest
import torch
from omegaconf import open_dict

from ddpm_lightning import UserError, runs
from ddpm_lightning.__main__ import main
from tests.helpers.configs import NO_FIGURES, train_config


def trained(folder, *overrides, **averages):
    config = train_config(folder, *NO_FIGURES, *overrides)
    with open_dict(config):
        for name, node in averages.items():
            config.callbacks[name] = {"_target_": "ddpm_lightning.callbacks.EMA", **node}
    runs.train(config)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_each_average_is_as_it_would_be_alone(tmp_path):
    both = trained(tmp_path / "both", slow={"decay": 0.2, "name": "slow"})
    alone = trained(tmp_path / "alone", "callbacks.ema.decay=0.2")
    plain = trained(tmp_path / "plain")
    for name, value in both["slow_state_dict"].items():
        assert torch.equal(value, alone["ema_state_dict"][name])
        assert torch.equal(both["ema_state_dict"][name], plain["ema_state_dict"][name])
        assert torch.equal(both["state_dict"][name], plain["state_dict"][name])
    assert both["metrics_rows"] == plain["metrics_rows"]
    slow, ema = (runs.load_denoiser(tmp_path / "both", weights=name) for name in ("slow", "ema"))
    assert all(torch.equal(p, both["slow_state_dict"][f"denoiser.{n}"]) for n, p in slow.named_parameters())
    assert any(not torch.equal(p, q) for p, q in zip(slow.parameters(), ema.parameters(), strict=True))
    with pytest.raises(UserError, match="weights must be ema, slow or raw, got 'fast'"):
        runs.load_denoiser(tmp_path / "both", weights="fast")


def test_averages_and_their_snapshots_are_resumed(tmp_path, capsys):
    post_hoc = "callbacks=post_hoc", "callbacks.post_hoc_ema.every_n_steps=1"
    whole = trained(tmp_path / "whole", *post_hoc, slow={"decay": 0.2, "name": "slow"})
    folder = tmp_path / "parts"
    trained(folder, *post_hoc, slow={"decay": 0.2, "name": "slow"})
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if torch.load(path, weights_only=True)["global_step"] > 2:
            path.unlink()
    (folder / "summary.json").unlink()
    runs.train(train_config(folder, f"resume={folder}"))
    parts = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("slow_state_dict", "ema_0.05_state_dict", "ema_0.1_state_dict"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    for step in (1, 2, 3, 4):
        ours, theirs = (
            torch.load(f / "ema" / f"step_{step}.ckpt", weights_only=True) for f in (folder, tmp_path / "whole")
        )
        for std, average in ours["averages"].items():
            assert all(torch.equal(value, theirs["averages"][std][name]) for name, value in average.items())
    capsys.readouterr()
    assert main(["ema", str(folder), "--std", "0.1", "0.08"]) == 0
    assert "ema_0.1.ckpt  (differs from the profile of this width by 0.0%)" in capsys.readouterr().out
    denoiser = runs.load_denoiser(folder / "checkpoints" / "ema_0.1.ckpt")
    for name, p in denoiser.named_parameters():
        assert torch.allclose(p, parts["ema_0.1_state_dict"][f"denoiser.{name}"], rtol=1e-3, atol=1e-7)
    assert main(["ema", str(tmp_path), "--std", "0.1"]) == 1


def test_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"callbacks.slow must have a unique name"):
        trained(tmp_path / "run", slow={"decay": 0.2})
    with pytest.raises(UserError, match=r"callbacks.slow.name must be one word other than raw, got 'raw'"):
        trained(tmp_path / "run", slow={"decay": 0.2, "name": "raw"})
