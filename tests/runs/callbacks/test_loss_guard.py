"""A run whose numbers are NaN or infinite is found before it is saved, never called finished, and taken back where that is asked for."""

import csv
import json
import math
import shutil

import pytest
import torch

from ddpm_lightning import runs
from ddpm_lightning.callbacks import EMA, LossGuard
from ddpm_lightning.errors import UserError
from ddpm_lightning.module import DDPM
from tests.helpers.configs import config_of, train_config
from tests.helpers.loss_guard import EACH, ROLLBACK, final
from tests.helpers.resuming import assert_equal, state

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def spoil(monkeypatch, what, step):
    """Let one number become NaN after so many steps, and nothing else; the loss itself stays finite."""
    clip, ended, log_dict = DDPM.configure_gradient_clipping, EMA.on_train_batch_end, DDPM.log_dict

    def gradient(self, *args, **kwargs):
        if self.trainer.global_step == step - 1:
            next(self.denoiser.parameters()).grad[...] = math.inf
        clip(self, *args, **kwargs)

    def weight(self, trainer, pl_module, *args):
        ended(self, trainer, pl_module, *args)
        if trainer.global_step == step:
            with torch.no_grad():
                if what == "weight":
                    list(pl_module.parameters())[-1][...] = math.nan
                elif what == "average":
                    next(iter(self._average.values()))[...] = math.nan
                else:
                    next(iter(trainer.optimizers[0].state.values()))["exp_avg"][...] = math.inf

    def validation(self, metrics, **kwargs):
        late = self.trainer.global_step >= step
        log_dict(
            self, {k: torch.tensor(math.nan) if late and k == "val/loss" else v for k, v in metrics.items()}, **kwargs
        )

    if what == "gradient":
        monkeypatch.setattr(DDPM, "configure_gradient_clipping", gradient)
    elif what == "validation":
        monkeypatch.setattr(DDPM, "log_dict", validation)
    else:
        monkeypatch.setattr(EMA, "on_train_batch_end", weight)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("gradient", "the loss or its gradient became NaN or infinite at step 4"),
        ("weight", "(the loss or its gradient|one of the weights) became NaN or infinite at step"),
        ("average", "one of the averaged weights became NaN or infinite at step 4"),
        ("state", "(the optimizer's state|the loss or its gradient|one of the weights) became NaN or infinite at step"),
        ("validation", "val/loss became NaN or infinite at step 4"),
    ],
)
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "not guarded"])
def test_what_is_not_finite_is_neither_saved_nor_finished(tmp_path, monkeypatch, what, says, guarded):
    spoil(monkeypatch, what, step=4)
    if not guarded:
        says = "became NaN or infinite at step"
    options = [] if guarded else ["callbacks.loss_guard=null"]
    with pytest.raises(UserError, match=f"{says}.*; the newest intact checkpoint is .*step_0000002.ckpt; try a lower"):
        runs.train(train_config(tmp_path, *EACH, *options))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        held = torch.load(path, weights_only=True)
        assert held["global_step"] == 2
        assert all(value.isfinite().all() for part in ("state_dict", "ema_state_dict") for value in held[part].values())


def test_nothing_is_called_finished_with_it_where_nothing_is_saved(tmp_path, monkeypatch):
    spoil(monkeypatch, "weight", step=8)
    off = ("loss_guard", "checkpoint", "best_checkpoint")
    with pytest.raises(UserError, match="became NaN or infinite at step 8; no checkpoint was saved before; try"):
        runs.train(train_config(tmp_path, *EACH, *(f"callbacks.{name}=null" for name in off)))


def test_weights_that_are_not_finite_are_not_sampled(tiny_run, tmp_path):
    held = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(iter(held["ema_state_dict"]))
    held["ema_state_dict"][name].flatten()[0] = math.nan
    torch.save(held, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match=r"weights=ema: 1 of the checkpoint's weights are NaN or infinite, among them"):
        runs.load_denoiser(tmp_path / "nan.ckpt")
    runs.load_denoiser(tmp_path / "nan.ckpt", weights="raw")


def bad_batches(monkeypatch, *numbers):
    """The losses of these batches are NaN, whatever the step that they are learned in."""
    step = DDPM.training_step

    def broken(self, batch, batch_idx):
        outputs = step(self, batch, batch_idx)
        randomness = next(c for c in self.trainer.callbacks if type(c).__name__ == "Randomness")
        batches = self.trainer.accumulate_grad_batches
        if (randomness._steps - 1) * batches + batch_idx % batches in numbers:
            outputs = {key: value * math.nan if key != "t" else value for key, value in outputs.items()}
        return outputs

    monkeypatch.setattr(DDPM, "training_step", broken)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_diverges_goes_back_and_leaves_the_batches_out(tmp_path, monkeypatch, capsys, accumulate):
    options = (*ROLLBACK, f"trainer.accumulate_grad_batches={accumulate}")
    bad_batches(monkeypatch, 4 * accumulate)  # of step 5
    runs.train(train_config(tmp_path / "one", *options))
    assert (
        "became NaN or infinite at step 5: rolling back to the checkpoint of step 4 and skipping the batches"
        in capsys.readouterr().out
    )
    held = state(tmp_path / "one")
    assert held["global_step"] == 8
    assert held["rollbacks"] == 1
    # eight steps were learned, and one was left out
    assert held["callbacks"]["Randomness"]["steps"] == 9
    assert held["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"images": 9 * accumulate * 16}]
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 8)
    with (tmp_path / "one" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["2", "4", "6", "8"]
    assert all("nan" not in row.values() for row in rows)
    runs.train(train_config(tmp_path / "two", *options))  # reproducible
    assert_equal(final(tmp_path / "one"), final(tmp_path / "two"))


def test_a_run_that_was_killed_after_it_went_back_ends_as_one_that_was_not(tmp_path, monkeypatch):
    bad_batches(monkeypatch, 4, 5)  # the second one directly behind: left out in a second go
    runs.train(train_config(tmp_path / "whole", *ROLLBACK))
    assert state(tmp_path / "whole")["rollbacks"] == 2
    for step in (2, 4, 6):
        folder = tmp_path / f"killed_{step}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "summary.json").unlink()
        for path in (folder / "checkpoints").glob("*.ckpt"):
            if not path.stem.startswith("step") or int(path.stem[5:]) > step:
                path.unlink()
        runs.train(config_of(f"resume={folder}"))
        assert_equal(final(tmp_path / "whole"), final(folder))


def test_it_goes_back_so_often_and_no_more(tmp_path, monkeypatch):
    bad_batches(monkeypatch, *range(4, 40))
    with pytest.raises(UserError, match="became NaN or infinite at step"):
        runs.train(train_config(tmp_path, *ROLLBACK))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    for rollback in (-1, 1.5, "often"):
        with pytest.raises(ValueError, match="rollback must be an integer from 0 to 1000000, got"):
            LossGuard(rollback=rollback)


def test_checkpoints_by_time_are_not_gone_back_to(tmp_path, monkeypatch):
    """Whether there are any depends on the machine's speed, and the end must not."""
    bad_batches(monkeypatch, 6)
    ends = {}
    for name, options in {"steps": [], "time": ["callbacks.checkpoint.every_n_minutes=1e-9"]}.items():
        every = ["callbacks.checkpoint.every_n_train_steps=4", "callbacks.checkpoint.save_top_k=1"]
        runs.train(train_config(tmp_path / name, *ROLLBACK, *every, "trainer.log_every_n_steps=1", *options))
        ends[name] = final(tmp_path / name)
        saved = {path.name for path in (tmp_path / name / "checkpoints").glob("step_*")}
        assert saved == {"step_0000008.ckpt"}
    assert_equal(ends["steps"], ends["time"])


def test_rollback_is_refused_where_weights_are_sharded(tmp_path):
    config = train_config(tmp_path, "callbacks.loss_guard.rollback=1", "trainer=fsdp", "trainer.accelerator=cpu")
    with pytest.raises(
        UserError, match="callbacks.loss_guard.rollback must be 0 for weights sharded across GPUs, got 1"
    ):
        runs.train(config)
