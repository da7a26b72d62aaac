"""Build runs from configs, and load denoisers from checkpoints."""

from ddpm_lightning.runs.loading import load_checkpoint, load_denoiser, newest_checkpoint
from ddpm_lightning.runs.sampling import sample
from ddpm_lightning.runs.saving import save_denoiser
from ddpm_lightning.runs.training import train

__all__ = ["load_checkpoint", "load_denoiser", "newest_checkpoint", "sample", "save_denoiser", "train"]
