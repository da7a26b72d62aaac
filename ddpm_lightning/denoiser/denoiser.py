"""The denoiser: network + schedule + prediction type."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm_lightning.data.source import Condition
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["INPUTS", "PREDICTIONS", "Denoiser"]

# The prediction types, as the pair (p, q) of the target p·x_0 + q·ε, from a = √ᾱ_t, s = √(1−ᾱ_t) and the data's σ.
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor | float, Tensor | float]]] = {
    "epsilon": lambda a, s, d: (0.0, 1.0),  # Ho et al. 2020
    "x0": lambda a, s, d: (1.0, 0.0),
    "v": lambda a, s, d: (-s, a),  # Salimans & Ho 2022
    # the velocity dx/dτ of x = (1−τ) x_0 + τ ε (Liu et al. 2023; Lipman et al. 2023)
    "flow": lambda a, s, d: (-1.0, 1.0),
    # (x_0 − c_skip x)/c_out (Karras et al. 2022)
    "edm": lambda a, s, d: (s / d / _rms(a, s, d), -d * a / _rms(a, s, d)),
}

# Networks that take other inputs than x_t and t−1: the factor of x_t, and their time, as in the code of their source.
INPUTS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "flow": lambda a, s, d: (1 / (a + s), 1000 * s / (a + s)),  # (1−τ) x_0 + τ ε, and 1000 τ (Esser et al. 2024)
    "edm": lambda a, s, d: (1 / _rms(a, s, d), (s / a).log() / 4),  # c_in of x_0 + σ ε, and c_noise = ln σ/4, σ = s/a
}


def _rms(a: Tensor, s: Tensor, d: float) -> Tensor:
    """√(E[x_t²]) for data of the standard deviation d."""
    return (s**2 + (d * a) ** 2).sqrt()


class Denoiser(nn.Module):
    """The estimate x̂_0(x_t, t, y) = (q·x_t − s·out)/(a·q − s·p) of a network trained for the target p·x_0 + q·ε.

    For ε-prediction this is (x_t − √(1−ᾱ_t) ε_θ(x_t, t))/√ᾱ_t (Ho et al. 2020, Eq. 15). With a learned variance the
    network outputs twice the channels, and the second half, v in [−1, 1] after training, interpolates the reverse
    variance: log σ² = (1+v)/2 · log β_{t|u} + (1−v)/2 · log β̃_{t|u} (Nichol & Dhariwal 2021, Eq. 15).

    Args:
        model: called as model(x, t, y) with t of shape (B,): t−1, or what `INPUTS` says. A model with labels has
            an attribute `num_classes`; a model with another condition has a method `null(y)`, which returns the null condition, shaped like y.
        schedule: the forward process.
        prediction: "epsilon", "x0", "v", "flow" or "edm".
        learned_variance: whether the second half of the network's output is v.
        sigma_data: standard deviation of the data, for "edm".

    Raises:
        ValueError: for an unknown prediction, or with ᾱ_T = 0 for "epsilon", which does not determine x_0 there, and "edm", whose σ
            is infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        *,
        prediction: str = "epsilon",
        learned_variance: bool = False,
        sigma_data: float = 0.5,
    ):
        super().__init__()
        require_one_of("prediction", prediction, [*PREDICTIONS])
        require("sigma_data", sigma_data, "(0, inf)")
        if schedule.alpha_bar[-1] == 0:
            usable = [name for name in PREDICTIONS if name not in ("epsilon", "edm")]
            require_one_of("prediction", prediction, usable, hint="the schedule has zero terminal SNR")
        self.model = model
        self.schedule = schedule
        self.prediction = prediction
        self.learned_variance = learned_variance
        self.sigma_data = sigma_data

    @property
    def num_classes(self) -> int | None:
        """The model's number of labels, which is also the null label; None without labels."""
        return getattr(self.model, "num_classes", None)

    @property
    def conditional(self) -> bool:
        """Whether the model has a condition that can be dropped: labels, or a condition with its own null."""
        return self.num_classes is not None or self.has_null

    @property
    def has_null(self) -> bool:
        """Whether the model defines its own null condition, as models with conditions other than labels do."""
        return hasattr(self.model, "null")

    def null(self, y: Condition) -> Condition:
        """The null condition, shaped like y: the model's own `null`, or the label `num_classes`."""
        own: Callable[[Condition], Condition] | None = getattr(self.model, "null", None)
        if own is not None:
            return own(y)
        assert isinstance(y, Tensor)
        return torch.full_like(y, self.num_classes or 0)

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """The estimate of x_0, shaped like x_t; t in 1..T or a float, (B, 1, 1, 1) or (); y: labels (B,), another condition or None."""
        return self.x0_from(self.split(self.predict(x_t, t, y))[0], x_t, t)

    def predict(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """The network's raw output, and the only place that passes it its time: t−1 ("t == 0 is diffused for one step") or another.

        Raises:
            ValueError: if t would broadcast along the wrong axis.
        """
        if t.ndim not in (0, x_t.ndim):
            raise ValueError(f"t must be shaped (B, 1, 1, 1) or (), got {tuple(t.shape)} for x_t {tuple(x_t.shape)}")
        time = t - 1
        if given := INPUTS.get(self.prediction):
            scale, time = given(*self.schedule.scales(t), self.sigma_data)
            x_t = scale * x_t
        return self.model(x_t, time.reshape(-1).expand(len(x_t)), y)

    def estimate(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The estimate of x_0 and the log-variance of the reverse step t → u (default t−1), None unless learned."""
        out, v = self.split(self.predict(x_t, t, y))
        return self.x0_from(out, x_t, t), None if v is None else self.log_variance(v, t, t - 1 if u is None else u)

    def split(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the network's output into the prediction and v, None unless the variance is learned."""
        if not self.learned_variance:
            return raw, None
        out, v = raw.chunk(2, dim=1)
        return out, v

    def x0_from(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0 = (q·x_t − s·out)/(a·q − s·p)."""
        a, s, p, q = self._coefficients(t)
        return (q * x_t - s * out) / (a * q - s * p)

    def log_variance(self, kind: str | Tensor, t: Tensor, u: Tensor) -> Tensor:
        """log σ² of the reverse step t → u: log β̃_{t|u} for "small", log β_{t|u} for "large", and between the two by the network's v.

        At u = 0, where β̃ = 0, β̃_2 replaces it, and β_1 of "large", as in Ho et al.'s code.

        Args:
            kind: a word, or v shaped like x.
            t: (B, 1, 1, 1) or (), integers or floats.
            u: shaped like t, u < t.

        Raises:
            ValueError: for another word.
        """
        if isinstance(kind, str):
            require_one_of("variance", kind, ["small", "large"])
        small, large = self.schedule.step_variances(t, u)
        two = torch.full_like(t, min(2, self.schedule.num_steps))
        floor = self.schedule.step_variances(two, two - 1)[int(self.schedule.num_steps == 1)]
        small, large = torch.where(u > 0, small, floor).log(), large.log()
        if isinstance(kind, str):
            return small if kind == "small" else torch.where(u > 0, large, small)
        share = (kind.to(large.dtype) + 1) / 2
        return share * large + (1 - share) * small

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The network's training target p·x_0 + q·ε."""
        _, _, p, q = self._coefficients(t)
        return p * x0 + q * noise

    def error_scale(self, t: Tensor) -> Tensor:
        """(s/(a·q − s·p))², the squared error of x̂_0 per squared error of the network's output."""
        return self.ratio(t, "x0") ** 2

    def ratio(self, t: Tensor, prediction: str) -> Tensor:
        """The error of another prediction type per error of the network's output: (a·q' − s·p')/(a·q − s·p)."""
        a, s, p, q = self._coefficients(t)
        other_p, other_q = PREDICTIONS[prediction](a, s, self.sigma_data)
        return (a * other_q - s * other_p) / (a * q - s * p)

    def extra_repr(self) -> str:
        return f"prediction={self.prediction}, learned_variance={self.learned_variance}"

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor | float, Tensor | float]:
        """a and s of x_t = a·x_0 + s·ε, and p and q of the target p·x_0 + q·ε."""
        a, s = self.schedule.scales(t)
        return a, s, *PREDICTIONS[self.prediction](a, s, self.sigma_data)
