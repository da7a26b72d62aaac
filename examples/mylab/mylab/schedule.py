"""A noise schedule: a function that gives the falling list of ᾱ_1, …, ᾱ_T."""

import torch

from ddpm_lightning import NoiseSchedule, schedules


def power(num_steps: int = 1000, exponent: float = 3.0) -> NoiseSchedule:
    """ᾱ_t = 1 − (t/T)^exponent, down to 10⁻⁴."""
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    return schedules.from_alpha_bar(1 - (1 - 1e-4) * t**exponent)
