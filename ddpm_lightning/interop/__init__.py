"""Import and export of diffusers folders, without that library: JSON and safetensors in the layout of DDPMPipeline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import atomic_folder
from ddpm_lightning.interop.files import WEIGHTS, read_json, read_weights, reading, save_weights, write_json
from ddpm_lightning.interop.layout import config_of, names, schedule_of, scheduler_of, settings_of
from ddpm_lightning.models import UNet
from ddpm_lightning.ranges import require, require_one_of

__all__ = ["from_diffusers", "images_of", "is_diffusers_folder", "save_safetensors", "to_diffusers"]

OURS = "ddpm_lightning.json"  # settings without a place in diffusers' own files


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder looks like a DDPMPipeline or a UNet2DModel."""
    return (path / "model_index.json").is_file() or (path / "unet" / "config.json").is_file() or _is_unet(path)


def from_diffusers(folder: str | Path) -> Denoiser:
    """Load a denoiser, in eval mode, from a DDPMPipeline folder, such as google/ddpm-cifar10-32, or a UNet2DModel folder.

    A model with labels gets an additional null label with a zero embedding, unless `to_diffusers` wrote the folder. Without a
    scheduler, the schedule is diffusers' default, linear with T = 1000.

    Raises:
        UserError: if a file is missing or damaged, or `UNet` cannot represent the network.
    """
    folder = Path(folder)
    unet, config = _unet_of(folder)
    notes = read_json(folder / OURS, optional=True)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", optional=True)
    state = read_weights(unet)
    with reading(folder):
        schedule, prediction, learned = schedule_of(scheduler)
        settings = settings_of(config)
        if "class_embedding.weight" in state:
            table = state["class_embedding.weight"]
            settings["num_classes"] = notes.get("num_classes", len(table))
            require_one_of("num_classes", settings["num_classes"], [len(table) - 1, len(table)])
            missing = settings["num_classes"] + 1 - len(table)
            state["class_embedding.weight"] = torch.cat([table, table.new_zeros(missing, table.shape[1])])
        if config.get("flip_sin_to_cos", True):  # diffusers' order is [cos, sin]
            first = state["time_embedding.linear_1.weight"]
            state["time_embedding.linear_1.weight"] = first.roll(first.shape[1] // 2, 1)
        with torch.device("meta"):  # without memory first, since the config may ask for too much
            planned = UNet(**settings)
        weights = {
            name: torch.cat([state[key] for key in theirs]).reshape(planned.get_parameter(name).shape)
            for name, theirs in names(planned).items()
        }
        if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise UserError(f"{broken[0]} contains NaN or infinite values: use another checkpoint")
        model = UNet(**settings)
        model.load_state_dict(weights)
        return Denoiser(model, schedule, prediction=prediction, learned_variance=learned).eval()


def images_of(folder: str | Path) -> dict[str, Any]:
    """Channels and [height, width] of the network's training images."""
    folder = Path(folder)
    _, config = _unet_of(folder)
    notes = read_json(folder / OURS, optional=True)
    with reading(folder):
        size = notes.get("image_size") or config.get("sample_size") or 32
        height, width = [size, size] if isinstance(size, int) else size
        require("sample_size", height, "1..8192")
        require("sample_size", width, "1..8192")
        channels = config.get("in_channels", 3)
        require("in_channels", channels, "1..4096")
        return {"channels": channels, "image_size": [height, width]}


def to_diffusers(denoiser: Denoiser, folder: str | Path, *, image_size: Sequence[int] | None = None) -> None:
    """Write a folder for `diffusers.DDPMPipeline.from_pretrained`, atomically.

    Args:
        denoiser: a denoiser with a `UNet`.
        folder: a new or empty folder.
        image_size: (height, width) of the pipeline's samples, by default 32×32.

    Raises:
        UserError: if the folder is not empty, or diffusers has no such network.
    """
    model, size = denoiser.model, list(image_size or (32, 32))
    if not isinstance(model, UNet):
        raise UserError(f"{type(model).__name__} has no counterpart among diffusers' U-Nets: export to safetensors")
    config = config_of(model, size)
    state: dict[str, Tensor] = {}
    for mine, theirs in names(model).items():
        parts = model.state_dict()[mine].detach().cpu().float().chunk(len(theirs))
        flat = ".attention." in mine  # linear layers in diffusers, 1×1 convolutions here
        state |= {
            key: (part.flatten(1) if flat and part.ndim > 1 else part).contiguous()
            for key, part in zip(theirs, parts, strict=True)
        }
    notes = {"num_classes": model.num_classes, "image_size": size}
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    with atomic_folder(Path(folder)) as out:
        (out / "unet").mkdir()
        (out / "scheduler").mkdir()
        save_weights(state, out / "unet" / f"{WEIGHTS}.safetensors")
        write_json(out / "unet" / "config.json", config)
        write_json(out / "scheduler" / "scheduler_config.json", scheduler_of(denoiser))
        write_json(out / "model_index.json", index)
        write_json(out / OURS, notes)


def save_safetensors(denoiser: Denoiser, config: Mapping[str, Any], folder: str | Path) -> None:
    """Write a denoiser's weights, under our names, to model.safetensors, and its config to config.json.

    Raises:
        UserError: if the folder is not empty.
    """
    with atomic_folder(Path(folder)) as out:
        state = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
        save_weights(state, out / "model.safetensors")
        write_json(out / "config.json", config)


def _is_unet(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob(f"{WEIGHTS}.*"))


def _unet_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    unet = folder if _is_unet(folder) else folder / "unet"
    return unet, read_json(unet / "config.json")
