"""The solvers: the shared reverse step with different estimates x̄_0."""

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.samplers.base import Noise, Options, Point, Sampler, Transition, reverse_step
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DDIM", "DEIS", "EDM", "IPNDM", "Ancestral", "DPMSolver", "Heun", "Multistep", "SASolver", "UniPC"]


class Ancestral(Sampler):
    """Samples from q(x_u | x_t, x̂_0); at u = t−1 this is Algorithm 25.2 (Murphy 2023; Ho et al. 2020, Algorithm 2).

    Args:
        variance: "small" is the posterior's β̃_{t|u}; "large" is β_{t|u} = 1 − ᾱ_t/ᾱ_u (β_t at u = t−1); "learned" is the
            network's (Nichol & Dhariwal 2021, Eq. 15). The last two add no noise at u = 0.
    """

    eta = 1.0

    def __init__(self, num_steps: int | None = None, *, variance: str = "small", **options: Unpack[Options]):
        super().__init__(num_steps, **options)
        require_one_of("variance", variance, ["small", "large", "learned"])
        self.variance = variance
        self.learned_variance = variance == "learned"

    def step(self, at: Transition) -> Tensor:
        mean, sigma = reverse_step(at.schedule, at.here, at.here.x0, at.u, eta=self.eta)
        if self.variance == "large":
            sigma = torch.where(at.u > 0, at.schedule.step_variances(at.here.t, at.u)[1].sqrt(), sigma)
        elif at.here.log_variance is not None:
            sigma = torch.where(at.u > 0, torch.exp(at.here.log_variance / 2), sigma)
        return mean + sigma * at.randn(at.here.x)


class DDIM(Sampler):
    """DDIM, from the deterministic (η = 0) to the ancestral sampler (η = 1) (Song et al. 2021, Eq. 12, 16)."""

    def __init__(self, num_steps: int | None = 50, *, eta: float = 0.0, **options: Unpack[Options]):
        super().__init__(num_steps, **options)
        require("eta", eta, "[0, 1]")
        self.eta = eta

    def step(self, at: Transition) -> Tensor:
        return at.step(at.here.x0, eta=self.eta)


class Heun(Sampler):
    """Second order from a second evaluation after a first-order step: x̄_0 = (x̂_0(t) + x̂_0(u))/2.

    The trapezoidal rule in the variables of `reverse_step` (after Karras et al. 2022, Algorithm 1); 2N − 1 evaluations.
    `in_noise` averages ε̂ instead of x̂_0.
    """

    in_noise = False

    def step(self, at: Transition) -> Tensor:
        x = at.step(at.here.x0)
        if not _finite(at.schedule, at.here.t, at.u):
            return x
        there = at.ask(x, at.u, at.here.t)
        return at.step(_average(at.schedule, at.here, [there], [0.5], in_noise=self.in_noise))


class EDM(Heun):
    """EDM's stochastic sampler: noise added, σ → (1+γ)σ, before each step of Heun's method in σ = s/a (Karras et al. 2022, Algorithm 2).

    γ = min(s_churn/N, √2 − 1) where s_tmin ≤ σ ≤ s_tmax (None: ∞), else 0. As in their code, (1+γ)σ is rounded to a timestep
    unless time is continuous, and `s_noise` scales the noise. Without churn it is Algorithm 1. 2N − 1 evaluations.
    """

    in_noise = True

    def __init__(
        self,
        num_steps: int | None = 18,
        *,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float | None = None,
        s_noise: float = 1.0,
        **options: Unpack[Options],
    ):
        super().__init__(num_steps, **options)
        require("s_churn", s_churn, "[0, inf)")
        require("s_tmin", s_tmin, "[0, inf)")
        require("s_tmax", s_tmax, "(0, inf)", optional=True)
        require("s_noise", s_noise, "(0, inf)")
        self.s_churn, self.s_noise, self.eta = s_churn, s_noise, float(s_churn > 0)
        self.s_range = s_tmin, math.inf if s_tmax is None else s_tmax

    def perturb(self, schedule: NoiseSchedule, x: Tensor, t: Tensor, steps: int, randn: Noise) -> tuple[Tensor, Tensor]:
        level, gamma = schedule.log_snr_at(t), min(self.s_churn / steps, math.sqrt(2) - 1)
        if gamma == 0 or level.isinf() or not self.s_range[0] <= torch.exp(-level / 2) <= self.s_range[1]:
            return x, t
        raised = level - 2 * math.log1p(gamma)
        back = schedule.time_at(raised) if t.is_floating_point() else (schedule.log_snr - raised).abs().argmin()
        (a, s), (a_back, s_back) = schedule.scales(t), schedule.scales(back)
        added = ((s_back / a_back) ** 2 - (s / a) ** 2).clamp(min=0).sqrt()
        return a_back * (x / a + self.s_noise * added * randn(x)), back


class Multistep(Sampler, ABC):
    """x̄_0 = x̂_0(t) + Σ_j w_j (x̂_0(t_j) − x̂_0(t)) from past points (exponential Adams method; Hochbruck & Ostermann 2010).

    With λ = log(a/s), h = λ_u − λ_t, τ = (λ − λ_t)/h, the step x_u = √(s_u² − n²)/s_t x_t + a_u (1 − e^{−H}) x̄_0 is exact for a
    polynomial x̂_0(λ) if Σ_j w_j τ_j^k = M_k = k! φ_{k+1}(−H)/φ_1(−H), the moments of e^{−H(1−τ)} on [0, 1]. H is h for the ODE,
    2h for the SDE. `in_noise` averages ε̂ instead of x̂_0, where H is −h. The order is lower in the first
    steps, and 1 where a log SNR is infinite.
    """

    in_noise = False

    def __init__(
        self, num_steps: int | None, *, order: int, highest: int, eta: float = 0.0, **options: Unpack[Options]
    ):
        super().__init__(num_steps, **options)
        require("order", order, f"1..{highest}")
        require("eta", eta, "[0, 1]")
        self.order, self.eta = order, eta

    def step(self, at: Transition) -> Tensor:
        return at.step(self.average(at.schedule, at.here, at.u, at.past[::-1][: self.order - 1]), eta=self.eta)

    def average(self, schedule: NoiseSchedule, here: Point, u: Tensor, others: Sequence[Point]) -> Tensor:
        """x̄_0 of the step from `here` to u, with other points, nearest first."""
        levels = (float(schedule.log_snr_at(t)) / 2 for t in (u, here.t, *(point.t for point in others)))
        return _average(schedule, here, others, self.weights(*levels), in_noise=self.in_noise)

    def weights(self, u: float, t: float, *others: float) -> list[float]:
        """The weights of other points, from all λ; none of those with infinite λ, and none at all if λ_u or λ_t is."""
        h, finite = u - t, [*filter(math.isfinite, others)]
        if not finite or math.isinf(h):
            return []
        return _solve([(other - t) / h for other in finite], self.moments(h, len(finite) + 1))

    def moments(self, h: float, n: int) -> list[float]:
        """M_0 = 1, ..., M_{n−1}, from the exponential of one matrix, which is exact near h = 0, too (Sidje 1998)."""
        matrix = torch.diag(torch.ones(n, dtype=torch.float64), 1)
        matrix[0, 0] = h if self.in_noise else math.log(1 - self.eta**2 + self.eta**2 * math.exp(-2 * h)) / 2 - h
        phi = torch.linalg.matrix_exp(matrix)[0, 1:].tolist()
        return [math.factorial(k) * phi[k] / phi[0] for k in range(n)]


class DPMSolver(Multistep):
    """DPM-Solver++ of order 1 (DDIM), 2 (2M) or 3 (3M), with one evaluation per step (Lu et al. 2022b, Algorithm 2).

    2M is x̄_0 = x̂_0(t) + h/(2 h') (x̂_0(t) − x̂_0(t')). 3M is that of the authors' code, which takes half of the second divided
    difference, and so converges with order 2. η = 1 is the SDE variant (section 6).
    """

    def __init__(self, num_steps: int | None = 20, *, order: int = 2, eta: float = 0.0, **options: Unpack[Options]):
        super().__init__(num_steps, order=order, highest=3, eta=eta, **options)

    def moments(self, h: float, n: int) -> list[float]:
        exact = super().moments(h, n)
        return [1.0, 0.5] if n == 2 else [*exact[:2], *(moment / 2 for moment in exact[2:])]


class SASolver(Multistep):
    """SA-Solver's predictor: the exponential Adams-Bashforth method for the SDE, in data prediction (Xue et al. 2023, section 4).

    Their τ is η where it is 0 or 1. Their corrector, which takes no more evaluations, is left out.
    """

    def __init__(self, num_steps: int | None = 20, *, order: int = 2, eta: float = 1.0, **options: Unpack[Options]):
        super().__init__(num_steps, order=order, highest=4, eta=eta, **options)


class UniPC(Multistep):
    """UniPC in data prediction, with one evaluation per step (Zhao et al. 2023, Algorithms 1, 2).

    The corrector repeats the previous step with the new estimate as a further point, which raises the order by 1. As in the
    authors' code, the order is at most 2 in the step before one to infinite log SNR. `variant` is B(h), of effect with two points
    only: e^h − 1 for "bh2", h for "bh1".
    """

    def __init__(self, num_steps: int | None = 20, *, order: int = 2, variant: str = "bh2", **options: Unpack[Options]):
        super().__init__(num_steps, order=order, highest=3, **options)
        require_one_of("variant", variant, ["bh1", "bh2"])
        self.variant = variant

    def step(self, at: Transition) -> Tensor:
        last, here = (self.order if _finite(at.schedule, t) else min(self.order, 2) for t in (at.u, at.then))
        *before, start = at.past[-last:] or [at.here]
        if at.past and _finite(at.schedule, start.t):
            x0 = self.average(at.schedule, start, at.here.t, [at.here, *before[::-1]])
            at.here = replace(at.here, x=reverse_step(at.schedule, start, x0, at.here.t)[0])
        return at.step(self.average(at.schedule, at.here, at.u, at.past[::-1][: here - 1]))

    def moments(self, h: float, n: int) -> list[float]:
        if n == 2:  # B(−h)/(2 (e^{−h} − 1)) in place of M_1
            return [1.0, 0.5 if self.variant == "bh2" else -h / math.expm1(-h) / 2]
        return super().moments(h, n)


class DEIS(Multistep):
    """DEIS: the exponential Adams-Bashforth method in noise prediction (Zhang & Chen 2023).

    Its polynomial is in log ρ = −λ, as in diffusers; the paper's tAB has it in t, and its ρAB in ρ = s/a. The paper counts
    degrees, so that its tAB2 is order 3.
    """

    in_noise = True

    def __init__(self, num_steps: int | None = 20, *, order: int = 3, **options: Unpack[Options]):
        super().__init__(num_steps, order=order, highest=4, **options)


class IPNDM(Multistep):
    """iPNDM: Adams-Bashforth coefficients for equal steps, in noise prediction (Zhang & Chen 2023, after Liu et al. 2022).

    Its order is reached with equal steps in ρ = s/a, and is 2 with others. The step to clean data is of order 1.
    """

    in_noise = True

    def __init__(self, num_steps: int | None = 20, *, order: int = 4, **options: Unpack[Options]):
        super().__init__(num_steps, order=order, highest=4, **options)

    def weights(self, u: float, t: float, *others: float) -> list[float]:
        n = len(others) + 1 if math.isfinite(t) and math.isfinite(u) else 1
        return _solve([-float(j) for j in range(1, n)], [1 / (k + 1) for k in range(n)])


def _finite(schedule: NoiseSchedule, *times: Tensor | None) -> bool:
    """Whether log SNR is, at those that are not None."""
    return all(bool(schedule.log_snr_at(t).isfinite()) for t in times if t is not None)


def _average(
    schedule: NoiseSchedule, here: Point, others: Sequence[Point], weights: Sequence[float], *, in_noise: bool
) -> Tensor:
    """x̄_0 = x̂_0 + Σ_j w_j (x̂_0(t_j) − x̂_0), or `in_noise` the x_0 of the same sum of ε̂."""
    pairs = [*zip(weights, others, strict=False)]
    if not in_noise or not pairs:
        return here.x0 + sum(weight * (point.x0 - here.x0) for weight, point in pairs)
    (a, s), ours = schedule.scales(here.t), _noise(schedule, here)
    return here.x0 - s / a * sum(weight * (_noise(schedule, point) - ours) for weight, point in pairs)


def _noise(schedule: NoiseSchedule, at: Point) -> Tensor:
    """ε̂ = (x − a x̂_0)/s."""
    a, s = schedule.scales(at.t)
    return (at.x - a * at.x0) / s


def _solve(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """w of Σ_j w_j τ_j^k = M_k for these nodes τ_j and 0, whose own weight is left out."""
    powers = torch.vander(torch.tensor([0.0, *nodes], dtype=torch.float64), increasing=True).T
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()[1:]
