"""A sampler: one method, from a point at time t to x at time u."""

from torch import Tensor

from ddpm_lightning import Sampler
from ddpm_lightning.samplers import Transition


class Momentum(Sampler):
    """DDIM whose estimates of x_0 carry momentum from the step before."""

    def __init__(self, num_steps: int = 20, momentum: float = 0.3):
        super().__init__(num_steps)
        self.momentum = momentum

    def step(self, at: Transition) -> Tensor:
        before = at.past[-1].x0 if at.past else at.here.x0
        return at.step(at.here.x0 + self.momentum * (at.here.x0 - before))
