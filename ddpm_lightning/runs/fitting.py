"""Training itself: what ends it is said in a sentence, and a run that diverges may go back to a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ddpm_lightning.callbacks import BestCheckpoint, LossGuard, NewestCheckpoint
from ddpm_lightning.errors import Diverged, UserError
from ddpm_lightning.loggers import CSVLogger
from ddpm_lightning.module import DDPM
from ddpm_lightning.run_folder import remove_leftovers
from ddpm_lightning.runs.instantiate import one_line
from ddpm_lightning.runs.resume_point import Start, blamed, first_intact
from ddpm_lightning.runs.store_run import StoreRun

__all__ = ["fit_and_go_back", "record_of", "rewind", "say"]


def fit_and_go_back(
    trainer: Trainer, module: DDPM, data: LightningDataModule, start: Start | None, *, run_dir: Path
) -> None:
    """Train; a run that diverges goes back to its newest whole checkpoint, as often as its loss guard lets it."""
    path, resumed_from = start and start.path, start and (start.path or run_dir)
    while True:
        try:
            with _explained(trainer, run_dir, resumed_from):
                # Only our own checkpoints come here, read as plain data.
                trainer.fit(
                    module,
                    datamodule=data,
                    ckpt_path=path and str(path),
                    weights_only=None if path is None else True,
                )
            return
        except Diverged as error:
            if (before := _back(trainer, error)) is None:
                raise
            path = before.path
            rewind(run_dir, trainer.loggers, before.rows)


def _back(trainer: Trainer, error: Diverged) -> Start | None:
    """The checkpoint that the loss guard lets the run go back to, the newest whole one of those that do not depend on the machine."""
    guard = next((callback for callback in trainer.callbacks if isinstance(callback, LossGuard)), None)
    newest = next((callback for callback in trainer.callbacks if isinstance(callback, NewestCheckpoint)), None)
    if guard is None or newest is None or not guard.may_go_back:
        return None
    before = first_intact(newest.by_steps_alone())
    if before is None or before.checkpoint is None:
        return None
    step = before.checkpoint["global_step"]
    guard.go_back(error, step=step, accumulate=trainer.accumulate_grad_batches)
    say(
        f"{error.what} became NaN or infinite at step {error.step}: back to the checkpoint of step {step}, and past the batches up to "
        "there"
    )
    for callback in trainer.callbacks:
        if isinstance(callback, BestCheckpoint) and trainer.is_global_zero:
            callback.forget_after(step)
    return Start(before.config, before.overrides, before.path, {"metrics_rows": before.rows})


@contextmanager
def _explained(trainer: Trainer, run_dir: Path, path: Path | None) -> Iterator[None]:
    """What a user can mend, as one sentence."""
    try:
        with blamed(path, lambda: not record_of(trainer).has_saved):
            yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
        raise UserError(f"{what}; mend it, then go on with resume={run_dir}") from error


def record_of(trainer: Trainer) -> StoreRun:
    return next(callback for callback in trainer.callbacks if isinstance(callback, StoreRun))


@rank_zero_only
def rewind(run_dir: Path, loggers: list[Logger], rows: int) -> None:
    """The folder as it was at the checkpoint."""
    (run_dir / "summary.json").unlink(missing_ok=True)
    remove_leftovers(run_dir)
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.rewind(rows)


@rank_zero_only
def say(text: str) -> None:
    """Tell the user, once for all processes."""
    print(text, flush=True)
