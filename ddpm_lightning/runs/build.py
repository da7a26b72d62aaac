"""A run's config to its parts: module, callbacks, loggers."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from ddpm_lightning.callbacks import EMA, NewestCheckpoint, Randomness, StopSignals
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError, below
from ddpm_lightning.files import replace_file
from ddpm_lightning.loggers import CSVLogger
from ddpm_lightning.losses import Objective
from ddpm_lightning.module import DDPM
from ddpm_lightning.run_folder import SWEEP
from ddpm_lightning.runs.instantiate import build, of_points, one_line
from ddpm_lightning.runs.store_run import StoreRun
from ddpm_lightning.runs.trials import check_memory, dry_run, times_of, try_rates, warn_of_signal
from ddpm_lightning.runs.trust import WANDB
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["build_callbacks", "build_loggers", "build_module", "compile_model", "sweep_name"]

WANDB_ID = "wandb/run_id"  # in a run folder
TAGGED = ("experiment", "data", "model", "schedule", "loss")  # groups that runs are told apart by in W&B


def build_module(config: DictConfig) -> DDPM:
    """The LightningModule; schedule, sampler and network are tried on each other before anything is trained."""
    schedule: NoiseSchedule = build("schedule", config.schedule)
    warn_of_signal(schedule)
    check_memory(config.model)
    denoiser: Denoiser = build("denoiser", config.denoiser)
    sampler: Sampler = build("sampler", config.sampler)
    times_of(sampler, schedule)
    with below("sampler"):
        sampler.check(learned_variance=denoiser.learned_variance)
    dry_run(config.data, denoiser)
    loss: Objective = build("loss", config.loss)
    with below("loss"):
        loss.check(denoiser)
    # A fused optimiser takes the loss's scale out by itself, and Lightning could not clip in between.
    plain = {"fused": False} if config.trainer.precision == "16-mixed" and "fused" in config.optimizer else {}
    optimizer = build("optimizer", config.optimizer, **plain)
    lr_scheduler = build("lr_scheduler", config.lr_scheduler)
    try_rates(optimizer, lr_scheduler, config)
    try:
        return DDPM(
            denoiser,
            loss,
            optimizer,
            lr_scheduler,
            seed=config.seed,
            label_dropout=config.label_dropout,
            bits_per_dim=not of_points(config.data),
        )
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error


def build_callbacks(
    config: DictConfig, plain: Mapping[str, Any], *, overrides: Sequence[str] = (), data_fingerprint: str | None = None
) -> list[Callback]:
    """The callbacks in the order that they need: average, look, and save, the checkpoint that a run goes on from behind all."""
    chosen = [build(f"callbacks.{name}", node) for name, node in config.callbacks.items() if node is not None]
    chosen.sort(key=lambda callback: (isinstance(callback, NewestCheckpoint), not isinstance(callback, EMA)))
    return [Randomness(config.seed), StopSignals(), StoreRun(plain, overrides, data_fingerprint), *chosen]


def build_loggers(config: DictConfig, run_dir: Path, *, tagged: bool = True) -> list[Logger]:
    """metrics.csv always, and the loggers that the config names; W&B's with what was chosen as tags."""
    loggers: list[Logger] = [CSVLogger(run_dir)]
    for name, node in config.logger.items():
        extra: dict[str, Any] = {}
        if of_wandb := node._target_ in WANDB:
            in_a_sweep = (run_dir.parent / SWEEP).exists()
            extra = {
                "_target_": WANDB[0],
                "id": _wandb_id(run_dir),
                "name": node.name or "_".join(run_dir.parts[-2:]),
                "group": node.group or (sweep_name(run_dir) if in_a_sweep else None),
                "tags": [*node.tags, *(_choices() if tagged else [])],
            }
        loggers.append(build(f"logger.{name}", node, **extra))
        if of_wandb:
            _keep_wandb_id(run_dir, extra["id"])
    return loggers


def sweep_name(run_dir: Path) -> str:
    """The name of a sweep, which W&B groups its runs by, from one of its jobs' folders: the last two parts of the sweep's own."""
    return "_".join(run_dir.parts[-3:-1])


def compile_model(denoiser: Denoiser, device: torch.device) -> None:
    """Compile the network in place: its weights keep their names, so that checkpoints with and without are the same."""
    if device.type == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise UserError(
            "compile=true needs a C++ compiler on a CPU, and there is no g++: install one, or compile=false"
        )
    denoiser.model.compile()


def _wandb_id(run_dir: Path) -> str | None:
    """The W&B run's id: the one that the run folder keeps, or a new one; None on other ranks than the first."""
    with suppress(OSError):
        return (run_dir / WANDB_ID).read_text()
    return secrets.token_hex(4) if rank_zero_only.rank == 0 else None


def _keep_wandb_id(run_dir: Path, id: str | None) -> None:
    """Once the logger has taken its settings, so that nothing is left of a run that is refused; where it cannot be, it is not kept."""
    file = run_dir / WANDB_ID
    with suppress(OSError):
        if id is not None and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as new:
                new.write(id)


def _choices() -> list[str]:
    """What was chosen of the groups that runs are told apart by, as tags of at most 64 characters, which is W&B's limit."""
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    return [f"{group}={chosen[group]}"[:64] for group in TAGGED if chosen.get(group) is not None]
