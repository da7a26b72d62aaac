"""Configs and weights on the disk, whole or not at all."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.torch_files import load_plain

__all__ = ["WEIGHTS", "check_new", "read_json", "read_weights", "save_weights", "write_json"]

WEIGHTS = "diffusion_pytorch_model"


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: give the folder of a DDPMPipeline, with unet/ and scheduler/") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file ({brief(error)}): fetch the folder again") from error
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
        state = _load_safe(path) if path == safe else load_plain(path, checked=False)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it holds no weights")
    except Exception as error:  # of many kinds
        raise UserError(f"{path} is damaged ({brief(error)}): fetch the folder again") from error
    old = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    renamed = {}
    for name, value in state.items():
        new = name
        for before, after in old.items():
            new = new.replace(before, after)
        renamed[new] = value
    return renamed


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, with a checksum of them among the file's metadata: the format itself has none."""
    save_file({**state}, path, metadata={"format": "pt", "sha256": _digest(state)})


def _load_safe(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        checksum = (file.metadata() or {}).get("sha256")
    if checksum not in (None, _digest(state)):
        raise ValueError("its checksum is wrong")
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(state):
        digest.update(f"{name} {fingerprint(state[name])} ".encode())
    return digest.hexdigest()


def check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: give the name of a new folder")
