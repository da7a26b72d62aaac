"""What `python -m ddpm_lightning export` does: a checkpoint's model in the formats of others."""

from pathlib import Path

from ddpm_lightning.errors import UserError
from ddpm_lightning.interop import save_safetensors, to_diffusers
from ddpm_lightning.runs.loading import data_config_of, denoiser_of, load_checkpoint

__all__ = ["FORMATS", "export"]

FORMATS = ("diffusers", "safetensors")


def export(checkpoint: Path, folder: Path, *, weights: str = "ema", form: str = "diffusers") -> None:
    """Write a checkpoint's model to a new folder, all of it or nothing.

    Args:
        checkpoint: the file, or a run folder.
        folder: new, or empty.
        weights: "ema" or "raw".
        form: "diffusers", a DDPMPipeline, or "safetensors", the weights under our names beside the resolved config.

    Raises:
        UserError: where the checkpoint or a setting will not do.
    """
    if form not in FORMATS:
        raise UserError(f"format={form} is unknown: choose one of {', '.join(FORMATS)}")
    held = load_checkpoint(checkpoint)
    denoiser = denoiser_of(held, weights=weights)
    if form == "safetensors":
        save_safetensors(denoiser, held["config"], folder)
    else:
        to_diffusers(denoiser, folder, image_size=data_config_of(held)["image_size"])
