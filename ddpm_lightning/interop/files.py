"""Configs and weights on the disk, whole or not at all."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm_lightning.errors import UserError

__all__ = ["WEIGHTS", "check_new", "read_json", "read_weights", "write_json"]

WEIGHTS = "diffusion_pytorch_model"


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give the folder of a DDPMPipeline, with unet/ and scheduler/") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON file ({error}): fetch the folder again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no config: fetch the folder again")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_weights(unet: Path) -> dict[str, Tensor]:
    """The state dict, under the names that attention has had since diffusers 0.17."""
    safe, pickled = unet / f"{WEIGHTS}.safetensors", unet / f"{WEIGHTS}.bin"
    path = safe if safe.is_file() else pickled
    if not path.is_file():
        raise UserError(f"{safe} is missing: fetch the folder again, with its weights")
    try:
        state = load_file(path) if path == safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): fetch the folder again") from error
    old = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    renamed = {}
    for name, value in state.items():
        new = name
        for before, after in old.items():
            new = new.replace(before, after)
        renamed[new] = value
    return renamed


def check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: give the name of a new folder")
