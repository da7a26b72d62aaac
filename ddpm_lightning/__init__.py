"""Denoising diffusion probabilistic models with PyTorch Lightning, Hydra and Weights & Biases."""

from importlib import import_module
from typing import Any

# Imported when first asked for: the command line answers before torch is loaded.
_HOMES = {
    "NoiseSchedule": "schedules",
    "DiT": "models",
    "MLP": "models",
    "UNet": "models",
    "PREDICTIONS": "denoiser",
    "Denoiser": "denoiser",
    "Guided": "denoiser",
    "Step": "samplers",
    "Sampler": "samplers",
    "Ancestral": "samplers",
    "DDIM": "samplers",
    "DPMSolver2M": "samplers",
    "Heun": "samplers",
    "UniPC": "samplers",
    "Loss": "losses",
    "bits_per_dim": "likelihood",
    "DDPM": "module",
    "ImageDataModule": "data.datamodule",
    "EMA": "callbacks",
    "load_denoiser": "runs",
    "from_diffusers": "interop",
    "to_diffusers": "interop",
    "UserError": "errors",
}
_MODULES = (
    "schedules",
    "images",
    "models",
    "denoiser",
    "samplers",
    "losses",
    "likelihood",
    "interop",
    "module",
    "callbacks",
    "runs",
)

__all__ = [*_HOMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted(__all__)
