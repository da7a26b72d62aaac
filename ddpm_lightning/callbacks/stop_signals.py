"""Stop signals: all processes agree on the last step."""

import os
import signal
import threading
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning.callbacks.steps import has_stepped
from ddpm_lightning.errors import STOP_SIGNALS, Stopped

__all__ = ["StopSignals"]

_FIRST = "Stopping after this step: the checkpoint is saved first. Press Ctrl-C again to skip what follows it."
_SECOND = "The checkpoint is not saved yet; the run ends right after it. Press Ctrl-C once more to stop without it."
_AT_END = "Training is complete, and its checkpoint is saved. Press Ctrl-C again to skip the last figures."
_UNSAVED = "Stopping after this step, without a checkpoint. Press Ctrl-C again to stop at once."


class StopSignals(Callback):
    """Handles SIGTERM, SIGUSR1 (SLURM's warning) and SIGINT (Ctrl-C) by stopping after an optimizer step.

    `agreed` is the signal at the step after which all processes stop, else None. A signal may reach any process. The first
    to notice it writes the last step into the processes' shared store: a step that no process can complete without
    waiting for all others on the host, which is the next one on CPUs, and the one after the next logged step on GPUs.
    All processes thus read it in time, at no cost per step.

    A second Ctrl-C interrupts what follows the checkpoint, or skips it if the checkpoint has not been saved yet; a third
    stops immediately. In a run without checkpoints, the second one stops immediately.
    """

    def __init__(self) -> None:
        self.agreed: signal.Signals | None = None
        self.has_saver = False  # whether a callback saves the run and raises `Stopped`; else this one does
        self.is_saved = False  # whether the run as it stops or ends is saved
        self.presses = 0  # of Ctrl-C
        self._received: signal.Signals | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After Lightning's own SIGTERM handler, which makes a collective call.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:  # Lightning restores the previous handlers
                signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if has_stepped(trainer):
            self.agreed = self._agree(trainer)
            if self.agreed is not None and not self.has_saver:
                raise Stopped(self.agreed)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A signal during validation need not wait for another step.
        if trainer.world_size == 1 and has_stepped(trainer):
            self.agreed = self._received

    def _agree(self, trainer: Trainer) -> signal.Signals | None:
        if trainer.world_size == 1:
            return self._received
        store, key, step = dist.distributed_c10d._get_default_store(), "ddpm_lightning/stop", trainer.global_step
        if self._received is not None:
            every = 1 if trainer.strategy.root_device.type == "cpu" else trainer.log_every_n_steps
            last = (step // every + 1) * every + (every > 1)  # on GPUs the wait comes after this callback
            store.compare_set(key, "", f"{last} {int(self._received)}")
        elif not store.check([key]):
            return None
        last, number = map(int, store.get(key).split())
        return signal.Signals(number) if step >= last else None

    def _receive(self, number: int, frame: Any) -> None:
        self._received = signal.Signals(number)
        if number != signal.SIGINT:
            return
        self.presses += 1
        if self.presses == 1:
            _say(_AT_END if self.is_saved else _FIRST if self.has_saver else _UNSAVED)
        elif self.presses == 2 and self.has_saver and not self.is_saved:
            _say(_SECOND)
        else:
            raise KeyboardInterrupt


@rank_zero_only
def _say(text: str) -> None:
    """Write to standard error past Python's buffer, which the handler of a signal may find in use."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
