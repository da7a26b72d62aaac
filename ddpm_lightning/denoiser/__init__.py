"""The denoiser: network + schedule + prediction type, and guidance, which wraps it."""

from ddpm_lightning.denoiser.denoiser import INPUTS, PREDICTIONS, Denoiser
from ddpm_lightning.denoiser.guidance import Autoguided, Guidance, Guided, Interval, Rescaled, Wrapper

__all__ = ["INPUTS", "PREDICTIONS", "Autoguided", "Denoiser", "Guidance", "Guided", "Interval", "Rescaled", "Wrapper"]
