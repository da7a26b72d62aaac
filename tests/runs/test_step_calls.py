"""What a training step costs beside network, loss and optimizer, as the number of Python calls: time would not be a test."""

import cProfile
import pstats

from lightning.pytorch import Callback

from ddpm_lightning.runs.build import build_run
from tests.helpers.configs import train_config


class Profiled(Callback):
    """Counts the calls of the steps between two of them."""

    def __init__(self, first, last):
        self.first, self.last = first, last
        self.profile = cProfile.Profile()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.first:
            self.profile.enable()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.last:
            self.profile.disable()


def calls(profile, steps):
    return pstats.Stats(profile).total_calls / steps


def test_lightning_and_the_callbacks_call_little_beside_the_step(tmp_path):
    """Some 2,300 calls with Lightning 2.6, of which none walks over modules or parameters; it was 14,400."""
    quiet = ["trainer.max_steps=40", "trainer.val_check_interval=1000", "callbacks.checkpoint.every_n_train_steps=1000"]
    rare = [f"callbacks.{name}.every_n_steps=null" for name in ("sample_grid", "raw_grid", "trajectory")]
    deep = ["trainer.log_every_n_steps=1000", "model.num_res_blocks=4"]
    run = build_run(train_config(tmp_path / "run", *quiet, *rare, *deep), None)
    counted = Profiled(10, 30)
    run.trainer.callbacks.append(counted)
    run.trainer.loggers = [run.csv]
    run.trainer.fit(run.module, datamodule=run.data)

    run.module._trainer = None
    found = run.module.configure_optimizers()
    optimizer, rates = found["optimizer"], found["lr_scheduler"]["scheduler"]
    loader = run.data.train_dataloader()
    bare = cProfile.Profile()
    bare.enable()
    for _, batch in zip(range(20), loader, strict=False):
        loss = run.module.training_step(run.data.on_after_batch_transfer(batch, 0), 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        run.module.configure_gradient_clipping(optimizer, 1.0, "norm")
        optimizer.step()
        rates.step()
    bare.disable()
    beside = calls(counted.profile, 20) - calls(bare, 20)
    assert 0 < beside < 3000
    walks = [name for _, _, name in pstats.Stats(counted.profile).stats if name in ("named_modules", "_named_members")]
    assert walks == []
