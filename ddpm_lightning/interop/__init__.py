"""Folders of `diffusers`, in and out, without that library: JSON and safetensors in the layout of its DDPMPipeline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.files import atomic_folder
from ddpm_lightning.interop.files import WEIGHTS, check_new, read_json, read_weights, save_weights, write_json
from ddpm_lightning.interop.layout import config_of, names, schedule_of, scheduler_of, settings_of
from ddpm_lightning.models import UNet
from ddpm_lightning.ranges import is_integer
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["from_diffusers", "images_of", "is_diffusers_folder", "save_safetensors", "to_diffusers"]

OURS = "ddpm_lightning.json"  # what diffusers' own files have no place for


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder looks like a DDPMPipeline or a UNet2DModel."""
    return (path / "model_index.json").is_file() or (path / "unet" / "config.json").is_file() or _is_unet(path)


def from_diffusers(folder: str | Path) -> Denoiser:
    """The denoiser of a DDPMPipeline's folder, such as google/ddpm-cifar10-32, or of a UNet2DModel's, in evaluation mode.

    A model with labels is given one more, "no label", of zeros, unless the folder was written by `to_diffusers`. Where there
    is no scheduler, the schedule is diffusers' default, linear with T = 1000.

    Raises:
        UserError: where a file is missing or damaged, or the network is one that `UNet` is not.
    """
    unet, config = _unet_of(Path(folder))
    state, notes = read_weights(unet), _notes_of(Path(folder))
    try:
        schedule, prediction, learned = _schedule_of(Path(folder))
        settings = settings_of(config, unet / "config.json")
        if "class_embedding.weight" in state:
            table = state["class_embedding.weight"]
            settings["num_classes"] = notes.get("num_classes", len(table))
            if (missing := settings["num_classes"] + 1 - len(table)) not in (0, 1):
                raise ValueError(f"num_classes={settings['num_classes']}, and the embedding has {len(table)} rows")
            state["class_embedding.weight"] = torch.cat([table, table.new_zeros(missing, table.shape[1])])
        if config.get("flip_sin_to_cos", True):  # theirs are [cos, sin]
            first = state["time_embedding.linear_1.weight"]
            state["time_embedding.linear_1.weight"] = first.roll(first.shape[1] // 2, 1)
        with torch.device("meta"):  # first without memory: the config may ask for more than there is
            shapes = {name: value.shape for name, value in UNet(**settings).state_dict().items()}
        joined = {mine: torch.cat([state[key] for key in theirs]) for mine, theirs in names(settings)}
        weights = {name: joined[name].reshape(shape) for name, shape in shapes.items()}
        if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise ValueError(f"{broken[0]} holds NaN or infinity")
        model = UNet(**settings)
        model.load_state_dict(weights)
        denoiser = Denoiser(model, schedule, prediction=prediction, learned_variance=learned)
    except UserError:
        raise
    except Exception as error:  # a strange folder has any of them
        raise UserError(f"{unet} cannot be read as a U-Net of this package ({brief(error)})") from error
    return denoiser.eval()


def images_of(folder: str | Path) -> dict[str, Any]:
    """Channels and [height, width] of the images that a folder's network was trained on."""
    _, config = _unet_of(Path(folder))
    size, channels = (
        _notes_of(Path(folder)).get("image_size") or config.get("sample_size") or 32,
        config.get("in_channels", 3),
    )
    size = [size, size] if isinstance(size, int) else size
    sides = isinstance(size, list) and len(size) == 2 and all(is_integer(side, "[1, 8192]") for side in size)
    if not sides or not is_integer(channels, "[1, 4096]"):
        raise UserError(
            f"{folder}: images of {channels!r:.50} channels and a size of {size!r:.50} are none: fetch the folder again"
        )
    return {"channels": channels, "image_size": size}


def to_diffusers(denoiser: Denoiser, folder: str | Path, *, image_size: Sequence[int] | None = None) -> None:
    """Write a folder that `diffusers.DDPMPipeline.from_pretrained` loads and samples from; all of it or nothing.

    Args:
        denoiser: with a `UNet`.
        folder: new, or empty.
        image_size: (height, width) of what the pipeline draws, by default 32×32.

    Raises:
        UserError: where the folder holds files, or diffusers has no such network.
    """
    folder, size = Path(folder), list(image_size or (32, 32))
    check_new(folder)
    model = denoiser.model
    if not isinstance(model, UNet):
        raise UserError(f"{type(model).__name__} has no counterpart among diffusers' U-Nets: export to safetensors")
    config = config_of(model, size)
    state: dict[str, Tensor] = {}
    for mine, theirs in names(model.settings):
        parts = model.state_dict()[mine].detach().cpu().float().chunk(len(theirs))
        flat = ".attention." in mine  # linear layers there, 1×1 convolutions here
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
    with atomic_folder(folder) as out:
        (out / "unet").mkdir()
        (out / "scheduler").mkdir()
        save_weights(state, out / "unet" / f"{WEIGHTS}.safetensors")
        write_json(out / "unet" / "config.json", config)
        write_json(out / "scheduler" / "scheduler_config.json", scheduler_of(denoiser))
        write_json(out / "model_index.json", index)
        write_json(out / OURS, notes)


def save_safetensors(denoiser: Denoiser, config: Mapping[str, Any], folder: str | Path) -> None:
    """Write a denoiser's weights, under their names here, as model.safetensors, and its config as config.json.

    Raises:
        UserError: where the folder holds files.
    """
    folder = Path(folder)
    check_new(folder)
    with atomic_folder(folder) as out:
        state = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
        save_weights(state, out / "model.safetensors")
        write_json(out / "config.json", config)


def _is_unet(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob(f"{WEIGHTS}.*"))


def _unet_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    unet = folder if _is_unet(folder) else folder / "unet"
    config = read_json(unet / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise UserError(f"{unet / 'config.json'} is of a {config['_class_name']}: only UNet2DModel can be read")
    return unet, config


def _notes_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / OURS) if (folder / OURS).is_file() else {}


def _schedule_of(folder: Path) -> tuple[NoiseSchedule, str, bool]:
    path = folder / "scheduler" / "scheduler_config.json"
    return schedule_of(read_json(path) if path.is_file() else {}, path)
