"""Checkpoint to denoiser."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.interop import from_diffusers, images_of, is_diffusers_folder
from ddpm_lightning.moved import rename_targets
from ddpm_lightning.ranges import is_integer
from ddpm_lightning.run_folder import checkpoints_in
from ddpm_lightning.runs.instantiate import build, one_line
from ddpm_lightning.runs.trust import check_targets
from ddpm_lightning.torch_files import load_plain

__all__ = [
    "data_config_of",
    "denoiser_of",
    "differing",
    "load_checkpoint",
    "load_denoiser",
    "load_model",
    "newest_checkpoint",
    "run_dir_of",
]
_NEEDED = ("config", "state_dict")


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
    return denoiser_of(checkpoint, weights=weights), data_config_of(checkpoint)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, or of a run folder's newest, read as plain data: no code in it is run.

    Raises:
        UserError: where the file is missing, or no checkpoint of this package.
    """
    path = Path(path)
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        path = next((found for found in (last, *checkpoints_in(last.parent)) if found.is_file()), last)
    if not path.is_file():
        way_out = "give a file such as outputs/<day>/<time>/checkpoints/last.ckpt"
        raise UserError(f"ckpt_path={path} does not exist: {way_out}")
    try:
        checkpoint = load_plain(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"ckpt_path={path} is no checkpoint, or a damaged one ({' '.join(str(error).split())}): give another file"
        ) from error
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in _NEEDED):
        raise UserError(f"ckpt_path={path} is no checkpoint of ddpm_lightning: it lacks config or weights")
    rename_targets([checkpoint["config"], checkpoint.get("overrides")])
    return checkpoint


def data_config_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the data that a checkpoint's model was trained on.

    Raises:
        UserError: where it does not say of what size they are.
    """
    data = checkpoint["config"].get("data")
    size = data.get("image_size") if isinstance(data, dict) else None
    sides = isinstance(size, list) and len(size) == 2 and all(is_integer(side, "[1, 8192]") for side in size)
    if not isinstance(data, dict) or not sides or not is_integer(data.get("channels"), "[1, 4096]"):
        raise UserError("the checkpoint's config does not say what images it was trained on: give another checkpoint")
    return data


def denoiser_of(checkpoint: Mapping[str, Any], *, weights: str = "ema") -> Denoiser:
    """As `load_denoiser`, for a checkpoint that is loaded already."""
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights} is unknown: choose ema or raw")
    if weights == "ema" and "ema_state_dict" not in checkpoint:
        raise UserError("weights=ema: the checkpoint holds no averaged weights; take weights=raw")
    config = checkpoint["config"].get("denoiser")
    check_targets(config, "denoiser")
    try:
        state = {**checkpoint["state_dict"], **(checkpoint["ema_state_dict"] if weights == "ema" else {})}
        prefix = "denoiser."
        theirs = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        with torch.device("meta"):  # first without memory: the config may ask for more than there is
            _fit(build("model", OmegaConf.create(config["model"])).state_dict(prefix="model."), theirs)
        denoiser: Denoiser = build("denoiser", OmegaConf.create(config))
        _fit(denoiser.state_dict(), theirs)
        denoiser.load_state_dict(theirs)
    except UserError:
        raise
    except Exception as error:  # a strange config has any of them
        raise UserError(f"the checkpoint's config and weights do not fit together: {one_line(error)}") from error
    if broken := [name for name, value in theirs.items() if not value.isfinite().all()]:
        raise UserError(
            f"weights={weights}: {len(broken)} of the checkpoint's weights are NaN or infinite, among them {broken[0]}: "
            "give an earlier checkpoint"
        )
    return denoiser.eval()


def _fit(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if wrong := differing(ours, theirs):
        raise UserError(
            f"the checkpoint's config and weights do not fit together, or it is of another version: {len(wrong)} "
            f"weights differ in name or shape, among them {', '.join(wrong[:3])}; give another checkpoint"
        )


def differing(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that only one of two networks has, or that differ in shape."""
    names = {*ours, *theirs}
    return sorted(
        str(n)
        for n in names
        if n not in ours or not isinstance(theirs.get(n), Tensor) or ours[n].shape != theirs[n].shape
    )


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
