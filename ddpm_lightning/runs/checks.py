"""Checks of a whole config, before anything is built."""

import os
import re

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from ddpm_lightning.data.values import Values, kind_of, values_of
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import is_integer, require, require_one_of
from ddpm_lightning.runs.compiling import COMPILE
from ddpm_lightning.runs.schema import Training, check_types

__all__ = ["check_config"]

# The kinds of data that parts support, and the alternative for other data.
_MADE_FOR = {
    "ddpm_lightning.models.UNet": (("images", "arrays"), "model=mlp"),
    "ddpm_lightning.models.DiT": (("images", "arrays"), "model=mlp"),
    "ddpm_lightning.models.MLP": (("points",), "model=unet_tiny"),
    "ddpm_lightning.callbacks.GenerationMetrics": (("images",), "callbacks=default, or callbacks=points for points"),
    "ddpm_lightning.callbacks.Neighbors": (("images", "arrays"), "callbacks=points"),
    "ddpm_lightning.callbacks.SampleGrid": (("images", "arrays"), "callbacks=points"),
    "ddpm_lightning.callbacks.Trajectory": (("images", "arrays"), "callbacks=points"),
    "ddpm_lightning.callbacks.Scatter": (("points",), "callbacks=default"),
}


_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32")  # values of `trainer.precision=`


def check_config(config: DictConfig) -> None:
    """Refuse incompatible settings, and values that Lightning and PyTorch would misinterpret.

    Raises:
        UserError: naming the key, its value and the fix.
    """
    _refuse_missing({f"data.{key}" for key in ("channels", "image_size") if OmegaConf.is_missing(config.data, key)})
    require("data.channels", config.data.channels, "1..4096")
    size = config.data.image_size
    if not isinstance(size, ListConfig) or not 1 <= len(size) <= 3 or not all(is_integer(n, "1..65536") for n in size):
        raise UserError(
            f"data.image_size must be [height, width], [length] or [frames, height, width] with sides from 1 to 65536, as in [32,32], got {size}"
        )
    _check_trainer(config.trainer)
    for key, interval in (("lr", "[0, 1000]"), ("weight_decay", "[0, 10]")):
        if key in config.optimizer and not OmegaConf.is_missing(config.optimizer, key):
            require(f"optimizer.{key}", config.optimizer[key], interval)
    check_types(config, Training)
    require("seed", config.seed, f"0..{2**32 - 1}")
    values_of(config.data)
    require("data.num_classes", config.data.num_classes, "1..100000000", optional=True)
    require("guidance_scale", config.guidance_scale, "[0, inf)")
    ours = str(config.model.get("_target_")).startswith("ddpm_lightning.")
    unconditional = all(config.model.get(name) is None for name in ("condition_size", "condition_channels"))
    if config.data.num_classes is None and ours and unconditional and config.guidance_scale != 1:
        raise UserError(
            f"guidance_scale={config.guidance_scale} requires labels: set data.num_classes=..., or guidance_scale=1"
        )
    require_one_of("compile", config.compile, COMPILE)
    rates = config.lr_scheduler
    if "start_factor" in rates or rates.get("total_iters", 0) != 0:  # a warm-up of 0 steps would never end
        require("lr_scheduler.total_iters", rates.get("total_iters"), "1..100000000")
    _check_strangers(config)
    _check_metric(config)
    _check_kinds(config)
    _refuse_missing(OmegaConf.missing_keys(config))


def _refuse_missing(keys: set[str]) -> None:
    if keys:
        key = min(keys, key=len)
        raise UserError(f"{key} has no default: give it on the command line, as in {key}=...")


def _check_strangers(config: DictConfig) -> None:
    if str(config.features.get("_target_")).endswith(".custom"):
        raise UserError(
            "features=custom only works in evaluate.py, since a resumed run builds only classes that ddpm_lightning ships: "
            "choose features=classifier or features=inception"
        )
    guard, strategy = config.callbacks.get("loss_guard"), config.trainer.strategy
    sharded = isinstance(strategy, DictConfig) and str(strategy.get("_target_")).endswith(".FSDP2")
    if sharded and guard is not None and guard.get("rollback"):
        raise UserError(
            f"callbacks.loss_guard.rollback must be 0 for weights sharded across GPUs, got {guard.rollback}: "
            "resume the run instead"
        )


def _check_metric(config: DictConfig) -> None:
    measured = ["val/loss", "val/bits_per_dim"] if values_of(config.data) == Values() else ["val/loss"]
    if config.callbacks.get("generation_metrics") is not None:
        measured += ["val/fid", "val/kid"]
    hint = "callbacks=fid measures val/fid and val/kid"
    require_one_of("optimized_metric", config.optimized_metric, measured, hint=hint)
    parts = [node for node in config.callbacks.values() if isinstance(node, DictConfig)]
    if all(str(node.get("_target_")).startswith("ddpm_lightning.") for node in parts):  # others may log more
        for name, node in config.callbacks.items():
            if isinstance(node, DictConfig) and "monitor" in node:
                require_one_of(f"callbacks.{name}.monitor", node.monitor, measured, hint=hint)


def _check_kinds(config: DictConfig) -> None:
    given = kind_of(config.data)
    callbacks = {f"callbacks.{name}": node for name, node in config.callbacks.items() if isinstance(node, DictConfig)}
    for key, node in {"model": config.model, **callbacks}.items():
        made, choice = _MADE_FOR.get(node.get("_target_"), ((given,), ""))
        if given not in made:
            data = f"data.channels={config.data.channels}, data.image_size={config.data.image_size}"
            what = f"the model {str(node._target_).rpartition('.')[2]}" if key == "model" else key
            raise UserError(f"{what} is for {made[0]}, but the data are {given} ({data}): choose {choice}")


def _check_trainer(trainer: DictConfig) -> None:
    many = "1..100000000"
    if trainer.max_steps != -1 or not is_integer(trainer.max_epochs):
        require("trainer.max_steps", trainer.max_steps, many)
    if trainer.max_epochs != -1:
        require("trainer.max_epochs", trainer.max_epochs, many, optional=True)
    for key in ("log_every_n_steps", "accumulate_grad_batches", "num_nodes"):
        require(f"trainer.{key}", trainer[key], many)
    require("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, many, optional=True)
    require("trainer.num_sanity_val_steps", trainer.num_sanity_val_steps, "-1..100000000", hint="-1 runs all")
    for key, share in (("limit_train_batches", "(0, 1]"), ("limit_val_batches", "[0, 1]")):
        if not is_integer(trainer[key]):
            require(f"trainer.{key}", trainer[key], share, optional=True, hint="a fraction, or a number of batches")
    hint = "the loaders split the data among the processes themselves"
    require_one_of("trainer.use_distributed_sampler", trainer.use_distributed_sampler, (False,), hint=hint)
    hint = "every epoch has new batches; to overfit, train on a small dataset of your own"
    require_one_of("trainer.overfit_batches", trainer.get("overfit_batches"), (0, 0.0, None), hint=hint)
    hint = "weights and EMA weights are kept in float32"
    require_one_of("trainer.precision", str(trainer.precision), _PRECISIONS, hint=hint)
    require("trainer.gradient_clip_val", trainer.gradient_clip_val, "(0, inf)", optional=True)
    interval = trainer.val_check_interval
    if isinstance(interval, float) and trainer.check_val_every_n_epoch is not None:
        require("trainer.val_check_interval", interval, "(0, 1]", hint="a fraction of an epoch")
    else:
        require("trainer.val_check_interval", interval, "1..100000000", hint="it counts optimizer steps")
    _check_devices(trainer)


def _check_devices(trainer: DictConfig) -> None:
    devices = trainer.devices
    if not re.fullmatch(r"auto|[1-9]\d*|\[\d+(, \d+)*\]|\d+(,\d+)+", str(devices)):
        raise UserError(f"trainer.devices must be a positive integer, a list of device indices, or auto, got {devices}")
    cores = os.cpu_count() or 1
    if is_integer(devices) and devices > max(8, 4 * cores):
        raise UserError(
            f"trainer.devices must be at most {max(8, 4 * cores)} with this machine's {cores} cores, got {devices}"
        )
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={trainer.accelerator}, trainer.devices={devices}: this machine has no CUDA GPU; "
            "choose trainer=cpu, trainer=ddp_cpu or trainer=mps"
        )
    if trainer.num_nodes > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} requires MASTER_ADDR, which is not set: start the run "
            "with srun and trainer=slurm, or with torchrun on every node"
        )
