"""The pipeline of `train.py`: resume, check, build, fit and report; a diverged run may roll back to a checkpoint."""

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning import environment
from ddpm_lightning.callbacks import BestCheckpoint, LossGuard, NewestCheckpoint, SampleGrid
from ddpm_lightning.data.conditions import save_condition
from ddpm_lightning.data.datamodule import listed
from ddpm_lightning.errors import Diverged, Stopped, UserError, brief
from ddpm_lightning.files import replace_file
from ddpm_lightning.run_folder import (
    has_finished,
    newest_intact,
    only_one_run,
    refuse_used,
    remove_leftovers,
    summary_of,
)
from ddpm_lightning.runs.build import Run, build_run
from ddpm_lightning.runs.build_callbacks import first
from ddpm_lightning.runs.build_loggers import keep_wandb_id
from ddpm_lightning.runs.checks import check_config
from ddpm_lightning.runs.ending import origin_of, say, tell, uninterrupted
from ddpm_lightning.runs.instantiate import one_line
from ddpm_lightning.runs.processes import Ranks, in_processes_of_its_own, take_gpu
from ddpm_lightning.runs.rendezvous import check_rendezvous
from ddpm_lightning.runs.resume_point import ResumePoint, first_intact, refuse_another, resume
from ddpm_lightning.runs.trust import packages_to_trust
from ddpm_lightning.terminal import Activity

__all__ = ["train"]


def train(config: DictConfig) -> float | None:
    """Train from a config, or resume the run in `config.resume`, and return the best `optimized_metric`.

    A sweep's job resumes an earlier run in its folder.

    Raises:
        UserError: for problems that the user can fix, such as invalid settings, a NaN loss or a full disk.
        SystemExit: with 128 plus the signal number, if a signal stopped the run.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return _train_job(config)
    return _train(config, None if config.resume is None else Path(str(config.resume)))


def _train(config: DictConfig, resumed_from: Path | None) -> float | None:
    run: Run | None = None
    try:
        with Activity("Reading the data, building the model and trying a batch"):
            config, point = resume(config, resumed_from)
            check_config(config)
            run = build_run(config, point)
        check_rendezvous(getattr(run.trainer.strategy, "cluster_environment", None), run.trainer.world_size)
        is_first = rank_zero_only.rank == 0  # locks the folder for all ranks
        if is_first and point is None:
            refuse_used(run.folder)
        with only_one_run(run.folder) if is_first else nullcontext():
            _begin(run)
            return _best(config.optimized_metric, _fit(run))
    except (UserError, Stopped, OSError, MisconfigurationException):
        raise
    except Exception as error:  # an invalid checkpoint can raise anything
        if resumed_from is None or (run is not None and run.record.has_saved):
            raise
        raise UserError(
            f"the run in {resumed_from} cannot be resumed ({brief(error)}): choose another folder, or set DDPM_TRACEBACK=1 for the traceback"
        ) from error


def _train_job(config: DictConfig) -> float | None:
    """Run a sweep's job: skip it if finished, resume it if started."""
    check_config(config)
    run_dir = Path(str(config.run_dir))
    if begun := (run_dir / "config.yaml").exists():
        refuse_another(config, run_dir)
    if not has_finished(run_dir):
        if config.trainer.devices == 1 and config.trainer.num_nodes == 1:
            take_gpu()
            return _train(config, run_dir if begun else None)
        in_processes_of_its_own(run_dir, resumes=begun)
    return _best(config.optimized_metric, summary_of(run_dir))


def _best(metric: str, summary: Mapping[str, Any]) -> float | None:
    """The best validation value of a metric, which sweepers such as Optuna minimize."""
    best = summary.get("best")
    return best.get(metric) if isinstance(best, Mapping) else None


def _begin(run: Run) -> None:
    """Rewind the run folder to the resume point, write the config, and start the loggers."""
    trainer = run.trainer
    length = f"{trainer.max_epochs} epochs" if trainer.max_steps == -1 else f"{trainer.max_steps} steps"
    trained = 0 if run.point is None else run.point.checkpoint.get("global_step", 0)
    if 0 < trainer.max_steps <= trained:
        say(f"the run in {run.folder} has reached {trained} steps already: to continue, set a higher trainer.max_steps")
    else:
        say(f"Training {run.parameters:,} parameters for {length}, {_processes(trainer.world_size)}: {run.folder}")
    if names := run.record.config["data"].get("class_names"):
        say(f"Labels: {listed(names)}")
    if run.estimate is not None:
        say(run.estimate.sentence(_batches_left(run)))
    grid = first(run.callbacks, SampleGrid)
    if run.point is None and grid is not None and trainer.max_steps > 0:
        step = min(grid.every_n_steps or trainer.max_steps, trainer.max_steps)
        say(f"The first samples will be samples/grid_{step:07d}.png in that folder")
    if argument := environment.trust_argument(packages_to_trust(run.record.config)):
        say(f"This run uses classes from outside ddpm_lightning: to resume, sample or evaluate it, add {argument}")
    if first(run.callbacks, Checkpoint) is None:
        say(
            "Warning: no checkpoint will be saved, so this run can be neither resumed nor sampled from; callbacks=default saves checkpoints"
        )
    trainer.loggers = [run.csv, *run.loggers]
    keep_wandb_id(run.folder, run.loggers)
    _write_yaml(run.folder / "config.yaml", run.record.config)
    if run.condition is not None and trainer.is_global_zero:
        ending = "npz" if isinstance(run.condition, Mapping) else "npy"
        save_condition(run.condition, run.folder / "samples" / f"condition.{ending}")  # for sample.py
    if run.point is not None:
        _rewind(run, run.point)
        if HydraConfig.initialized():  # Hydra's own place for overrides
            _write_yaml(run.folder / ".hydra" / "overrides.yaml", run.record.overrides)
    origin = origin_of(run.data, run.record.overrides)
    for logger in run.loggers:
        logger.log_hyperparams({**run.record.config, "parameters": run.parameters, **origin})


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def _batches_left(run: Run) -> int | None:
    """The number of batches left for this process; None if the config counts epochs."""
    trainer = run.trainer
    if trainer.max_steps == -1:
        return None
    done = 0 if run.point is None else run.point.checkpoint.get("global_step", 0)
    return int((trainer.max_steps - done) * trainer.accumulate_grad_batches)


def _fit(run: Run) -> dict[str, Any]:
    """Train, report the outcome, and return the run's summary."""
    ranks = Ranks(run.trainer, partial(_give_up, run))
    if run.trainer.world_size > 1:
        ranks.start()
    try:
        _fit_and_go_back(run)
    except BaseException as error:
        # Lightning turns a KeyboardInterrupt into SystemExit(1); a launcher at its time limit raises another one.
        by_hand = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == 1)
        ending = Stopped(signal.SIGINT) if by_hand else error
        interrupted = isinstance(ending, Stopped | SystemExit)
        with uninterrupted():
            lost = ranks.lost(seconds=2) if isinstance(error, RuntimeError) and run.trainer.world_size > 1 else ""
            ranks.end()
        tell(run, "interrupted" if interrupted else "failed", getattr(ending, "signum", None))
        if isinstance(ending, Stopped):
            raise SystemExit(128 + ending.signum if run.trainer.is_global_zero else 0) from ending
        if lost or isinstance(error, dist.DistError):
            reason = lost or f"the connection to another process was lost ({brief(error)})"
            raise UserError(f"{reason}; {_resume_hint(run)}") from error
        raise
    ranks.end()
    return tell(run, "finished")


def _give_up(run: Run, lost: str) -> None:
    """End a run that waits for a dead process."""
    tell(run, "failed")
    print(f"error: {lost}; {_resume_hint(run)}", file=sys.stderr, flush=True)
    os._exit(1)


def _resume_hint(run: Run) -> str:
    return f"once that is fixed, resume with resume={run.folder}"


def _fit_and_go_back(run: Run) -> None:
    """Train; if the run diverges, roll back to its newest intact checkpoint as often as the loss guard allows."""
    path = None if run.point is None else run.point.path
    while True:
        try:
            run.trainer.fit(run.module, datamodule=run.data, ckpt_path=path, weights_only=True)
            return
        except Diverged as error:
            path = _go_back(run, error)
        except MisconfigurationException as error:
            raise UserError(f"trainer: {one_line(error)}") from error
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
            raise UserError(f"{what}; {_resume_hint(run)}") from error


def _go_back(run: Run, error: Diverged) -> Path | None:
    """The checkpoint to roll back to: the newest intact one saved by step, if the loss guard allows it.

    Raises:
        Diverged: if there is none, naming the checkpoint before the error to resume from.
    """
    guard, newest = (first(run.callbacks, kind) for kind in (LossGuard, NewestCheckpoint))
    best = [callback for callback in run.callbacks if isinstance(callback, BestCheckpoint)]
    before = first_intact(newest.by_steps_alone()) if newest and guard and guard.may_go_back else None
    if before is None:
        saved = next(filter(None, (newest_intact(kept.folder) for kept in (newest, *best) if kept)), None)
        words = f"the newest intact checkpoint is {saved}; " if saved else "no checkpoint was saved before; "
        raise Diverged(error.what, error.step, words) from error
    step = before.checkpoint["global_step"]
    guard.go_back(error, step=step, accumulate=run.trainer.accumulate_grad_batches)
    say(
        f"{error.what} became NaN or infinite at step {error.step}: rolling back to the checkpoint of step {step} and skipping the batches in "
        "between"
    )
    if run.trainer.is_global_zero:
        for kept in best:
            kept.forget_after(step)
    _rewind(run, before)
    return before.path


@rank_zero_only
def _rewind(run: Run, point: ResumePoint) -> None:
    """Restore the run folder to its state at the checkpoint."""
    (run.folder / "summary.json").unlink(missing_ok=True)
    remove_leftovers(run.folder)
    run.csv.rewind(point.rows)


@rank_zero_only
def _write_yaml(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with replace_file(path) as file:
        OmegaConf.save(OmegaConf.create(content), file)
