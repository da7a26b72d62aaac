"""Network + schedule + prediction type: an estimate of x_0 from x_t."""

from collections.abc import Callable

from torch import Tensor, nn

from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["PREDICTIONS", "Denoiser"]

# What the network is asked for, as the pair (p, q) of target = p·x0 + q·ε, from a = √ᾱ_t and s = √(1−ᾱ_t).
PREDICTIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]] = {
    "epsilon": lambda a, s: (0.0, 1.0),  # Ho et al. 2020
    "x0": lambda a, s: (1.0, 0.0),
    "v": lambda a, s: (-s, a),  # Salimans & Ho 2022
}


class Denoiser(nn.Module):
    """The estimate x̂_0(x_t, t, y) = (q·x_t − s·out)/(a·q − s·p) of a network trained for the target p·x_0 + q·ε.

    For ε-prediction this is (x_t − √(1−ᾱ_t) ε_θ(x_t, t))/√ᾱ_t (Ho et al. 2020, Eq. 15).

    Args:
        model: called as model(x, t, y) with t of shape (B,) in 0..T−1.
        schedule: the forward process.
        prediction: "epsilon", "x0" or "v".

    Raises:
        ValueError: for an unknown prediction, or ε-prediction where ᾱ_T = 0, since ε says nothing of x_0 there.
    """

    def __init__(self, model: nn.Module, schedule: NoiseSchedule, *, prediction: str = "epsilon"):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction} is unknown: choose one of {', '.join(PREDICTIONS)}")
        if prediction == "epsilon" and schedule.alpha_bar[-1] == 0:
            raise ValueError("prediction=epsilon cannot be used with zero terminal SNR: choose prediction=v or x0")
        self.model = model
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The estimate of x_0, like x_t; t in 1..T, (B, 1, 1, 1) or (); y: (B,) labels."""
        a, s = self._scales(t)
        p, q = PREDICTIONS[self.prediction](a, s)
        return (q * x_t - s * self.predict(x_t, t, y)) / (a * q - s * p)

    def predict(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's raw output; the one place where it is given t−1 ("t == 0 is diffused for one step")."""
        return self.model(x_t, (t - 1).reshape(-1).expand(len(x_t)), y)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to give: p·x_0 + q·ε."""
        p, q = PREDICTIONS[self.prediction](*self._scales(t))
        return p * x0 + q * noise

    def error_scale(self, t: Tensor) -> Tensor:
        """(s/(a·q − s·p))²: the squared error of x̂_0 for a squared error of 1 in the network's output."""
        a, s = self._scales(t)
        p, q = PREDICTIONS[self.prediction](a, s)
        return (s / (a * q - s * p)) ** 2

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.sqrt_alpha_bar[t], self.schedule.sqrt_one_minus_alpha_bar[t]

    def extra_repr(self) -> str:
        return f"prediction={self.prediction}"

    def estimate(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The estimate of x_0 and the log-variance of the reverse step, which is None: this network learns no variance."""
        return self(x_t, t, y), None
