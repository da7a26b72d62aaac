"""Editing: inpainting and other linear inverse problems, image to image, inversion and interpolation."""

from ddpm_lightning.editing.edits import from_image, inverse_times, invert, late_times, slerp
from ddpm_lightning.editing.operators import Blur, Downsample, Mask, Measurement, Operator
from ddpm_lightning.editing.posterior import Moments, PosteriorDenoiser
from ddpm_lightning.editing.restoration import DPS, MMPS, PiGDM, RePaint, Restoration

__all__ = [
    "DPS",
    "MMPS",
    "Blur",
    "Downsample",
    "Mask",
    "Measurement",
    "Moments",
    "Operator",
    "PiGDM",
    "PosteriorDenoiser",
    "RePaint",
    "Restoration",
    "from_image",
    "inverse_times",
    "invert",
    "late_times",
    "slerp",
]
