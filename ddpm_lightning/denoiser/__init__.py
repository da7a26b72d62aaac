"""The denoiser: network + schedule + prediction type; guidance, which wraps it; and the ideal denoiser of a list of images."""

from ddpm_lightning.denoiser.denoiser import INPUTS, PREDICTIONS, Denoiser
from ddpm_lightning.denoiser.guidance import Guidance, Guided
from ddpm_lightning.denoiser.ideal import IdealDenoiser

__all__ = ["INPUTS", "PREDICTIONS", "Denoiser", "Guidance", "Guided", "IdealDenoiser"]
