"""What `train.py` does."""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.callbacks import TrainingMetrics
from ddpm_lightning.errors import UserError
from ddpm_lightning.module import DDPM
from ddpm_lightning.runs.build import build, build_callbacks, build_loggers, build_module, check_whole, one_line

__all__ = ["train"]


def train(config: DictConfig) -> float | None:
    """Train as the config says, and return the best validation loss.

    Raises:
        UserError: for what the user can mend, before anything is written.
    """
    if missing := OmegaConf.missing_keys(config):
        key = min(missing)
        raise UserError(f"{key} has no default: give it on the command line, as in {key}=...")
    _check(config)
    run_dir = Path(config.run_dir)
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    _quieten()
    torch.set_float32_matmul_precision("high")  # TF32 where there is a GPU; the CPU keeps float32
    seed_everything(config.seed, workers=True, verbose=False)

    module, data = build_module(config), build("data", config.data)
    loggers = build_loggers(config, run_dir)
    callbacks = build_callbacks(config, plain)
    trainer: Trainer = build(
        "trainer", config.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(run_dir)
    )
    parameters = sum(p.numel() for p in module.parameters())
    _say(
        f"Training {parameters:,} parameters for {trainer.max_steps} steps, {trainer.world_size} process(es): {run_dir}"
    )
    _save_config(config, run_dir)
    for logger in loggers:
        logger.log_hyperparams({**plain, "parameters": parameters})

    started, status = time.monotonic(), "failed"
    try:
        trainer.fit(module, datamodule=data)
        status = "interrupted" if trainer.interrupted else "finished"
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    finally:
        sync = _finish_wandb(0 if status == "finished" else 1)
        summary = {
            "status": status,
            "steps": trainer.global_step,
            "wall_seconds": round(time.monotonic() - started, 1),
            "parameters": parameters,
            "processes": trainer.world_size,
            **_metrics(trainer, module),
            "overrides": list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
        }
        if trainer.is_global_zero:
            (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _say(_closing_words(run_dir, summary, sync))
    best: float | None = summary["best"].get("val/loss")
    return best


def _check(config: DictConfig) -> None:
    """Numbers that Lightning would take, and mean something else by than the user."""
    if not isinstance(config.seed, int) or config.seed < 0:
        raise UserError(f"seed={config.seed} is no seed: give a whole number, 0 or more")
    for key in ("max_steps", "log_every_n_steps", "accumulate_grad_batches", "num_nodes"):
        endless = key == "max_steps" and config.trainer.max_steps == -1 and (config.trainer.max_epochs or 0) > 0
        if not endless:
            check_whole(f"trainer.{key}", config.trainer[key])


def _quieten() -> None:
    """What Lightning says that a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (r".*treespec.*deprecated", "The number of training batches", ".*anonymous. setting has no effect"):
        warnings.filterwarnings("ignore", message)


def _metrics(trainer: Trainer, module: DDPM) -> dict[str, Any]:
    final = {key: float(value) for key, value in trainer.callback_metrics.items()}
    best: dict[str, float] = {}
    for callback in trainer.callbacks:
        if isinstance(callback, TrainingMetrics):
            final |= callback.latest
            best = callback.best
    return {"images_per_second": final.get("train/images_per_second"), "final": final, "best": best}


def _closing_words(run_dir: Path, summary: Mapping[str, Any], sync: str | None) -> str:
    folder = os.path.relpath(run_dir)
    final = summary["final"]
    losses = ", ".join(f"{key} {final[key]:.4f}" for key in ("train/loss", "val/loss") if key in final)
    checkpoint = f"{folder}/checkpoints/last.ckpt"
    lines = [
        f"\n{summary['status'].capitalize()}: {summary['steps']} steps in {summary['wall_seconds']:.0f} s, {losses}",
        f"  checkpoint  {checkpoint}",
        f"  metrics     {folder}/metrics.csv",
    ]
    if pictures := sorted((run_dir / "samples").glob("grid_*.png")):
        lines.append(f"  samples     {folder}/samples/{pictures[-1].name}")
    if sync:
        lines.append(f"  W&B         kept offline; to upload it: wandb sync {sync}")
    lines.append(f"Go on with: python sample.py ckpt_path={checkpoint}")
    return "\n".join(lines)


def _finish_wandb(exit_code: int) -> str | None:
    """End this process's W&B run, if there is one, and return the folder of an offline one."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return None
    run, folder = wandb.run, Path(wandb.run.dir).parent
    offline = run.offline
    run.finish(exit_code=exit_code)
    return os.path.relpath(folder) if offline else None


@rank_zero_only
def _save_config(config: DictConfig, run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, run_dir / "config.yaml", resolve=True)


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
