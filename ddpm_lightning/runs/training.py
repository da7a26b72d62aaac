"""What `train.py` does."""

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.callbacks import EMA, AtomicCheckpointIO
from ddpm_lightning.errors import Stopped, UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.loggers import WandbLogger
from ddpm_lightning.module import DDPM
from ddpm_lightning.run_folder import (
    has_finished,
    only_one_run,
    refuse_used,
    summary_of,
    write_summary,
)
from ddpm_lightning.runs.build import build_callbacks, build_loggers, build_module, compile_model
from ddpm_lightning.runs.checks import check_config
from ddpm_lightning.runs.ending import closing_words, origin_of
from ddpm_lightning.runs.fitting import fit_and_go_back, record_of, rewind, say
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.loading import differing, load_denoiser
from ddpm_lightning.runs.processes import (
    end_children,
    in_processes_of_its_own,
    keep_freed_memory,
    requeue,
    take_gpu,
)
from ddpm_lightning.runs.resume_point import Start, blamed, fits, refuse_another, resumed, same_data, typed_behind
from ddpm_lightning.runs.trust import without_download

__all__ = ["train"]


def train(config: DictConfig) -> float | None:
    """Train as the config says, or go on with the run that `config.resume` names, and return its best `optimized_metric`.

    A sweep's job goes on with the run that is in its folder already.

    Raises:
        UserError: for what the user can mend: before training starts, or a loss that is no number and a disk that is full.
        SystemExit: with 128 and the signal's number, where a signal asked the run to stop.
    """
    if _is_one_of_a_sweep():
        return _one_of_a_sweep(config)
    return _train(config)


def _one_of_a_sweep(config: DictConfig) -> float | None:
    """A sweep's job: nothing where it has finished before, and what is left to do where it has begun."""
    _check(config)
    run_dir = Path(str(config.run_dir))
    if goes_on := (run_dir / "config.yaml").exists():
        refuse_another(config, run_dir)
    if not has_finished(run_dir):
        if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
            in_processes_of_its_own(run_dir, goes_on=goes_on)
        else:
            take_gpu()
            config.resume = str(run_dir) if goes_on else None
            return _train(config)
    return _optimized(config, summary_of(run_dir))


def _train(config: DictConfig) -> float | None:
    start, resumed_from = None, None
    if config.resume is not None:
        resumed_from = Path(str(config.resume))
        with blamed(resumed_from):
            config, start = resumed(config)
    with blamed(resumed_from):  # until it trains, it is the folder's config that is built
        _check(config)
        run_dir = Path(str(config.run_dir))
        plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        _quieten()
        torch.set_float32_matmul_precision("high")  # TF32 where there is a GPU; the CPU keeps float32
        seed_everything(config.seed, workers=True, verbose=False)

        module, data = build_module(config), build("data", _data_config(config, start))
        if start is not None and start.path is not None:
            fits(module, start)
        elif config.init_from is not None:
            _begin_with(module, Path(str(config.init_from)))
        data.setup()  # what is wrong with the data is said before anything is written
        if start is not None:
            same_data(start, data.source.fingerprint)
        overrides = _overrides(start)
        callbacks = build_callbacks(config, plain, overrides=overrides, data_fingerprint=data.source.fingerprint)
        trainer: Trainer = build(
            "trainer",
            config.trainer,
            callbacks=callbacks,
            logger=False,
            default_root_dir=str(run_dir),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        )
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if config.compile:
            compile_model(module.denoiser, trainer.strategy.root_device)
    with _held(run_dir, start):
        parameters = sum(p.numel() for p in module.parameters())
        say(f"Training {parameters:,} parameters for {_steps(config)}, {trainer.world_size} process(es): {run_dir}")
        with blamed(resumed_from):
            trainer.loggers = loggers = build_loggers(config, run_dir)
            _save_config(config, run_dir)
            if start is not None:
                rewind(run_dir, loggers, start.rows)
                _record(run_dir, overrides)
            for logger in loggers:
                logger.log_hyperparams({**plain, "parameters": parameters, **origin_of(data, overrides)})
        return _optimized(config, _fit(trainer, module, data, start, run_dir=run_dir))


def _data_config(config: DictConfig, start: Start | None) -> DictConfig:
    """The data's part of the config; what a folder says, and nobody has typed, is no place to download to."""
    typed = start is None or any(key.startswith("data") for key in start.typed)
    held: Any = OmegaConf.to_container(config.data)
    return config.data if typed else OmegaConf.create(without_download(held))


def _check(config: DictConfig) -> None:
    check_config(config)
    if missing := OmegaConf.missing_keys(config):
        key = min(missing, key=len)
        raise UserError(f"{key} has no default: give it on the command line, as in {key}=...")


def _optimized(config: DictConfig, summary: Mapping[str, Any]) -> float | None:
    """What a sweeper such as Optuna is told."""
    best = summary.get("best")
    return best.get(config.optimized_metric) if isinstance(best, Mapping) else None


def _fit(
    trainer: Trainer, module: DDPM, data: LightningDataModule, start: Start | None, *, run_dir: Path
) -> dict[str, Any]:
    """Train, and say how it ended: to the caller, to W&B, in summary.json and on the screen."""
    record = record_of(trainer)
    status, signum = "failed", None
    try:
        fit_and_go_back(trainer, module, data, start, run_dir=run_dir)
        status = "finished"
    except Stopped as stopped:
        status, signum = "interrupted", stopped.signum
        raise SystemExit(128 + signum if trainer.is_global_zero else 0) from stopped
    except SystemExit as error:
        status = "interrupted"
        if error.code != 1:
            raise  # a launcher's time is over
        raise SystemExit(128 + signal.SIGINT) from Stopped(signal.SIGINT)  # Lightning's answer to a second Ctrl-C
    finally:
        if status != "finished":
            end_children(trainer)
        summary = {
            "status": status,
            "steps": trainer.global_step,
            "wall_seconds": round(record.wall_seconds, 1),
            "parameters": sum(p.numel() for p in module.parameters()),
            "processes": trainer.world_size,
            **record.metrics(trainer),
            "overrides": record.overrides,
        }
        if trainer.is_global_zero:
            with suppress(OSError):  # the disk may be what failed
                write_summary(run_dir, summary)
        if signum == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()  # before W&B, which may take the time that SLURM leaves
        wandb = [c.finish(0 if status == "finished" else 1) for c in trainer.loggers if isinstance(c, WandbLogger)]
        if status != "failed":
            averaged = any(isinstance(callback, EMA) for callback in trainer.callbacks)
            say(closing_words(run_dir, summary, wandb, averaged=averaged))
    return summary


@contextmanager
def _held(run_dir: Path, start: Start | None) -> Iterator[None]:
    """The run folder for this run alone; rank zero speaks for all."""
    if rank_zero_only.rank != 0:
        yield
        return
    if start is None:
        refuse_used(run_dir, "config.yaml")
    with only_one_run(run_dir):
        yield


def _begin_with(module: DDPM, path: Path) -> None:
    """Fine-tuning: another model's averaged weights in place of the initial ones."""
    model, theirs = module.denoiser.model, load_denoiser(path).model.state_dict()
    if wrong := differing(model.state_dict(), theirs):
        raise UserError(
            f"init_from={path} is another network: {len(wrong)} of its weights differ in name or shape, among them "
            f"{', '.join(wrong[:3])}; choose the model=... that it was trained with"
        )
    model.load_state_dict(theirs)


def _quieten() -> None:
    """What Lightning says that a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*treespec.*deprecated",
        "The number of training batches",
        "Total length of `list` across ranks is zero",
        "torch.distributed.nn.functional.all_gather is deprecated",
    ):
        warnings.filterwarnings("ignore", message)


def _steps(config: DictConfig) -> str:
    steps = config.trainer.max_steps
    return f"{config.trainer.max_epochs} epochs" if steps == -1 else f"{steps} steps"


def _overrides(start: Start | None) -> list[str]:
    """What was typed for this run, from its start on; what its record could not put on the command line again, too."""
    record = [] if start is None else [*map(str, start.overrides)]
    return [*record, *(text for text in typed_behind(record) if not text.startswith(("resume=", "run_dir=")))]


def _is_one_of_a_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@rank_zero_only
def _save_config(config: DictConfig, run_dir: Path) -> None:
    with replace_file(run_dir / "config.yaml") as file:
        OmegaConf.save(config, file, resolve=True)


@rank_zero_only
def _record(run_dir: Path, overrides: list[str]) -> None:
    """What was typed, where Hydra keeps it, for those who look there."""
    if HydraConfig.initialized():
        (run_dir / ".hydra").mkdir(exist_ok=True)
        with replace_file(run_dir / ".hydra" / "overrides.yaml") as file:
            OmegaConf.save(OmegaConf.create(overrides), file)
