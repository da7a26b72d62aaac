"""Config to objects."""

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ddpm_lightning.callbacks import EMA, NewestCheckpoint, Randomness, StopSignals
from ddpm_lightning.data.points import SHAPE
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.loggers import CSVLogger
from ddpm_lightning.losses import Objective
from ddpm_lightning.module import DDPM
from ddpm_lightning.ranges import is_whole
from ddpm_lightning.run_folder import SWEEP
from ddpm_lightning.runs.store_run import StoreRun
from ddpm_lightning.runs.trust import WANDB
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.schedules import NoiseSchedule

__all__ = [
    "build",
    "build_callbacks",
    "build_loggers",
    "build_module",
    "check_whole",
    "compile_model",
    "of_points",
    "one_line",
    "sweep_name",
    "times_of",
]

WANDB_ID = "wandb/run_id"  # in a run folder
TAGGED = ("experiment", "data", "model", "schedule", "loss")  # groups that runs are told apart by in W&B

log = logging.getLogger(__name__)

# What a network's number of weights depends on most.
SIZES = ("base_channels", "channel_multipliers", "num_res_blocks", "hidden_size", "depth", "num_classes", "in_channels")


def build(key: str, node: DictConfig, **kwargs: Any) -> Any:
    """Instantiate a config node; what its constructor refuses becomes a sentence that names the key."""
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        ours = isinstance(cause, ValueError | MisconfigurationException)
        raise UserError(f"{key}: {one_line(cause)}" if ours else _with_settings(key, cause, node)) from error


def build_module(config: DictConfig) -> DDPM:
    """The LightningModule; schedule, sampler and network are tried on each other before anything is trained."""
    schedule: NoiseSchedule = build("schedule", config.schedule)
    _warn_of_signal(schedule)
    _check_memory(config.model)
    denoiser: Denoiser = build("denoiser", config.denoiser)
    sampler: Sampler = build("sampler", config.sampler)
    times_of(sampler, schedule)
    try:
        sampler.check(learned_variance=denoiser.learned_variance)
    except ValueError as error:
        raise UserError(f"sampler.{one_line(error)}") from error
    _dry_run(config.data, denoiser)
    loss: Objective = build("loss", config.loss)
    try:
        loss.check(denoiser)
    except ValueError as error:
        raise UserError(f"loss: {one_line(error)}") from error
    # A fused optimiser takes the loss's scale out by itself, and Lightning could not clip in between.
    plain = {"fused": False} if config.trainer.precision == "16-mixed" and "fused" in config.optimizer else {}
    optimizer = build("optimizer", config.optimizer, **plain)
    lr_scheduler = build("lr_scheduler", config.lr_scheduler)
    _try_rates(optimizer, lr_scheduler, config)
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


def times_of(sampler: Sampler, schedule: NoiseSchedule) -> list[int]:
    """The sampler's times on a schedule, or a sentence that says why it has none."""
    try:
        return sampler.times(schedule.num_steps, log_snr=schedule.log_snr)
    except ValueError as error:
        raise UserError(f"sampler.{one_line(error)}") from error


def check_whole(key: str, value: Any) -> None:
    """Refuse what is no whole number from 1 on, or a larger one than anything could last for."""
    if not is_whole(value, "[1, 1e8]"):
        raise UserError(
            f"{key}={value} will not do: give a whole number, 1 or more" + (", and 1e8 at most" * is_whole(value))
        )


def of_points(data: Mapping[str, Any] | DictConfig) -> bool:
    """Whether a config's data are points in the plane, and not images."""
    return (data["channels"], *data["image_size"]) == SHAPE


def one_line(error: BaseException) -> str:
    """An error's text in one line, with its type where that says something."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | MisconfigurationException) else f"{type(error).__name__}: {text}"


def _with_settings(key: str, error: BaseException, node: DictConfig) -> str:
    """An error in one line that names no setting, and the settings that it came of."""
    given = {str(name): value for name, value in node.items() if not isinstance(value, DictConfig)}
    settings = ", ".join(f"{key}.{name}={value}" for name, value in given.items() if name[0] != "_")
    return f"{key}: {one_line(error)} (given: {settings})"


def _try_rates(
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer],
    lr_scheduler: Callable[[Optimizer], LRScheduler],
    config: DictConfig,
) -> None:
    """Two steps of a single weight: a bad rate is seen now, not in training."""
    try:
        tried = optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(_with_settings("optimizer", error, config.optimizer)) from error
    try:
        scheduler = lr_scheduler(tried)
        for _ in range(2):
            tried.step()
            scheduler.step()
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(_with_settings("lr_scheduler", error, config.lr_scheduler)) from error


def _check_memory(node: DictConfig) -> None:
    """The network is built without its weights first, so that one that cannot be held is refused before it is begun."""
    with torch.device("meta"):
        model: torch.nn.Module = build("model", node)
    parameters = sum(p.numel() for p in model.parameters())
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    copies = 1 if torch.cuda.is_available() else 5  # weights; gradients, Adam's two moments and the average beside them
    if 4 * parameters * copies > held:
        sizes = ", ".join(f"model.{key}={node[key]}" for key in SIZES if key in node)
        raise UserError(
            f"{sizes}: {parameters:,} parameters take {4 * parameters * copies / 2**30:,.0f} GiB, and this machine has "
            f"{held / 2**30:,.0f}: give smaller numbers"
        )


def _dry_run(data: DictConfig, denoiser: Denoiser) -> None:
    """One forward pass of the network on the meta device: shapes are checked, nothing is computed."""
    size = list(data.image_size)
    x = torch.empty(1, data.channels, *size, device="meta")
    t = torch.empty(1, dtype=torch.long, device="meta")
    y = None if data.num_classes is None else t
    on_meta = {name: p.to("meta") for name, p in denoiser.model.named_parameters()}
    try:
        torch.func.functional_call(denoiser.model, on_meta, (x, t, y))
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"data.image_size={size}, data.channels={data.channels}: {one_line(error)}") from error


def _warn_of_signal(schedule: NoiseSchedule) -> None:
    last = float(schedule.alpha_bar[-1])
    if last > 0.01:
        log.warning(
            "alpha_bar_T = %.3g: after T = %d steps the images are not yet noise, and samples, which begin with pure "
            "noise, will be worse for it; take more steps, larger betas or schedule=cosine",
            last,
            schedule.num_steps,
        )


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
