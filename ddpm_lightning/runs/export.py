"""Export a checkpoint's model to other libraries' formats, for `python -m ddpm_lightning export`."""

from pathlib import Path

from ddpm_lightning.interop import save_safetensors, to_diffusers
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.runs.loading import data_config_of, denoiser_of, load_checkpoint

__all__ = ["FORMATS", "export"]

FORMATS = ("diffusers", "safetensors")


def export(checkpoint: Path, folder: Path, *, weights: str = "ema", form: str = "diffusers") -> None:
    """Export a checkpoint's model to a new folder, atomically.

    Args:
        checkpoint: a checkpoint file or run folder.
        folder: a new or empty folder.
        weights: "ema" or "raw".
        form: "diffusers", a DDPMPipeline, or "safetensors", the weights under our names with the resolved config.

    Raises:
        UserError: for an unusable checkpoint, folder or setting.
    """
    require_one_of("format", form, FORMATS)
    content = load_checkpoint(checkpoint)
    denoiser = denoiser_of(content, weights=weights)
    if form == "safetensors":
        save_safetensors(denoiser, content["config"], folder)
    else:
        to_diffusers(denoiser, folder, image_size=data_config_of(content)["image_size"])
