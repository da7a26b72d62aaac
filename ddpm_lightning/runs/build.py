"""Build a run from a config, and validate it before anything is written."""

import logging
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict

from ddpm_lightning.callbacks import EMA, AtomicCheckpointIO, ForwardStrip, TrainingMetrics
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.source import Condition, map_condition
from ddpm_lightning.data.values import Values, values_of
from ddpm_lightning.denoiser import Denoiser, Guidance
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.loggers import CSVLogger
from ddpm_lightning.models.cost import training_flops
from ddpm_lightning.module import DDPM
from ddpm_lightning.ranges import require
from ddpm_lightning.runs.build_callbacks import build_callbacks, first
from ddpm_lightning.runs.build_loggers import build_loggers
from ddpm_lightning.runs.changes import plain, typed_behind
from ddpm_lightning.runs.compiling import compile_blocks, is_compiled, uses_graphs
from ddpm_lightning.runs.estimate import Estimate, Trial, automatic_batch_size
from ddpm_lightning.runs.graphs import graph_training
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.loading import differing, load_model
from ddpm_lightning.runs.processes import keep_freed_memory
from ddpm_lightning.runs.resume_point import ResumePoint
from ddpm_lightning.runs.store_run import StoreRun
from ddpm_lightning.runs.trials import (
    check_data,
    check_features,
    check_memory,
    times_of,
    try_rates,
    try_shapes,
    warn_of_signal,
)
from ddpm_lightning.runs.trust import without_download
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.sharding import FSDP2

__all__ = ["Run", "build_module", "build_run"]

_CONDITIONS = 64  # number of held-out images whose conditions the figures cycle through


@dataclass(frozen=True)
class Run:
    """The parts of a training run."""

    folder: Path
    point: ResumePoint | None
    module: DDPM
    data: ImageDataModule
    condition: Condition | None  # of the figures, unless labels
    csv: CSVLogger
    loggers: list[Logger]
    callbacks: list[Callback]
    record: StoreRun
    trainer: Trainer
    estimate: Estimate | None  # of time and memory, if measured

    @cached_property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def build_run(config: DictConfig, point: ResumePoint | None) -> Run:
    """Build a run's parts, and validate its data.

    Args:
        config: the checked config.
        point: where the run resumes from; None for a new one.

    Raises:
        UserError: for invalid or incompatible parts.
    """
    _quieten()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs; CPUs keep float32
    seed_everything(config.seed, workers=True, verbose=False)
    module, sampler = _build_parts(config)
    data: ImageDataModule = build("data", _data_config(config, point))
    if (point is None or not point.checkpoint) and config.init_from is not None:
        _begin_with(module, Path(str(config.init_from)))
    data.setup()
    check_data(config.data, data.source, module.denoiser, sampler)
    check_features(config, data.source)
    if config.data.num_classes is not None and data.source.classes:
        with open_dict(config.data):
            config.data.class_names = [*data.source.classes]  # saved with the run, since labels=[...] may name them
    if point is not None:
        point.check(module, data.source.fingerprint)
    folder, condition = Path(str(config.run_dir)), data.source.conditions(_CONDITIONS)
    callbacks = build_callbacks(
        config, sampler, {"condition": condition, "flops_per_image": _flops(module, config, condition)}
    )
    if (strip := first(callbacks, ForwardStrip)) is not None:
        strip.times_on(module.denoiser.schedule.num_steps)
    csv, loggers = CSVLogger(folder), build_loggers(config.logger, folder)
    trainer = _build_trainer(config, callbacks, folder)
    estimate = _try_steps(config, module, data, trainer)
    record = StoreRun(
        plain(config),
        _overrides(point),
        data.source.fingerprint,
        csv=csv,
        metrics=first(callbacks, TrainingMetrics),
        ema=first(callbacks, EMA),
    )
    trainer.callbacks.insert(0, record)
    if is_compiled(config.compile):
        compile_blocks(module.denoiser.model, trainer.strategy.root_device)
    return Run(folder, point, module, data, condition, csv, loggers, callbacks, record, trainer, estimate)


def build_module(config: DictConfig) -> DDPM:
    """Build the LightningModule, and check that schedule, sampler and network are compatible."""
    return _build_parts(config)[0]


def _build_parts(config: DictConfig) -> tuple[DDPM, Sampler]:
    """The module, and the sampler of its figures."""
    warn_of_signal(build("schedule", config.schedule))  # separately, so that errors name it
    check_memory(config.model)
    denoiser: Denoiser = build("denoiser", config.denoiser)
    rest = config.get("guidance_interval"), config.get("guidance_rescale", 0.0)  # runs of 0.1.0 have neither
    Guidance(config.guidance_scale, *rest).of(denoiser)
    sampler: Sampler = build("sampler", config.sampler)
    times_of(sampler, denoiser)
    try_shapes(config.data, denoiser)
    loss = build("loss", config.loss)
    # A fused optimizer unscales the gradients itself, so they could not be clipped in between.
    unfused = {"fused": False} if config.trainer.precision == "16-mixed" and "fused" in config.optimizer else {}
    optimizer = build("optimizer", config.optimizer, **unfused)
    lr_scheduler = build("lr_scheduler", config.lr_scheduler)
    module = DDPM(
        denoiser,
        loss,
        optimizer,
        lr_scheduler,
        seed=config.seed,
        label_dropout=config.label_dropout,
        bits_per_dim=values_of(config.data) == Values(),
    )
    try_rates(optimizer, lr_scheduler, config)
    return module, sampler


def _build_trainer(config: DictConfig, callbacks: list[Callback], folder: Path) -> Trainer:
    interval = config.trainer.val_check_interval
    if isinstance(interval, int):
        if config.trainer.max_steps > 0:  # a shorter run is validated at its end
            interval = min(interval, config.trainer.max_steps)
        interval *= config.trainer.accumulate_grad_batches  # Lightning counts batches
    trainer: Trainer = build(
        "trainer",
        config.trainer,
        val_check_interval=interval,
        callbacks=callbacks,
        logger=False,
        default_root_dir=str(folder),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def _try_steps(config: DictConfig, module: DDPM, data: ImageDataModule, trainer: Trainer) -> Estimate | None:
    """Measure the time and memory of a batch in one process; sets `data.batch_size=auto` to a number.

    Raises:
        UserError: for a batch that does not fit in memory, or `auto` with several processes.
    """
    device = trainer.strategy.root_device
    if uses_graphs(config.compile, device):
        graph_training(module, trainer, strangers=config.compile == "graphs")
    if config.data.batch_size == "auto" and trainer.world_size > 1:
        raise UserError(
            "data.batch_size=auto requires a single process: find the size with trainer.devices=1 trainer.max_steps=1, and set it"
        )
    waits = module.loss.times.adaptive and trainer.world_size > 1  # for the other processes
    if trainer.global_rank > 0 or waits or isinstance(trainer.strategy, FSDP2):
        return None
    condition = data.source.conditions(_CONDITIONS)
    if condition is None and config.data.num_classes is not None:
        condition = torch.arange(config.data.num_classes)
    try:
        trial = Trial(module, trainer, (config.data.channels, *config.data.image_size), condition)
        if config.data.batch_size == "auto":
            data.batch_size = config.data.batch_size = automatic_batch_size(trial, data.source.num_images("train"))
        return trial.estimate(config.data.batch_size)
    except Exception as error:  # raised by a custom part; training will show it
        hint = f"the network cannot be tried before the run ({brief(error)})"
        require("data.batch_size", config.data.batch_size, "1..", hint=hint)
        return None


def _flops(module: DDPM, config: DictConfig, condition: Condition | None) -> int | None:
    """FLOP of a training step per image; None if they cannot be counted."""
    y = torch.zeros(1, dtype=torch.long) if config.data.num_classes is not None else None
    if condition is not None:
        y = map_condition(lambda rows: rows[:1], condition)
    try:
        return training_flops(module.denoiser.model, (config.data.channels, *config.data.image_size), y)
    except Exception:  # a custom network may raise anything
        return None


def _data_config(config: DictConfig, point: ResumePoint | None) -> DictConfig:
    """The data config; downloads are disabled to a folder that comes from a checkpoint and was not typed."""
    if point is None or any(key.startswith("data") for key in point.typed):
        return config.data
    return OmegaConf.create(without_download(plain(config.data)))


def _begin_with(module: DDPM, path: Path) -> None:
    """Initialize from another model's EMA weights, for fine-tuning."""
    model, theirs = module.denoiser.model, load_model(path, key="init_from")[0].model.state_dict()
    if wrong := differing(model.state_dict(), theirs):
        raise UserError(
            f"init_from={path} holds a different network: {wrong}; choose the model=... that it was trained with"
        )
    model.load_state_dict(theirs)


def _overrides(point: ResumePoint | None) -> list[str]:
    """All overrides typed for this run since its start, including those that cannot be replayed."""
    record = [] if point is None else [*map(str, point.overrides)]
    return [*record, *(text for text in typed_behind(record) if not text.startswith(("resume=", "run_dir=")))]


def _quieten() -> None:
    """Silence Lightning's messages that users cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # only set on request
    for message in (
        r".*treespec.*deprecated",
        "The number of training batches",
        "Total length of `list` across ranks is zero",
        "torch.distributed.nn.functional.all_gather is deprecated",
    ):
        warnings.filterwarnings("ignore", message)
