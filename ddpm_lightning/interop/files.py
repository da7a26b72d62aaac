"""Read and write config and weight files."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.records.torch import load_plain

__all__ = ["WEIGHTS", "read_json", "read_weights", "reading", "save_weights", "write_json"]

WEIGHTS = "diffusion_pytorch_model"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors from a file or folder into a UserError that names it.

    Raises:
        UserError: in place of any exception, since a damaged file can raise any type.
    """
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is missing: give the folder of a DDPMPipeline, with unet/ and scheduler/")
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read ({brief(error)}): download the folder again") from error


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty for a missing optional file."""
    if optional and not path.exists():
        return {}
    with reading(path):
        return {**json.loads(path.read_text())}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_weights(unet: Path) -> dict[str, Tensor]:
    """The state dict, with the attention names used since diffusers 0.17."""
    old = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    safe, pickled = unet / f"{WEIGHTS}.safetensors", unet / f"{WEIGHTS}.bin"
    path = pickled if pickled.is_file() and not safe.is_file() else safe
    with reading(path):
        state = _load_safe(safe) if path == safe else load_plain(pickled, checked=False)
        for before, after in old.items():
            state = {name.replace(before, after): value for name, value in state.items()}
    return state


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors with a checksum in the metadata, since the format has none."""
    save_file({**state}, path, metadata={"format": "pt", "sha256": _digest(state)})


def _load_safe(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        checksum = (file.metadata() or {}).get("sha256")
    if checksum not in (None, _digest(state)):
        raise ValueError("its checksum is wrong")
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(state):
        digest.update(f"{name} {fingerprint(state[name])} ".encode())
    return digest.hexdigest()
