import csv
import json
import logging
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.build import build_module, build_run
from tests.helpers.configs import config_of, train_config

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder, which="state_dict"):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)[which]


def test_a_run_folder_holds_all_that_it_should(tiny_run):
    names = {str(p.relative_to(tiny_run)) for p in tiny_run.rglob("*") if p.is_file()}
    assert {"config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= names
    assert {f"samples/{kind}_{step:07d}.png" for kind in ("grid", "trajectory") for step in (2, 4)} <= names
    assert {"checkpoints/step_0000002.ckpt", "checkpoints/step_0000004.ckpt"} <= names


def test_the_metrics_are_those_of_the_issue(tiny_run):
    log = rows(tiny_run)
    assert [row["step"] for row in log if row["train/loss"]] == ["2", "4"]
    assert [row["step"] for row in log if row["val/loss"]] == ["2", "4"]
    columns = {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "train/ema_decay", "val/loss"}
    columns |= {f"train/loss_q{i}" for i in (1, 2, 3, 4)}
    assert columns <= log[0].keys()
    first = next(row for row in log if row["train/loss"])
    # the zero output at the start makes the first loss that of ε itself, and each quartile's
    assert all(float(first[f"train/loss_q{i}"]) == pytest.approx(1, abs=0.3) for i in (1, 2, 3, 4))
    assert float(first["train/ema_decay"]) == pytest.approx(3 / 12)
    assert float(first["train/lr"]) == pytest.approx(2e-3)


def test_the_summary_says_how_it_ended(tiny_run):
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["processes"]) == ("finished", 4, 1)
    values = [float(row["val/loss"]) for row in rows(tiny_run) if row["val/loss"]]
    assert summary["best"]["val/loss"] == pytest.approx(min(values))
    assert summary["parameters"] == sum(v.numel() for v in weights(tiny_run).values())


def test_the_checkpoint_holds_raw_and_averaged_weights_and_the_config_as_plain_data(tiny_run):
    checkpoint = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["ema_state_dict"].keys() == checkpoint["state_dict"].keys()
    assert any(not torch.equal(v, checkpoint["ema_state_dict"][k]) for k, v in checkpoint["state_dict"].items())
    assert checkpoint["config"] == OmegaConf.to_container(OmegaConf.load(tiny_run / "config.yaml"))
    raw, ema = (runs.load_denoiser(tiny_run / "checkpoints" / "last.ckpt", weights=w) for w in ("raw", "ema"))
    for which, denoiser in (("state_dict", raw), ("ema_state_dict", ema)):
        for name, value in denoiser.state_dict().items():
            assert torch.equal(value, checkpoint[which][f"denoiser.{name}"])


def test_the_same_seed_gives_the_same_weights_to_the_bit(tiny_run, tmp_path):
    runs.train(train_config(tmp_path / "again"))
    runs.train(train_config(tmp_path / "other", "seed=1"))
    for which in ("state_dict", "ema_state_dict"):
        first, again, other = (weights(folder, which) for folder in (tiny_run, tmp_path / "again", tmp_path / "other"))
        assert all(torch.equal(v, again[k]) for k, v in first.items())
        assert any(not torch.equal(v, other[k]) for k, v in first.items())


def test_pictures_leave_training_as_it_is(tiny_run, tmp_path):
    off = ["callbacks.sample_grid=null", "callbacks.trajectory=null", "trainer.limit_val_batches=0"]
    runs.train(train_config(tmp_path, *off, "callbacks.best_checkpoint=null"))
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(tiny_run).items())


@pytest.mark.parametrize("step", [2, 4])
def test_the_grid_in_training_is_the_one_that_sample_draws(tiny_run, tmp_path, step):
    """To the bit: EMA weights of that step's checkpoint, same seeds, same sampler, same batch size."""
    overrides = [
        f"ckpt_path={tiny_run}/checkpoints/step_{step:07d}.ckpt",
        "sampler=ddim",
        "sampler.num_steps=4",
        "num_samples=4",
        f"out_dir={tmp_path}",
    ]
    runs.sample(config_of(*overrides, name="sample"))
    ours, theirs = (
        np.asarray(Image.open(p)) for p in (tmp_path / "grid.png", tiny_run / f"samples/grid_{step:07d}.png")
    )
    assert np.array_equal(ours, theirs)
    runs.sample(config_of(*overrides, "weights=raw", "overwrite=true", name="sample"))
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), theirs)


def test_training_goes_on_from_the_state_of_a_checkpoint_as_if_it_had_not_stopped(tiny_run):
    state = torch.load(tiny_run / "checkpoints" / "step_0000002.ckpt", weights_only=True)
    assert state["callbacks"]["Randomness"] == {"steps": 2}
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"images": 32}]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_an_importance_draw_is_resumed_with_the_rest(tmp_path):
    """Four steps, and two and two: the same buffers and weights, to the bit; and by then the draw is no longer uniform."""
    from lightning.pytorch import Trainer, seed_everything

    from ddpm_lightning.runs.build import build_module
    from ddpm_lightning.runs.build_callbacks import build_callbacks
    from ddpm_lightning.runs.instantiate import build

    options = ["loss=vlb", "loss/times=importance", "loss.times.history=2", "schedule.num_steps=4"]
    config = train_config(tmp_path, *options, "schedule.beta_end=0.9", "callbacks.checkpoint.every_n_train_steps=2")
    states = {}
    for name, steps, start in (
        ("whole", 6, None),
        ("half", 2, None),
        ("rest", 6, tmp_path / "half" / "checkpoints" / "last.ckpt"),
    ):
        seed_everything(0 if start is None else 1, verbose=False)
        config.trainer.max_steps, config.run_dir = steps, str(tmp_path / name)
        module, data = build_module(config), build("data", config.data)
        built = build_callbacks(config, build("sampler", config.sampler))
        callbacks = [c for c in built if type(c).__name__ in ("Randomness", "EMA", "NewestCheckpoint")]
        trainer: Trainer = build("trainer", config.trainer, callbacks=callbacks, logger=False)
        trainer.fit(module, datamodule=data, ckpt_path=start and str(start), weights_only=True if start else None)
        states[name] = weights(tmp_path / name)
    assert all(torch.equal(value, states["rest"][key]) for key, value in states["whole"].items())
    p = module.loss.times.probabilities()
    assert p.max() > 1.2 * p.min()
    assert not torch.equal(states["half"]["loss.times.losses"], states["rest"]["loss.times.losses"])


def test_a_run_that_ends_between_two_checkpoints_still_saves_its_last_step(tmp_path):
    runs.train(train_config(tmp_path, "trainer.max_steps=3"))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_schedule_that_does_not_reach_noise_is_named_before_training(tmp_path, caplog):
    with pytest.raises(UserError, match="sampler.num_steps must be an integer from 1 to 100, got 1000"):
        runs.train(train_config(tmp_path, "schedule.num_steps=100", "sampler.num_steps=1000"))
    assert "alpha_bar_T = 0.364: after T = 100 steps the images are not pure noise" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"trainer.accelerator=gpu, trainer.devices=2: .*no CUDA GPU; choose"):
        runs.train(train_config(tmp_path / "run", "trainer.devices=2", "trainer.accelerator=gpu"))


def test_the_loss_is_finite_in_bfloat16(tmp_path):
    best = runs.train(train_config(tmp_path, "trainer.precision=bf16-mixed"))
    assert math.isfinite(best)


def test_half_precision_takes_the_plain_optimizer(tmp_path):
    for precision, fused in (("32-true", True), ("bf16-mixed", True), ("16-mixed", False)):
        module = build_module(train_config(tmp_path, f"trainer.precision={precision}"))
        assert module.configure_optimizers()["optimizer"].defaults["fused"] is fused


def test_compiling_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="compile=true requires a C\\+\\+ compiler"):
        runs.train(train_config(tmp_path / "run", "compile=true"))


def test_a_network_with_fast_layers_is_not_compiled_on_a_cpu(tmp_path, caplog):
    run = build_run(train_config(tmp_path / "run", "compile=true"), None)
    assert [record.getMessage() for record in caplog.records] == [
        "compile=true is ignored on a CPU, where this network's own layers are faster: set model.fast_cpu=false to compile them"
    ]
    assert all(part._compiled_call_impl is None for part in run.module.modules())
    run = build_run(train_config(tmp_path / "run", "compile=true", "model.fast_cpu=false"), None)
    assert len(caplog.records) == 1
    assert any(part._compiled_call_impl is not None for part in run.module.modules())


def test_intervals_count_optimizer_steps(tmp_path):
    """Three batches a step, and a validation every second step: four of the eight steps, whatever is accumulated."""
    overrides = ["trainer.accumulate_grad_batches=3", "trainer.max_steps=8", "trainer.val_check_interval=2"]
    runs.train(train_config(tmp_path / "run", *overrides, "trainer.log_every_n_steps=4"))
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [2, 4, 6, 8]
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [4, 8]


def test_a_profile_that_was_asked_for_is_shown(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        runs.train(train_config(tmp_path / "run", "+trainer.profiler=simple", "trainer.max_steps=1"))
    assert any("FIT Profiler Report" in record.getMessage() for record in caplog.records)
