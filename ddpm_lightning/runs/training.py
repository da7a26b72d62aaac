"""What `train.py` does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ddpm_lightning.run_folder import has_finished, summary_of
from ddpm_lightning.runs.build import build_run
from ddpm_lightning.runs.checks import check_config
from ddpm_lightning.runs.fitting import begin, fit, held
from ddpm_lightning.runs.processes import in_processes_of_its_own, take_gpu
from ddpm_lightning.runs.resume_point import blamed, refuse_another, resume

__all__ = ["train"]


def train(config: DictConfig) -> float | None:
    """Train as the config says, or resume the run that `config.resume` names, and return its best `optimized_metric`.

    A sweep's job resumes the run that is in its folder already.

    Raises:
        UserError: for what the user can fix: before training starts, or a loss that is NaN and a disk that is full.
        SystemExit: with 128 and the signal's number, where a signal asked the run to stop.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return _train_job(config)
    return _train(config, None if config.resume is None else Path(str(config.resume)))


def _train(config: DictConfig, resumed_from: Path | None) -> float | None:
    with blamed(resumed_from):
        config, point = resume(config, resumed_from)
        check_config(config)
        run = build_run(config, point)
    with held(run):
        with blamed(resumed_from):
            begin(run)
        return _best(config.optimized_metric, fit(run))


def _train_job(config: DictConfig) -> float | None:
    """A sweep's job: nothing where it has finished before, and what is left to do where it has begun."""
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
    """The best value of a metric over the run's validations, which sweepers such as Optuna minimize."""
    best = summary.get("best")
    return best.get(metric) if isinstance(best, Mapping) else None
