"""A noise schedule whose log SNR is learned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.ranges import require
from ddpm_lightning.schedules.process import NoiseSchedule

__all__ = ["LearnedSchedule"]


class LearnedSchedule(NoiseSchedule):
    """λ(t) = λ_1 + (λ_T − λ_1)·(g(u) − g(0))/(g(1) − g(0)), u = (t−1)/(T−1), with a network g that rises (Kingma et al. 2021, appendix H).

    g(u) = w·u + Σ_k v_k σ(m_k u + c_k), w, v, m > 0, begins nearly linear. Only `loss=vdm` trains the parameters, within `learning`; for all
    else they are constants. The tables follow the parameters.

    Args:
        num_steps: T, from 2.
        first: λ_1 at the beginning of training; 13.3 in the paper.
        last: λ_T at the beginning; −5 in the paper.
        hidden: the number of terms of g; 1024 in the paper.
    """

    def __init__(self, num_steps: int = 1000, *, first: float = 13.3, last: float = -5.0, hidden: int = 1024):
        nn.Module.__init__(self)
        require("num_steps", num_steps, "2..1000000")
        require("first", first, "[-50, 50]")
        require("last", last, f"[-50, {first})")
        require("hidden", hidden, "1..65536")
        self.curve = self._curve
        self._T = num_steps
        self._factor: list[Tensor] | None = None
        self._held: tuple[object, dict[str, Tensor]] = (None, {})
        self.ends = nn.Parameter(torch.tensor([first, last]))
        centers = (torch.arange(hidden) + 0.5) / hidden
        self.slope = nn.Parameter(_inverse_softplus(torch.tensor(0.1)))
        self.heights = nn.Parameter(_inverse_softplus(torch.full((hidden,), 1 / hidden)))
        self.steepness = nn.Parameter(_inverse_softplus(torch.full((hidden,), 20.0)))
        self.offsets = nn.Parameter(-20.0 * centers)

    @property
    def num_steps(self) -> int:
        return self._T

    @contextmanager
    def learning(self) -> Iterator[list[Tensor]]:
        """Let λ depend on the parameters inside; yields a list for one factor (B,) of the gradient of everything but the ends."""
        factor: list[Tensor] = []
        self._factor = factor
        try:
            yield factor
        finally:
            self._factor = None

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return super().scales(t.to(self.ends.dtype))

    def log_snr_at(self, t: Tensor) -> Tensor:
        return super().log_snr_at(t.to(self.ends.dtype))

    def snr_slope(self, t: Tensor) -> Tensor:
        share, slope = self._share(t)
        first, last = self._ends
        return (first - last) * slope / (self._T - 1) * torch.exp(first + (last - first) * share)

    def _curve(self, t: Tensor) -> Tensor:
        first, last = self._ends
        return first + (last - first) * self._share(t)[0]

    @property
    def _ends(self) -> Tensor:
        return self.ends.detach() if self._factor is None else self.ends

    def _share(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(g(u) − g(0))/(g(1) − g(0)) and its derivative by u."""
        inner = [F.softplus(self.slope), F.softplus(self.heights), F.softplus(self.steepness), self.offsets]
        if self._factor is None:
            inner = [parameter.detach() for parameter in inner]
        places = t.new_zeros(()), t.new_ones(()), (t - 1) / (self._T - 1)
        (low, _), (high, _), (here, slope) = (_rising(u, *inner) for u in places)
        found = (here - low) / (high - low), slope / (high - low)
        if self._factor is not None and t.ndim and here.requires_grad:
            factor = self._factor  # of each image, once its loss is known
            for part in found:
                part.register_hook(lambda grad: grad * factor[0].reshape(-1, *[1] * (grad.ndim - 1)))
        return found

    @property
    def _exact(self) -> Tensor:  # type: ignore[override]
        return self._table("exact").cpu()

    @property
    def alpha_bar(self) -> Tensor:  # type: ignore[override]
        """(T+1,) ᾱ_t, ᾱ_0 = 1."""
        return self._table("alpha_bar")

    @property
    def sqrt_alpha_bar(self) -> Tensor:  # type: ignore[override]
        """(T+1,) √ᾱ_t."""
        return self._table("sqrt_alpha_bar")

    @property
    def sqrt_one_minus_alpha_bar(self) -> Tensor:  # type: ignore[override]
        """(T+1,) √(1−ᾱ_t)."""
        return self._table("sqrt_one_minus_alpha_bar")

    @property
    def log_snr(self) -> Tensor:  # type: ignore[override]
        """(T+1,) λ_t, λ_0 = ∞."""
        return self._table("log_snr")

    def _table(self, name: str) -> Tensor:
        """A table of the parameters as they are, computed again where they have changed."""
        key = tuple((id(p), p._version, p.device, p.dtype) for p in self.parameters())
        if self._held[0] != key:
            with torch.no_grad():
                log_snr = super().log_snr_at(torch.arange(self._T + 1, device=self.ends.device, dtype=self.ends.dtype))
            exact = log_snr.double().sigmoid()
            tables = {
                "alpha_bar": exact,
                "sqrt_alpha_bar": exact.sqrt(),
                "sqrt_one_minus_alpha_bar": (-log_snr.double()).sigmoid().sqrt(),
                "log_snr": log_snr,
            }
            self._held = key, {"exact": exact, **{n: table.to(log_snr.dtype) for n, table in tables.items()}}
        return self._held[1][name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedSchedule":
        nn.Module._apply(
            self, lambda p: fn(p) if fn(p).dtype in (torch.float32, torch.float64) else fn(p).float(), recurse
        )
        return self


def _rising(u: Tensor, w: Tensor, v: Tensor, m: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """g(u) and g'(u)."""
    hidden = torch.sigmoid(m * u[..., None] + c)
    return w * u + (v * hidden).sum(-1), w + (v * m * hidden * (1 - hidden)).sum(-1)


def _inverse_softplus(x: Tensor) -> Tensor:
    return torch.log(torch.expm1(x))
