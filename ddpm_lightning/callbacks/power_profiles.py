"""Power-function profiles of averaged weights (Karras et al. 2024, section 3 and appendix C)."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.ranges import require

__all__ = ["Profile", "coefficients", "decay_at", "exponent_of"]


class Profile(NamedTuple):
    """The weight p(τ) = (γ+1) τ^γ / t^{γ+1} of the weights at step τ in (0, t]: an average at step t of width `std`."""

    step: int
    std: float

    @property
    def exponent(self) -> float:
        """γ."""
        return exponent_of(self.std)


@cache
def exponent_of(std: float) -> float:
    """γ of the profile whose standard deviation is `std` times the training length (Karras et al. 2024, appendix C).

    σ_rel = (γ+1)^½ (γ+2)⁻¹ (γ+3)⁻½, so γ is the largest root of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻².

    Raises:
        UserError: for a width outside (0, 0.28].
    """
    require("std", std, "(0, 0.28]", hint="the width of the average relative to the length of the training")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


def decay_at(step: int, exponent: float) -> float:
    """β(t) = (1 − 1/t)^{γ+1} of the update at step t ≥ 1, which makes the weights of steps 1..t the integrals of p over (τ−1, τ]."""
    return (1 - 1 / step) ** (exponent + 1)


def coefficients(stored: Sequence[Profile], target: Profile) -> tuple[Tensor, float]:
    """The combination x of stored profiles p_i that is closest to the target profile p, and its relative distance.

    x minimizes ∫ (p(τ) − Σ x_i p_i(τ))² dτ: the solution of A x = b with A_ij = ∫ p_i p_j and b_i = ∫ p_i p. The distance is
    ‖p − Σ x_i p_i‖ / ‖p‖: 0 for a stored profile.

    Returns:
        x (N,) in float64, and the distance.
    """
    norms = torch.tensor([_inner(p, p) for p in stored], dtype=torch.float64).sqrt()
    gram = torch.tensor([[_inner(p, q) for q in stored] for p in stored], dtype=torch.float64) / norms / norms[:, None]
    right = torch.tensor([_inner(p, target) for p in stored], dtype=torch.float64) / norms
    x = torch.linalg.solve(gram, right)
    whole = _inner(target, target)
    missed = (whole - 2 * x @ right + x @ gram @ x) / whole
    return x / norms, float(missed.clamp(min=0).sqrt())


def _inner(p: Profile, q: Profile) -> float:
    """∫ p(τ) q(τ) dτ = (γ_p+1)(γ_q+1)/(γ_p+γ_q+1) · (t_p/t_q)^{γ_q}/t_q with t_p ≤ t_q."""
    if p.step > q.step:
        p, q = q, p
    return (
        (p.exponent + 1) * (q.exponent + 1) / (p.exponent + q.exponent + 1) * (p.step / q.step) ** q.exponent / q.step
    )
