"""Bits per dimension of the probability-flow ODE."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.ranges import require

__all__ = ["ode_bits_per_dim"]

_BIN = 2 / 255  # the distance of two of the 256 values


@torch.no_grad()
def ode_bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    y: Condition | None = None,
    *,
    num_steps: int = 50,
    probes: int | None = 1,
    uniform: Tensor | None = None,
    randn: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """(B,) −log₂ p(x_0)/D of the model's probability-flow ODE, which the deterministic samplers solve (Song et al. 2021b, Eq. 39).

    With x_φ = cos φ x_0 + sin φ ε the ODE is dx/dφ = v̂, and d log p/dφ = −∇·v̂ with ∇·v̂ = (cos φ D − tr ∂x̂_0/∂x)/sin φ. It begins at t = 1,
    ends in N(0, I) at T, and is solved by Runge & Kutta's fourth order in equal steps of log φ, with 4·num_steps evaluations.

    Args:
        denoiser: in eval mode.
        x0: (B, C, ...) points of a density; images of 256 values with `uniform`.
        y: (B,) labels or another condition.
        num_steps: of the solver.
        probes: random signs for the trace (Hutchinson 1989), each with a backward pass; None for the exact trace, with one for each value of x.
        uniform: shaped like x0, samples from U[0, 1), which spread each of 256 values over its bin: the result bounds the probability's bits.
        randn: gives noise like x; its signs are the probes.
    """
    require("num_steps", num_steps, "1..")
    require("probes", probes, "1..", optional=True)
    schedule, D = denoiser.schedule, x0[0].numel()
    if uniform is not None:
        x0 = x0 + (uniform - 0.5) * _BIN
    if probes is None:
        one_hot = torch.eye(D, dtype=x0.dtype, device=x0.device)
        signs = [row.reshape(1, *x0.shape[1:]).expand_as(x0) for row in one_hot]
    else:
        signs = [randn(x0).sign() / math.sqrt(probes) for _ in range(probes)]
    first, last = (
        torch.atan2(s, a) for a, s in map(schedule.scales, torch.tensor([1, schedule.num_steps], device=x0.device))
    )
    path = torch.lerp(first.log(), last.log(), torch.linspace(0, 1, num_steps + 1, dtype=first.dtype, device=x0.device))
    log_a = torch.cos(first).log()
    x, log_p = log_a.exp() * x0, D * log_a.expand(len(x0))  # p(x_0) = a_1^D p(x_1) with x_1 = a_1 x_0
    for now, after in pairwise(path):
        h, half = after - now, (now + after) / 2
        k1, l1 = _slope(denoiser, x, now, y, signs)
        k2, l2 = _slope(denoiser, x + h / 2 * k1, half, y, signs)
        k3, l3 = _slope(denoiser, x + h / 2 * k2, half, y, signs)
        k4, l4 = _slope(denoiser, x + h * k3, after, y, signs)
        x, log_p = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), log_p + h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
    log_p = log_p - (x**2).flatten(1).sum(1) / 2 - D / 2 * math.log(2 * math.pi)
    return -log_p / (D * math.log(2)) - (0 if uniform is None else math.log2(_BIN))


def _slope(
    denoiser: Denoiser, x: Tensor, log_phi: Tensor, y: Condition | None, signs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """dx/d log φ = φ v̂, and φ ∇·v̂, by which log p(x_0) exceeds that of x_φ."""
    phi = log_phi.exp()
    t = denoiser.schedule.time_at(2 * (phi.cos().clamp(min=0).log() - phi.sin().log()))
    a, s = denoiser.schedule.scales(t)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = denoiser(x, t, y)
        products = [torch.autograd.grad(x0, x, sign, retain_graph=True)[0] * sign for sign in signs]
    trace = sum(part.flatten(1).sum(1) for part in products)
    v = (x - a * x0) * a / s - s * x0
    return phi * v.detach(), phi * (a * x[0].numel() - trace) / s
