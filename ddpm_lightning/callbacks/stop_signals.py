"""Stop signals: all processes agree on the last step."""

import signal
import threading
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from ddpm_lightning.callbacks.steps import has_stepped
from ddpm_lightning.errors import STOP_SIGNALS

__all__ = ["StopSignals"]


class StopSignals(Callback):
    """Handles SIGTERM, SIGUSR1 (SLURM's warning) and SIGINT (Ctrl-C) by stopping after an optimizer step.

    `agreed` is the signal at the step after which all processes stop, else None. A signal may reach any process. The first
    to notice it writes the last step into the processes' shared store: a step that no process can complete without
    waiting for all others on the host, which is the next one on CPUs, and the one after the next logged step on GPUs.
    All processes thus read it in time, at no cost per step. A second Ctrl-C stops immediately.
    """

    def __init__(self) -> None:
        self.agreed: signal.Signals | None = None
        self._received: signal.Signals | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After Lightning's own SIGTERM handler, which makes a collective call.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:  # Lightning restores the previous handlers
                signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not has_stepped(trainer):
            return
        if trainer.world_size == 1:
            self.agreed = self._received
            return
        store, key, step = dist.distributed_c10d._get_default_store(), "ddpm_lightning/stop", trainer.global_step
        if self._received is not None:
            every = 1 if trainer.strategy.root_device.type == "cpu" else trainer.log_every_n_steps
            last = (step // every + 1) * every + (every > 1)  # on GPUs the wait comes after this callback
            store.compare_set(key, "", f"{last} {int(self._received)}")
        elif not store.check([key]):
            return
        last, number = map(int, store.get(key).split())
        if step >= last:
            self.agreed = signal.Signals(number)

    def _receive(self, number: int, frame: Any) -> None:
        self._received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            rank_zero_info("Stopping after this step and saving a checkpoint; press Ctrl-C again to stop immediately.")
