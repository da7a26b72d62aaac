"""Save denoisers that were built without a config."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm_lightning.callbacks import EMA
from ddpm_lightning.data.values import values_of
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file

__all__ = ["save_denoiser"]


def save_denoiser(
    denoiser: Denoiser,
    path: str | Path,
    *,
    ema: EMA | None = None,
    shape: Sequence[int] | None = None,
    dtype: str | None = None,
    value_range: Sequence[float] | None = None,
    model: Mapping[str, Any] | None = None,
) -> None:
    """Save a denoiser built without a config to a file for `load_denoiser` and sample.py, atomically.

    Args:
        denoiser: the denoiser, whose schedule is saved by its values.
        path: the file.
        ema: the EMA of its weights, saved beside them.
        shape: (C, H, W) of its images, or (C, ...) of other data, required by sample.py.
        dtype: see `ImageDataModule`; the dtype of saved samples.
        value_range: see `ImageDataModule`; the values at −1 and 1.
        model: `_target_` ("mylab.network.Mixer") and arguments of a custom network; networks of this package know theirs.

    Raises:
        UserError: for a network with unknown arguments, if `model` is not given.
    """
    node = dict(model) if model is not None else _node_of(denoiser.model)
    config: dict[str, Any] = {
        "denoiser": {
            "_target_": "ddpm_lightning.denoiser.Denoiser",
            "model": node,
            "schedule": {
                "_target_": "ddpm_lightning.schedules.from_alpha_bar",
                "alpha_bar": copy.deepcopy(denoiser.schedule).double().alpha_bar[1:].tolist(),
            },
            "prediction": denoiser.prediction,
            "learned_variance": denoiser.learned_variance,
            "sigma_data": denoiser.sigma_data,
        }
    }
    if shape is not None:
        config["data"] = {"channels": shape[0], "image_size": [*shape[1:]], "num_classes": denoiser.num_classes}
        config["data"] |= {"dtype": dtype, "value_range": None if value_range is None else [*map(float, value_range)]}
        values_of(config["data"])
    held: dict[str, Any] = {
        "state_dict": {
            f"denoiser.{name}": value.cpu()
            for name, value in denoiser.state_dict().items()
            if not name.startswith("schedule.")  # a learned one is saved by its values
        }
    }
    if ema is not None:
        held["ema_state_dict"] = {name: value.cpu() for name, value in ema.average.items()}
    with replace_file(Path(path), "wb") as file:
        torch.save({"config": config, **held}, file)


def _node_of(model: nn.Module) -> dict[str, Any]:
    """The config of a network that knows its arguments."""
    kind, settings = type(model), getattr(model, "settings", None)
    if settings is None or kind.__module__ == "__main__" or not _is_plain(settings):
        raise UserError(
            f"{kind.__name__} cannot be saved without its config: pass model={{'_target_': 'mylab.Net', ...}} with its arguments, or "
            "define it as a subclass of ddpm_lightning.models.Network in an importable module, with plain arguments"
        )
    home = "ddpm_lightning.models" if kind.__module__.startswith("ddpm_lightning.models.") else kind.__module__
    return {"_target_": f"{home}.{kind.__qualname__}", **_as_lists(settings)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return (
        all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, str | int | float | None)
    )


def _as_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_lists(child) for key, child in value.items()}
    return [_as_lists(child) for child in value] if isinstance(value, list | tuple) else value
