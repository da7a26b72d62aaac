"""A noise schedule whose log SNR is learned."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.ranges import require
from ddpm_lightning.schedules.process import NoiseSchedule

__all__ = ["LearnedSchedule"]

_TABLES = ("_exact", "alpha_bar", "sqrt_alpha_bar", "sqrt_one_minus_alpha_bar", "log_snr")


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
        self.num_steps = num_steps
        self._factor: list[Tensor] | None = None
        self._held: tuple[object, dict[str, Tensor]] = (None, {})
        self.ends = nn.Parameter(torch.tensor([first, last]))
        centers = (torch.arange(hidden) + 0.5) / hidden
        self.slope = nn.Parameter(_inverse_softplus(torch.tensor(0.1)))
        self.heights = nn.Parameter(_inverse_softplus(torch.full((hidden,), 1 / hidden)))
        self.steepness = nn.Parameter(_inverse_softplus(torch.full((hidden,), 20.0)))
        self.offsets = nn.Parameter(-20.0 * centers)

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
        t = t.to(self.ends.dtype)
        return torch.where(t > 0, self._level(t)[0], torch.inf)

    def snr_slope(self, t: Tensor) -> Tensor:
        level, slope = self._level(t)
        return -slope * level.exp()

    def _level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """λ(t) and λ'(t)."""
        inner = [F.softplus(self.slope), F.softplus(self.heights), F.softplus(self.steepness), self.offsets]
        ends, *inner = (part if self._factor is not None else part.detach() for part in (self.ends, *inner))
        places = t.new_zeros(()), t.new_ones(()), (t - 1) / (self.num_steps - 1)
        (low, _), (high, _), (here, slope) = (_rising(u, *inner) for u in places)
        share, slope = (here - low) / (high - low), slope / (high - low)
        if (factor := self._factor) is not None and t.ndim and here.requires_grad:
            for part in (share, slope):  # times the factor of each image, once its loss is known
                part.register_hook(lambda grad: grad * factor[0].reshape(-1, *[1] * (grad.ndim - 1)))
        return ends[0] + (ends[1] - ends[0]) * share, (ends[1] - ends[0]) * slope / (self.num_steps - 1)

    def __getattr__(self, name: str) -> Any:
        """The tables of the parameters as they are, computed again where these have changed."""
        if name not in _TABLES:
            return super().__getattr__(name)
        key = tuple((id(p), p._version, p.device, p.dtype) for p in self.parameters())
        if self._held[0] != key:
            t = torch.arange(self.num_steps + 1, device=self.ends.device, dtype=self.ends.dtype)
            with torch.no_grad():
                log_snr = self.log_snr_at(t)
            exact, rest = log_snr.double().sigmoid(), (-log_snr.double()).sigmoid()
            tables = exact, exact.sqrt(), rest.sqrt(), log_snr
            self._held = key, dict(zip(_TABLES, (exact, *(table.to(t.dtype) for table in tables)), strict=True))
        table = self._held[1][name]
        return table.cpu() if name == "_exact" else table  # which waits for the device, where it is asked for

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
