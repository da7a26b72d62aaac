"""Sampling shared by the ranks of a training run."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["sampled_together"]


def sampled_together(pl_module: Any, num_samples: int, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Samples 0, …, N−1 as (N, ...), on every rank.

    Args:
        pl_module: the module in training.
        num_samples: N.
        draw: maps sample indices to samples; called once per rank, with the same number of indices on each.
    """
    rank, world_size = pl_module.global_rank, pl_module.trainer.world_size
    share = -(-num_samples // world_size)
    samples = draw([(rank + k * world_size) % num_samples for k in range(share)])
    if world_size == 1:
        return samples
    return pl_module.all_gather(samples).transpose(0, 1).flatten(0, 1)[:num_samples]
