"""Noise schedules: the forward process, and the papers' choices of it."""

from ddpm_lightning.schedules.families import (
    constant,
    cosine,
    edm,
    flow,
    from_alpha_bar,
    from_betas,
    laplace,
    linear,
    quadratic,
    rescale_zero_terminal_snr,
    shifted_cosine,
    sigmoid,
    sigmoid_beta,
)
from ddpm_lightning.schedules.process import NoiseSchedule

__all__ = [
    "NoiseSchedule",
    "constant",
    "cosine",
    "edm",
    "flow",
    "from_alpha_bar",
    "from_betas",
    "laplace",
    "linear",
    "quadratic",
    "rescale_zero_terminal_snr",
    "shifted_cosine",
    "sigmoid",
    "sigmoid_beta",
]
