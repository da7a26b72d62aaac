"""A solver whose coefficients are learned for one model."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from ddpm_lightning.ranges import shown, within
from ddpm_lightning.samplers.base import Options, Sampler, Transition

__all__ = ["Learned"]


class Learned(Sampler):
    """A multistep solver with its own coefficients in each step, which `ddpm times` learns (after Watson et al. 2022, Shaul et al. 2024).

    Row i of `coefficients` is (η, w_1, w_2): the step is that of `reverse_step` with η, and with
    x̄_0 = x̂_0(t_i) + Σ_j w_j (x̂_0(t_{i−j}) − x̂_0(t_i)).

    Args:
        coefficients: a row for each step; "learned" for those that `ddpm times` found for a checkpoint, which sample.py and
            evaluate.py put here.

    Raises:
        ValueError: for rows of other lengths.
    """

    eta = 1.0

    def __init__(
        self,
        num_steps: int | None = 8,
        *,
        coefficients: Sequence[Sequence[float] | Tensor] | str = "learned",
        **options: Unpack[Options],
    ):
        super().__init__(num_steps, **options)
        if isinstance(coefficients, str):
            fits = coefficients == "learned"
        else:
            fits = isinstance(coefficients, Sequence) and all(_is_row(row) for row in coefficients)
        if not fits:
            raise ValueError(
                "coefficients must be learned, or rows of three numbers, eta in [0, 1] and two weights, "
                f"got {shown(coefficients)}"
            )
        self.rows = None if isinstance(coefficients, str) else coefficients

    def times(self, T: int, *, log_snr: Tensor | None = None) -> Sequence[float]:
        times = super().times(T, log_snr=log_snr)
        if self.rows is None or len(self.rows) != len(times) - 1:
            given = "learned: give a list of rows with times by hand" if self.rows is None else f"{len(self.rows)} rows"
            raise ValueError(f"coefficients must have a row for each of the {len(times) - 1} steps, got {given}")
        return times

    def step(self, at: Transition) -> Tensor:
        assert self.rows is not None
        eta, *weights = self.rows[at.index]
        here, past = at.here.x0, at.past[::-1]
        x0 = here + sum(weight * (point.x0 - here) for weight, point in zip(weights, past, strict=False))
        return at.step(x0, eta=eta)


def _is_row(row: object) -> bool:
    if isinstance(row, Tensor):
        return row.shape == (3,)
    if not isinstance(row, Sequence) or len(row) != 3:
        return False
    return within(row[0], "[0, 1]") and all(within(weight, "(-inf, inf)") for weight in row[1:])
