"""A run that has been built is trained: its folder is begun, a divergence may go back to a checkpoint, and its end is told."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from ddpm_lightning.errors import Diverged, Stopped, UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.run_folder import newest_intact, only_one_run, refuse_used, remove_leftovers
from ddpm_lightning.runs.build import Run
from ddpm_lightning.runs.build_loggers import keep_wandb_id
from ddpm_lightning.runs.ending import origin_of, say, tell
from ddpm_lightning.runs.instantiate import one_line
from ddpm_lightning.runs.resume_point import ResumePoint, blamed, first_intact

__all__ = ["begin", "fit", "held"]


@contextmanager
def held(run: Run) -> Iterator[None]:
    """The run's folder for this run alone; rank zero speaks for all."""
    if rank_zero_only.rank != 0:
        yield
        return
    if run.point is None:
        refuse_used(run.folder)
    with only_one_run(run.folder):
        yield


def begin(run: Run) -> None:
    """Write the run's config to its folder, which is put back to where the run resumes from, and start the loggers."""
    say(f"Training {run.parameters:,} parameters for {run.length}, {run.trainer.world_size} process(es): {run.folder}")
    run.trainer.loggers = [run.csv, *run.loggers]
    keep_wandb_id(run.folder, run.loggers)
    _write_yaml(run.folder / "config.yaml", run.record.config)
    if run.point is not None:
        _rewind(run, run.point)
        if HydraConfig.initialized():  # where Hydra keeps what was typed, for those who look there
            _write_yaml(run.folder / ".hydra" / "overrides.yaml", run.record.overrides)
    origin = origin_of(run.data, run.record.overrides)
    for logger in run.loggers:
        logger.log_hyperparams({**run.record.config, "parameters": run.parameters, **origin})


def fit(run: Run) -> dict[str, Any]:
    """Train, tell how it ended, and return the run's summary.

    Raises:
        UserError: for what the user can fix.
        SystemExit: with 128 and the signal's number, where a signal asked the run to stop.
    """
    try:
        _fit_and_go_back(run)
    except BaseException as error:
        # Lightning answers a second Ctrl-C by SystemExit(1); a launcher whose time is over by another.
        ending = Stopped(signal.SIGINT) if isinstance(error, SystemExit) and error.code == 1 else error
        interrupted = isinstance(ending, Stopped | SystemExit)
        tell(run, "interrupted" if interrupted else "failed", getattr(ending, "signum", None))
        if isinstance(ending, Stopped):
            raise SystemExit(128 + ending.signum if run.trainer.is_global_zero else 0) from ending
        raise
    return tell(run, "finished")


def _fit_and_go_back(run: Run) -> None:
    """Train; a run that diverges goes back to its newest intact checkpoint, as often as its loss guard lets it."""
    point = run.point
    while True:
        path = None if point is None else point.path
        try:
            with _explained(run):
                # Only our own checkpoints come here, read as plain data.
                weights_only = None if path is None else True
                run.trainer.fit(
                    run.module, datamodule=run.data, ckpt_path=path and str(path), weights_only=weights_only
                )
            return
        except Diverged as error:
            if (point := _back(run, error)) is None:
                raise _with_newest(run, error) from error
            _rewind(run, point)


def _back(run: Run, error: Diverged) -> ResumePoint | None:
    """The checkpoint that the loss guard lets the run go back to: the newest intact one of those that do not depend on the machine."""
    guard, newest = run.callbacks.loss_guard, run.callbacks.newest
    if guard is None or newest is None or not guard.may_go_back:
        return None
    before = first_intact(newest.by_steps_alone())
    if before is None:
        return None
    guard.go_back(error, step=before.step, accumulate=run.trainer.accumulate_grad_batches)
    say(
        f"{error.what} became NaN or infinite at step {error.step}: back to the checkpoint of step {before.step}, skipping the batches "
        "up to there"
    )
    if run.trainer.is_global_zero:
        for best in run.callbacks.best:
            best.forget_after(before.step)
    return before.without_weights()


def _with_newest(run: Run, error: Diverged) -> Diverged:
    """The error with the checkpoint before it, which the user may resume from."""
    folders = [callback.folder for callback in (run.callbacks.newest, *run.callbacks.best) if callback is not None]
    saved = next((path for folder in folders if (path := newest_intact(folder)) is not None), None)
    words = "nothing had been saved by then; " if saved is None else f"the newest intact checkpoint is {saved}; "
    return Diverged(error.what, error.step, words)


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """What a user can fix, as one sentence."""
    resumed_from = None if run.point is None else run.point.path or run.folder
    try:
        with blamed(resumed_from, lambda: not run.record.has_saved):
            yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
        raise UserError(f"{what}; fix it, then resume with resume={run.folder}") from error


@rank_zero_only
def _rewind(run: Run, point: ResumePoint) -> None:
    """The folder as it was at the checkpoint."""
    (run.folder / "summary.json").unlink(missing_ok=True)
    remove_leftovers(run.folder)
    run.csv.rewind(point.rows)


@rank_zero_only
def _write_yaml(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with replace_file(path) as file:
        OmegaConf.save(OmegaConf.create(content), file)
