"""Denoiser to checkpoint, for one that was made without a config."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file

__all__ = ["save_denoiser"]


def save_denoiser(
    denoiser: Denoiser,
    path: str | Path,
    *,
    shape: Sequence[int] | None = None,
    model: Mapping[str, Any] | None = None,
) -> None:
    """Write a denoiser that was made without a config to a file that `load_denoiser` and sample.py read; atomically.

    Args:
        denoiser: the denoiser, whose schedule is kept value by value.
        path: the file.
        shape: (C, H, W) of its images, which sample.py asks for.
        model: of a network of your own the `_target_`, "mylab.network.Mixer", and its arguments; those here know theirs.

    Raises:
        UserError: for a network that does not say what it was made with, where `model` does not either.
    """
    settings = getattr(denoiser.model, "settings", None)
    if model is None and settings is None:
        raise UserError(
            f"{type(denoiser.model).__name__} does not say what it was made with: give model={{'_target_': ..., ...}}, or let it be "
            "a subclass of ddpm_lightning.models.Network"
        )
    kind = type(denoiser.model)
    home = "ddpm_lightning.models" if kind.__module__.startswith("ddpm_lightning.models.") else kind.__module__
    config: dict[str, Any] = {
        "denoiser": {
            "_target_": "ddpm_lightning.denoiser.Denoiser",
            "model": dict(model)
            if model is not None
            else {"_target_": f"{home}.{kind.__qualname__}", **_plain(settings)},
            "schedule": {
                "_target_": "ddpm_lightning.schedules.from_alpha_bar",
                "alpha_bar": copy.deepcopy(denoiser.schedule).double().alpha_bar[1:].tolist(),
            },
            "prediction": denoiser.prediction,
            "learned_variance": denoiser.learned_variance,
        }
    }
    if shape is not None:
        config["data"] = {"channels": shape[0], "image_size": [*shape[1:]], "num_classes": denoiser.num_classes}
    weights = {f"denoiser.{name}": value.cpu() for name, value in denoiser.state_dict().items()}
    with replace_file(Path(path), "wb") as file:
        torch.save({"config": config, "state_dict": weights, "ema_state_dict": weights}, file)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, list | tuple) else value
