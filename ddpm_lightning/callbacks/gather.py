"""Samples that the ranks of a training run draw together."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["sampled_together"]


def sampled_together(pl_module: Any, num_samples: int, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """(N, ...) samples 0, …, N−1, on every rank.

    Args:
        pl_module: the module that is trained.
        num_samples: N.
        draw: from samples' numbers to these samples; called once on each rank, with as many on each.
    """
    rank, world_size = pl_module.global_rank, pl_module.trainer.world_size
    share = -(-num_samples // world_size)
    samples = draw([(rank + k * world_size) % num_samples for k in range(share)])
    if world_size == 1:
        return samples
    return pl_module.all_gather(samples).transpose(0, 1).flatten(0, 1)[:num_samples]
