"""The bound in continuous time as the loss of a network and its noise schedule together."""

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.likelihood import continuous_term, latent_decoder_term, prior_term
from ddpm_lightning.losses.objectives import Objective
from ddpm_lightning.losses.times import Stratified, TimeDraw
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.schedules import LearnedSchedule

__all__ = ["VDM"]


class VDM(Objective):
    """The bound of variational diffusion models in bits per dimension, for images of 256 values (Kingma et al. 2021, Eq. 17).

    It is −(T−1) SNR'(t)/2 ‖x_0 − x̂_0‖² + KL(q(x_T | x_0) ‖ N(0, I)) − log p(x_0 | x_1), p with the mean x_1/√ᾱ_1. The network and λ_1, λ_T
    follow its gradient. Its mean does not depend on the rest of λ(t), which follows the gradient of the first term's square, and so of its
    variance (section 4.3 and appendix I.2).

    Args:
        times: samples t; continuous. Stratified by default.
    """

    learns_schedule = True

    def __init__(self, *, times: TimeDraw | None = None):
        super().__init__(times=times if times is not None else Stratified(continuous=True))

    def check(self, denoiser: Denoiser) -> None:
        require_one_of("learned_variance", denoiser.learned_variance, [False], hint="loss=vdm has no reverse variance")
        super().check(denoiser)
        if not isinstance(denoiser.schedule, LearnedSchedule):
            raise ValueError("loss=vdm requires schedule=learned: add it, or choose loss=vlb for a fixed schedule")
        require_one_of("times.continuous", self.times.continuous, [True], hint="loss=vdm is for continuous time")

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Condition | None = None
    ) -> Tensor:
        schedule = denoiser.schedule
        assert isinstance(schedule, LearnedSchedule)
        if not t.is_floating_point():  # validation's
            t = t.to(x0.dtype)
        with schedule.learning() as factor:
            x_t = schedule.q_sample(x0, t, noise)  # the same x_t, with a gradient to the schedule
            diffusion = (schedule.num_steps - 1) * continuous_term(denoiser, denoiser.predict(x_t, t, y), x0, x_t, t)
            factor.append(2 * diffusion.detach())
            x_1 = schedule.q_sample(x0, torch.ones_like(t), noise)
            return diffusion + prior_term(schedule, x0) + latent_decoder_term(schedule, x0, x_1)
