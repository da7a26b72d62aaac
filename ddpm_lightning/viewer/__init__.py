"""A viewer of the reverse process: one HTML page with x_t beside the estimates of x_0 and ε at each timestep."""

from ddpm_lightning.viewer.frames import (
    Frame,
    beside_estimates,
    choose_frames,
    estimated_noise,
    evenly,
    is_viewable,
    most_images,
    pixels_of,
)
from ddpm_lightning.viewer.page import captions_of, facts_of, render, sprite_sheet

__all__ = [
    "Frame",
    "beside_estimates",
    "captions_of",
    "choose_frames",
    "estimated_noise",
    "evenly",
    "facts_of",
    "is_viewable",
    "most_images",
    "pixels_of",
    "render",
    "sprite_sheet",
]
