"""The noise schedules of the papers, each a function that gives the table of ᾱ_t, and λ(t) in continuous time if its source does."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ddpm_lightning.ranges import is_integer, require
from ddpm_lightning.schedules.process import NoiseSchedule

__all__ = [
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

_STEPS = "1..1000000"


def from_betas(betas: Sequence[float] | Tensor) -> NoiseSchedule:
    """The schedule of any list of variances: ᾱ_t = Π_{s ≤ t} (1 − β_s), `betas[t-1]` = β_t in (0, 1]."""
    return from_alpha_bar(torch.cumprod(1 - _list_of_numbers("betas", betas), 0))


def from_alpha_bar(alpha_bar: Sequence[float] | Tensor) -> NoiseSchedule:
    """The schedule of any falling list ᾱ_1, …, ᾱ_T (ᾱ_0 = 1 is put before it)."""
    table = _list_of_numbers("alpha_bar", alpha_bar)
    return NoiseSchedule(torch.cat([torch.ones(1, dtype=torch.float64), table]))


def linear(
    num_steps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02, rescale: bool = False
) -> NoiseSchedule:
    """β rises in equal steps, β_t = β_1 + (t−1)/(T−1) (β_T − β_1) (Ho et al. 2020, section 4).

    diffusers calls this curve "linear"; "linear" in latent-diffusion code is another one, with √β in equal steps: `quadratic`.

    Args:
        rescale: betas times 1000/T, so that every T ends at much the same noise, as in the code of Nichol & Dhariwal
            2021 (their T = 4000) and in guided-diffusion. Off, few steps do not reach noise: T = 100 ends at ᾱ_T = 0.36.
    """
    require("beta_start", beta_start, "(0, 1]")
    require("beta_end", beta_end, "(0, 1]")
    if rescale:
        fewest = math.ceil(1000 * max(beta_start, beta_end))
        require("num_steps", num_steps, f"{fewest}..", hint="with rescale=true, fewer steps make betas larger than 1")
    scale = 1000 / num_steps if rescale else 1.0
    return from_betas(_linspace(beta_start * scale, beta_end * scale, num_steps))


def quadratic(num_steps: int = 1000, *, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
    """√β rises in equal steps, √β_t = √β_1 + (t−1)/(T−1) (√β_T − √β_1) (Rombach et al. 2022; defaults of Stable Diffusion).

    diffusers calls this curve "scaled_linear", the code of latent diffusion "linear", and that of Ho et al. 2020 "quad".
    """
    require("beta_start", beta_start, "(0, 1]")
    require("beta_end", beta_end, "(0, 1]")
    return from_betas(_linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_steps) ** 2)


def constant(num_steps: int = 1000, *, beta: float = 0.01) -> NoiseSchedule:
    """β_t = β at every step, ᾱ_t = (1 − β)^t (tried in Ho et al. 2020, appendix B); "const" in their code."""
    require("beta", beta, "(0, 1]")
    exact = from_betas(_linspace(beta, beta, num_steps))
    return exact if beta == 1 else NoiseSchedule(exact._exact, curve=partial(_constant, rate=-math.log1p(-beta)))


def _constant(t: Tensor, *, rate: float) -> Tensor:
    return -torch.log(torch.expm1(rate * t))


def sigmoid_beta(num_steps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """β_t = β_start + (β_end − β_start) σ(−6 + 12 (t−1)/(T−1)), σ the logistic function (Xu et al. 2022, GeoDiff).

    diffusers calls this curve "sigmoid", and its defaults are ours; GeoDiff itself has T = 5000, 1e-7 and 0.002.
    """
    require("beta_start", beta_start, "(0, 1]")
    require("beta_end", beta_end, "(0, 1]")
    return from_betas(torch.sigmoid(_linspace(-6, 6, num_steps)) * (beta_end - beta_start) + beta_start)


def cosine(num_steps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), with β_t ≤ max_beta (Nichol & Dhariwal 2021, Eq. 17).

    diffusers calls this curve "squaredcos_cap_v2".
    """
    require("s", s, "[0, 1]")
    require("max_beta", max_beta, "(0, 1]")
    f = torch.cos((_steps(num_steps) / num_steps + s) / (1 + s) * math.pi / 2) ** 2
    betas = 1 - f[1:] / f[:-1]
    table = from_betas(betas.clamp(max=max_beta))
    if (betas[:-1] > max_beta).any():
        return table  # which leaves the curve before its end
    return NoiseSchedule(
        table._exact, curve=partial(_cosine, T=num_steps, s=s, lowest=float(table._tables()["log_snr"][-1]))
    )


def _cosine(t: Tensor, *, T: int, s: float, lowest: float) -> Tensor:
    """log(ᾱ/(1−ᾱ)) with ᾱ = cos²θ/cos²θ_0, whose 1 − ᾱ is sin(θ−θ_0) sin(θ+θ_0)/cos²θ_0; not below λ_T, whose β is clamped."""
    since, first = t / T / (1 + s) * math.pi / 2, s / (1 + s) * math.pi / 2
    theta = since + first
    return (2 * theta.cos().clamp(min=0).log() - (since.sin() * (theta + first).sin()).log()).clamp(min=lowest)


def shifted_cosine(
    num_steps: int = 1000,
    *,
    image_size: int | Sequence[int],
    noise_d: int = 64,
    min_log_snr: float = -15.0,
    max_log_snr: float = 15.0,
) -> NoiseSchedule:
    """A cosine whose log SNR is shifted with the image's size, so that large images get as much noise as small ones.

    λ_t = −2 log tan(a + t/T (z − a)) + 2 log(noise_d/image_size), a = atan(e^{−max_log_snr/2}), z = atan(e^{−min_log_snr/2}),
    ᾱ = σ(λ) (Hoogeboom et al. 2023, simple diffusion, section 3.1). The range of log SNR is that before the shift.

    Args:
        image_size: side in pixels, or [height, width], which counts as the square of the same area.
        noise_d: the side at which nothing is shifted; smaller images get less noise.
    """
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size, image_size]
    if len(sides) != 2 or not all(is_integer(side, "1..65536") for side in sides):
        raise ValueError(f"image_size must be an integer from 1 to 65536 or [height, width], got {image_size}")
    require("noise_d", noise_d, "1..65536")
    require("max_log_snr", max_log_snr, "[-100, 100]")
    require("min_log_snr", min_log_snr, f"[-100, {max_log_snr})")
    a, z = math.atan(math.exp(-max_log_snr / 2)), math.atan(math.exp(-min_log_snr / 2))
    shift = math.log(noise_d**2 / math.prod(sides))
    return _from_curve(num_steps, partial(_shifted_cosine, T=num_steps, a=a, z=z, shift=shift))


def _shifted_cosine(t: Tensor, *, T: int, a: float, z: float, shift: float) -> Tensor:
    return -2 * torch.log(torch.tan(a + t / T * (z - a))) + shift


def sigmoid(
    num_steps: int = 1000, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, clip_min: float = 1e-9
) -> NoiseSchedule:
    """ᾱ_t = (σ(end/τ) − σ((start + t/T (end − start))/τ)) / (σ(end/τ) − σ(start/τ)), not below clip_min (Chen 2023, Alg. 1).

    Proposed by Jabri et al. 2022. diffusers' "sigmoid" is another curve, with the sigmoid on β: `sigmoid_beta`.
    """
    require("end", end, "(-100, 100]")
    require("start", start, f"[-100, {end})")
    require("tau", tau, "(0, inf)")
    require("clip_min", clip_min, "[0, 1)")
    lowest = math.log(clip_min / (1 - clip_min)) if clip_min > 0 else -math.inf
    return _from_curve(num_steps, partial(_sigmoid, T=num_steps, start=start / tau, end=end / tau, lowest=lowest))


def _sigmoid(t: Tensor, *, T: int, start: float, end: float, lowest: float) -> Tensor:
    """log(ᾱ/(1−ᾱ)) from σ(b) − σ(a) = sinh((b−a)/2)/(2 cosh(a/2) cosh(b/2)), which does not cancel."""
    half, u = (end - start) / 2, t / T
    ends = math.log(math.cosh(start / 2)) - math.log(math.cosh(end / 2))
    return (torch.log(torch.sinh((1 - u) * half) / torch.sinh(u * half)) + ends).clamp(min=lowest)


def laplace(num_steps: int = 1000, *, mu: float = 0.0, b: float = 0.5) -> NoiseSchedule:
    """log SNR is Laplace-distributed: λ_t = μ − b sgn(½ − t/T) log(1 − 2|t/T − ½|), ᾱ = σ(λ) (Hang & Gu 2024).

    λ_T would be −∞: the logarithm's argument stops at 1e-6, as diffusers' does, so that ᾱ_T is small but not 0.
    diffusers' "laplace" has √σ(λ) where ᾱ belongs: its ᾱ is the root of this one.
    """
    require("mu", mu, "(-inf, inf)")
    require("b", b, "(0, inf)")
    return _from_curve(num_steps, partial(_laplace, T=num_steps, mu=mu, b=b))


def _laplace(t: Tensor, *, T: int, mu: float, b: float) -> Tensor:
    u = t / T
    return mu + b * (u - 0.5).sign() * torch.log((2 * torch.minimum(u, 1 - u)).clamp(min=1e-6))


def flow(num_steps: int = 1000, *, shift: float = 1.0) -> NoiseSchedule:
    """Rectified flow's path x = (1−τ) x_0 + τ ε up to its scale: λ = 2 log((1−τ)/τ), ᾱ = (1−τ)²/((1−τ)² + τ²) (Liu et al. 2023).

    τ = shift·u/(1 + (shift−1)·u) at u = t/T (Esser et al. 2024, Eq. 23). ᾱ_T = 0: predict flow, v or x0.

    Args:
        shift: above 1 for more noise, as large images need: √(m/n) for m pixels where n have 1.
    """
    require("shift", shift, "(0, 1e6]")
    return _from_curve(num_steps, partial(_flow, T=num_steps, shift=shift))


def _flow(t: Tensor, *, T: int, shift: float) -> Tensor:
    return 2 * torch.log((T - t) / (shift * t))  # (1−τ)/τ = (1−u)/(shift·u)


def edm(num_steps: int = 1000, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseSchedule:
    """σ^(1/ρ) rises in equal steps from σ_min to σ_max, ᾱ = 1/(1 + σ²) (Karras et al. 2022, Eq. 5; theirs falls).

    Their training draws ln σ from a normal distribution: `loss/times=log_normal`.
    """
    require("rho", rho, "[1e-3, 1e3]")
    require("sigma_max", sigma_max, "(0, 1e6]")
    require("sigma_min", sigma_min, f"(0, {sigma_max})")
    return _from_curve(num_steps, partial(_edm, T=num_steps, low=sigma_min, high=sigma_max, rho=rho))


def _edm(t: Tensor, *, T: int, low: float, high: float, rho: float) -> Tensor:
    """−2 ln σ, where σ falls to 0 linearly below σ_min, in t < 1."""
    low_root, high_root = low ** (1 / rho), high ** (1 / rho)
    root = low_root + (t - 1).clamp(min=0) / max(T - 1, 1) * (high_root - low_root)
    return -2 * (rho * root.log() + t.clamp(max=1).log())


def rescale_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """√ᾱ shifted and scaled so that ᾱ_T = 0 and ᾱ_1 stays: √ᾱ'_t = √ᾱ_1 (√ᾱ_t − √ᾱ_T)/(√ᾱ_1 − √ᾱ_T) (Lin et al. 2023, Alg. 1).

    diffusers calls this `rescale_betas_zero_snr`. x_T is then noise alone, which says nothing of ε: predict v or x0.
    """
    require("num_steps", schedule.num_steps, "2..")
    alpha_bar = schedule._exact[1:]
    root = alpha_bar.sqrt()
    return from_alpha_bar(alpha_bar[0] * ((root - root[-1]) / (root[0] - root[-1])) ** 2)


def _from_curve(num_steps: int, curve: Callable[[Tensor], Tensor]) -> NoiseSchedule:
    """ᾱ_t = σ(λ(t)), σ the logistic function."""
    alpha_bar = torch.sigmoid(curve(_steps(num_steps)))
    alpha_bar[0] = 1
    return NoiseSchedule(alpha_bar, curve=curve)


def _steps(num_steps: int) -> Tensor:
    """(T+1,) t = 0..T."""
    require("num_steps", num_steps, _STEPS)
    return torch.arange(num_steps + 1, dtype=torch.float64)


def _linspace(first: float, last: float, num_steps: int) -> Tensor:
    """(T,) values in equal steps for t = 1..T."""
    require("num_steps", num_steps, _STEPS)
    return torch.linspace(first, last, num_steps, dtype=torch.float64)


def _list_of_numbers(name: str, values: Sequence[float] | Tensor) -> Tensor:
    try:
        table = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        table = torch.empty(0)
    if table.ndim != 1 or len(table) == 0:
        raise ValueError(f"{name} must be a list of numbers, one for each of the steps 1..T, got {values}")
    return table
