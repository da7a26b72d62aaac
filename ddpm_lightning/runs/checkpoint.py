"""Checkpoint to denoiser."""

import os
import pickle
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.interop import from_diffusers, images_of, is_diffusers_folder
from ddpm_lightning.runs.build import WANDB, build, one_line

__all__ = [
    "check_targets",
    "denoiser_of",
    "differing",
    "load_checkpoint",
    "load_denoiser",
    "load_model",
    "newest_checkpoint",
    "run_dir_of",
]

# What a checkpoint's config may name: these modules' public names, and nothing that can be reached through them.
_TRUSTED = (
    "ddpm_lightning.schedules",
    "ddpm_lightning.models",
    "ddpm_lightning.models.dit",
    "ddpm_lightning.models.mlp",
    "ddpm_lightning.models.unet",
    "ddpm_lightning.denoiser",
    "ddpm_lightning.data.datamodule",
    "ddpm_lightning.data.datasets",
    "ddpm_lightning.data.points",
    "ddpm_lightning.data.streams",
)
# What a run that goes on needs besides: ours, and of others these very names.
_TRUSTED_IN_A_RUN = (
    *_TRUSTED,
    "ddpm_lightning.callbacks",
    "ddpm_lightning.features",
    "ddpm_lightning.losses",
    "ddpm_lightning.samplers",
    "ddpm_lightning.sharding",
)
_WANDB_KEYS = {
    "_target_",
    "project",
    "entity",
    "name",
    "save_dir",
    "offline",
    "log_model",
    "group",
    "tags",
}  # others reach wandb.init
_TRUSTED_NAMES = (
    "lightning.pytorch.Trainer",
    *WANDB,
    "lightning.pytorch.plugins.environments.SLURMEnvironment",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.lr_scheduler.ConstantLR",
    "torch.optim.lr_scheduler.LinearLR",
    "torchvision.datasets.CIFAR10",
    "torchvision.datasets.CIFAR100",
    "torchvision.datasets.CelebA",
    "torchvision.datasets.FashionMNIST",
    "torchvision.datasets.MNIST",
    "torchvision.datasets.SVHN",
)


def load_denoiser(checkpoint: str | Path, *, weights: str = "ema") -> Denoiser:
    """The denoiser of a checkpoint file, in evaluation mode on the CPU, with its "ema" or its "raw" weights.

    A run folder stands for its newest checkpoint, and a folder of diffusers for the one model that it holds.

    Raises:
        UserError: where the file is no checkpoint, its config names anything but this package's parts, or it holds no
            averaged weights.
    """
    return load_model(Path(checkpoint), weights=weights)[0]


def load_model(path: Path, *, weights: str = "ema") -> tuple[Denoiser, dict[str, Any]]:
    """As `load_denoiser`, with the config of the model's data; a folder of diffusers gives "channels" and "image_size" alone."""
    if is_diffusers_folder(path):
        return from_diffusers(path), images_of(path)
    checkpoint = load_checkpoint(path)
    return denoiser_of(checkpoint, weights=weights), checkpoint["config"]["data"]


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, or of a run folder's newest, read as plain data: no code in it is run.

    Raises:
        UserError: where the file is missing, or no checkpoint of this package.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        way_out = "give a file such as outputs/<day>/<time>/checkpoints/last.ckpt"
        raise UserError(f"ckpt_path={path} does not exist: {way_out}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a strange file's format: what matters is whether it can be read
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        kind = type(error).__name__
        raise UserError(f"ckpt_path={path} is no checkpoint, or a damaged one ({kind}): give another file") from error
    if not isinstance(checkpoint, dict) or not {"config", "state_dict"} <= checkpoint.keys():
        raise UserError(f"ckpt_path={path} is no checkpoint of ddpm_lightning: it lacks config or weights")
    return checkpoint


def denoiser_of(checkpoint: Mapping[str, Any], *, weights: str = "ema") -> Denoiser:
    """As `load_denoiser`, for a checkpoint that is loaded already."""
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights} is unknown: choose ema or raw")
    if weights == "ema" and "ema_state_dict" not in checkpoint:
        raise UserError("weights=ema: the checkpoint holds no averaged weights; take weights=raw")
    try:
        config = checkpoint["config"]["denoiser"]
        check_targets(config)
        denoiser: Denoiser = build("denoiser", OmegaConf.create(config))
        state = {**checkpoint["state_dict"], **(checkpoint["ema_state_dict"] if weights == "ema" else {})}
        prefix = "denoiser."
        theirs = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if wrong := differing(denoiser.state_dict(), theirs):
            raise UserError(
                f"the checkpoint's config and weights do not fit together, or it is of another version: {len(wrong)} "
                f"weights differ in name or shape, among them {', '.join(wrong[:3])}; give another checkpoint"
            )
        denoiser.load_state_dict(theirs)
    except (TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise UserError(f"the checkpoint's config and weights do not fit together: {one_line(error)}") from error
    return denoiser.eval()


def differing(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that only one of two networks has, or that differ in shape."""
    names = {*ours, *theirs}
    return sorted(n for n in names if n not in ours or n not in theirs or ours[n].shape != theirs[n].shape)


def newest_checkpoint() -> Path:
    """The `last.ckpt` of the newest run in outputs/ and multirun/."""
    found = [p for folder in ("outputs", "multirun") for p in Path(folder).glob("**/checkpoints/last.ckpt")]
    if not found:
        raise UserError("ckpt_path is not given and outputs/ holds no run yet: train one with `python train.py`")
    return max(found, key=lambda p: p.stat().st_mtime)


def run_dir_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in, or is; for one that was moved elsewhere, the folder beside it."""
    if checkpoint.is_dir():
        return checkpoint
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def check_targets(node: Any, *, whole_run: bool = False) -> None:
    """Refuse a config that is anything but plain, resolved data about this package's own parts.

    Args:
        node: the config, or a part of it.
        whole_run: allow what training needs besides: losses, callbacks, and the optimisers and loggers that we ship configs for.
    """
    if isinstance(node, Mapping):
        if "_target_" in node and not _is_trusted(str(node["_target_"]), whole_run):
            raise UserError(f"the checkpoint asks for {node['_target_']}, no part of ddpm_lightning's models: refused")
        if "_args_" in node:
            raise UserError("the checkpoint's config has arguments without a name: refused")
        if node.get("_target_") in WANDB and (odd := sorted({*node} - _WANDB_KEYS)):
            raise UserError(f"the checkpoint's config sets {', '.join(odd)} of W&B's logger: refused")
        for child in node.values():
            check_targets(child, whole_run=whole_run)
    elif isinstance(node, list):
        for child in node:
            check_targets(child, whole_run=whole_run)
    elif not isinstance(node, str | int | float | None) or (isinstance(node, str) and "${" in node):
        raise UserError(f"the checkpoint's config holds {node!r}, which is no plain value: refused")
    elif isinstance(node, str) and node.startswith("pipe:") and not os.environ.get("DDPM_ALLOW_PIPE"):
        raise UserError(f"the checkpoint's config runs a command ({node}): if you trust it, set DDPM_ALLOW_PIPE=1")


def _is_trusted(target: str, whole_run: bool) -> bool:
    module, _, name = target.rpartition(".")
    if whole_run and target in _TRUSTED_NAMES:
        return True
    return module in (_TRUSTED_IN_A_RUN if whole_run else _TRUSTED) and name in import_module(module).__all__
