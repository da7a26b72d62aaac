"""Draws the pictures of solvers.md, in light and dark: `python docs/build_solvers.py`, about a minute of one core."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import IdealDenoiser
from ddpm_lightning.plots import line_style
from ddpm_lightning.plots.style import save, styled
from ddpm_lightning.samplers import DDIM, DEIS, EDM, IPNDM, DPMSolver, Heun, Point, Sampler, SASolver, Transition, UniPC
from ddpm_lightning.schedules import NoiseSchedule

PICTURES = Path(__file__).parent / "pictures"

ODE: dict[str, Sampler] = {
    "ddim": DDIM(clip=None),
    "heun": Heun(clip=None),
    "edm": EDM(clip=None),
    "dpmpp_2m": DPMSolver(clip=None),
    "dpmpp_3m": DPMSolver(order=3, clip=None),
    "deis, order 3": DEIS(clip=None),
    "unipc, order 2": UniPC(clip=None),
    "unipc, order 3": UniPC(order=3, clip=None),
    "ipndm, order 4": IPNDM(clip=None),
}
SDE: dict[str, Sampler] = {
    "ancestral": DDIM(eta=1.0, clip=None),
    "dpmpp_2m_sde": DPMSolver(eta=1.0, clip=None),
    "dpmpp_3m_sde": DPMSolver(order=3, eta=1.0, clip=None),
    "sa_solver": SASolver(clip=None),
}
TWICE = ("heun", "edm")  # two evaluations per step

MEAN, STD = 0.4, 0.3
FINEST = 1024
STEPS = 8, 16, 32, 64, 128, 256
COUNTS = 5, 10, 20, 40, 100, 250, 1000
FINAL_COUNTS = 5, 8, 10, 16, 20, 40


class Gaussian:
    """The exact denoiser of x_0 ~ N(MEAN, STD²)."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: object = None) -> Tensor:
        a, s = self.schedule.sqrt_alpha_bar[t], self.schedule.sqrt_one_minus_alpha_bar[t]
        return MEAN + a * STD**2 / ((a * STD) ** 2 + s**2) * (x_t - a * MEAN)

    def exact(self, t: int) -> Tensor:
        """x_t of two solutions of the probability flow ODE, which keep their quantiles."""
        a, s = self.schedule.sqrt_alpha_bar[t], self.schedule.sqrt_one_minus_alpha_bar[t]
        return a * MEAN + ((a * STD) ** 2 + s**2).sqrt() * torch.tensor([-1.0, 2.0]).double().reshape(2, 1, 1, 1)


def gaussian_error(sampler: Sampler, denoiser: Gaussian, steps: int) -> float:
    """The largest error at the schedule's σ_min, from its σ_max on, with the exact solution at the times that a multistep solver needs to start."""
    schedule, times = denoiser.schedule, [*range(FINEST + 1, 0, -FINEST // steps)]

    def ask(x: Tensor, t: Tensor, u: Tensor) -> Point:
        return Point(t, x, denoiser(x, t))

    stops = [torch.tensor(t) for t in times]
    begin = 3 if hasattr(sampler, "order") else 0
    past = [ask(denoiser.exact(t), at, at) for t, at in zip(times[:begin], stops[:begin], strict=True)]
    x = denoiser.exact(times[begin])
    for t, u in zip(stops[begin:], stops[begin + 1 :], strict=False):
        at = Transition(schedule, ask(x, t, u), u, past[-3:], ask, torch.randn_like)
        x = sampler.step(at)
        past.append(at.here)
    return (x - denoiser.exact(times[-1])).abs().max().item()


def orders(steps: Sequence[int] = STEPS) -> dict[str, tuple[list[float], float]]:
    """Errors of each solver on the Gaussian in equal steps of σ from 3 to 1, and the order of convergence in the last three."""
    equal = Gaussian(schedules.edm(FINEST + 1, sigma_min=1.0, sigma_max=3.0, rho=1.0).double())
    logarithmic = Gaussian(schedules.edm(FINEST + 1, sigma_min=1.0, sigma_max=3.0, rho=1000.0).double())
    runs: dict[str, tuple[Sampler, Gaussian]] = {name: (sampler, equal) for name, sampler in ODE.items()}
    runs["deis, order 4"] = DEIS(order=4, clip=None), equal
    runs["ipndm, equal steps in log σ"] = IPNDM(clip=None), logarithmic
    found = {}
    for name, (sampler, denoiser) in runs.items():
        errors = [gaussian_error(sampler, denoiser, n) for n in steps]
        found[name] = errors, -float(np.polyfit(np.log(steps[-3:]), np.log(errors[-3:]), 1)[0])
    return found


class Digits:
    """The ideal denoiser of the digits on a fine linear schedule, and paths of noise that runs with other steps share.

    Args:
        count: images to sample.
        finest: the most steps, which all numbers of steps divide.
        end: the last σ; None for 0.
    """

    def __init__(self, count: int, finest: int, *, end: float | None):
        T = 16 * 1000
        schedule = schedules.linear(T, beta_start=1e-4 / 16, beta_end=0.02 / 16).double()
        images = torch.from_numpy(load_digits().images / 8 - 1)[:, None]
        self.denoiser = IdealDenoiser(images, schedule).double()
        a, s = schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar
        last = 0 if end is None else int((s / a - end).abs().argmin())
        self.times = torch.linspace(T, last, finest + 1).round().long()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=generator)
        if end is None:
            return
        # the noise of the SDE's exact step t → u is n_{t→u} z = G_u (W_u − W_t), with a Brownian motion W and G = s²/a
        self.scale = (s**2 / a)[self.times]
        ratio = schedule.log_snr[self.times[:-1]] - schedule.log_snr[self.times[1:]]
        self.variance = s[self.times[1:]] ** 2 * -torch.expm1(ratio)
        moves = (self.variance.sqrt() / self.scale[1:]).reshape(-1, 1, 1, 1, 1)
        noise = torch.randn(finest, *self.x.shape, dtype=torch.float64, generator=generator)
        self.brownian = torch.cat([0 * noise[:1], (moves * noise).cumsum(0)])
        self.log_snr = schedule.log_snr[self.times]
        self.s = s[self.times]

    def run(self, sampler: Sampler, steps: int) -> Tensor:
        """x at the end, with that many equal steps of t."""
        finest = len(self.times) - 1
        kept = range(0, finest + 1, finest // steps)
        noises = self.noises(list(kept)) if sampler.eta > 0 else iter(())
        return sampler(self.denoiser, self.x, times=self.times[kept].tolist(), randn=lambda _: next(noises))

    def nearest(self, x: Tensor) -> Tensor:
        """The indices of the digits that are nearest."""
        return torch.cdist(x.flatten(1), self.denoiser.images.flatten(1)).argmin(1)

    def noises(self, kept: Sequence[int]) -> Iterator[Tensor]:
        """z of the steps between these of the finest times."""
        for i, j in itertools.pairwise(kept):
            n = self.s[j] * torch.sqrt(-torch.expm1(self.log_snr[i] - self.log_snr[j]))
            yield self.scale[j] * (self.brownian[j] - self.brownian[i]) / n


def rms(difference: Tensor) -> float:
    """Root mean square over pixels, averaged over images."""
    return difference.flatten(1).square().mean(1).sqrt().mean().item()


def evaluations(name: str, counts: Sequence[int]) -> list[tuple[int, int]]:
    """(Evaluations, steps) of a solver, as many as asked for at most."""
    return [(n, n // (1 + (name in TWICE))) for n in counts if n // (1 + (name in TWICE)) > 1]


def digits_errors() -> tuple[dict[str, list[tuple[float, float]]], ...]:
    """(Evaluations, error) by solver: of the ODE and the SDE at σ = 0.5, and the share of images that end as another digit than exactly."""
    ode = Digits(32, 4000, end=0.5)
    exact = ode.run(UniPC(order=3, clip=None), 2000)
    of_ode = {
        name: [(n, rms(ode.run(sampler, steps) - exact)) for n, steps in evaluations(name, COUNTS)]
        for name, sampler in ODE.items()
    }
    exact = ode.run(DPMSolver(eta=1.0, clip=None), 4000)
    of_sde = {name: [(n, rms(ode.run(sampler, n) - exact)) for n in COUNTS] for name, sampler in SDE.items()}
    final = Digits(256, 400, end=None)
    exact = final.nearest(final.run(UniPC(order=3, clip=None), 400))
    shares = {
        name: [
            (n, (final.nearest(final.run(sampler, steps)) != exact).double().mean().item())
            for n, steps in evaluations(name, FINAL_COUNTS)
        ]
        for name, sampler in ODE.items()
    }
    return of_ode, of_sde, shares


@styled
def draw_orders(path: Path, found: dict[str, tuple[list[float], float]]) -> None:
    """Error by number of steps on the Gaussian; the legend says the fitted orders."""
    figure = Figure(figsize=(9, 5), layout="constrained", dpi=100)
    axes = figure.subplots()
    for index, (name, (errors, order)) in enumerate(found.items()):
        color, dashes = line_style(index)
        axes.plot(STEPS, errors, marker="o", markersize=4, color=color, linestyle=dashes, label=f"{name}: {order:.2f}")
    _frame(axes, STEPS, "steps", "error", "Order of convergence on a Gaussian")
    axes.set_yscale("log")
    figure.legend(loc="outside right upper", frameon=False, title="solver: order of convergence")
    save(figure, path)


@styled
def draw_errors(path: Path, parts: Sequence[dict[str, list[tuple[float, float]]]]) -> None:
    """The three parts of `digits_errors`; the legend of the ODE's solvers is beside the last."""
    figure = Figure(figsize=(10, 8.5), layout="constrained", dpi=100)
    (left, right), (below, empty) = figure.subplots(2, 2)
    for axes, part in zip((left, right, below), parts, strict=True):
        for index, (name, points) in enumerate(part.items()):
            color, dashes = line_style(index)
            n, errors = zip(*points, strict=True)
            axes.plot(n, errors, marker="o", markersize=4, color=color, linestyle=dashes, label=name)
    _frame(left, COUNTS, "evaluations", "RMS error of a pixel", "ODE, from noise to σ = 0.5")
    _frame(right, COUNTS, "evaluations", "RMS error of a pixel", "SDE, from noise to σ = 0.5")
    _frame(below, FINAL_COUNTS, "evaluations", "share of images", "ODE, to σ = 0: images that are another digit")
    left.set_yscale("log")
    right.set_yscale("log")
    right.legend(frameon=False, title="SDE solvers")
    empty.legend(*left.get_legend_handles_labels(), loc="center left", frameon=False, title="ODE solvers")
    empty.axis("off")
    save(figure, path)


def _frame(axes: Axes, ticks: Sequence[int], x_label: str, y_label: str, title: str) -> None:
    axes.set(xscale="log", xlabel=x_label, ylabel=y_label, title=title)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)


def main() -> None:
    found, parts = orders(), digits_errors()
    for part in parts:
        for name, points in part.items():
            print(f"{name:<16}", *(f"{error:9.2g}" for _, error in points))
    for theme, suffix in (("light", ""), ("dark", "_dark")):
        os.environ["DDPM_THEME"] = theme
        draw_orders(PICTURES / f"solver_orders{suffix}.png", found)
        draw_errors(PICTURES / f"solver_errors{suffix}.png", parts)


if __name__ == "__main__":
    main()
