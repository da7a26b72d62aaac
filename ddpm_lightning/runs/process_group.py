"""Sampling by the processes that torchrun or SLURM started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import Tensor

__all__ = ["Ranks", "ranks"]


class Ranks(NamedTuple):
    """This process among those that share the work."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def to_zero(
        self, images: Tensor | None, owner: int, *, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor | None:
        """Hand images of this shape and type from their owner to rank zero, where they are returned."""
        if owner == 0 or self.rank not in (0, owner):
            return images
        if self.rank == owner:
            assert images is not None
            dist.send(images.contiguous(), 0)
            return None
        images = torch.empty(shape, dtype=dtype)
        dist.recv(images, owner)
        return images

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the group of the processes that share the work; alone, there is none."""
    # A batch script that calls python without srun bears SLURM_NTASKS too, and would wait for tasks that never come.
    kinds = (TorchElasticEnvironment, *([SLURMEnvironment] if "SLURM_STEP_NUM_TASKS" in os.environ else []))
    environment = next((kind() for kind in kinds if kind.detect()), None)
    if environment is None or environment.world_size() == 1:
        yield Ranks()
        return
    mine = Ranks(environment.global_rank(), environment.world_size(), environment.local_rank())
    slurm = f"tcp://{environment.main_address}:{environment.main_port}"
    address = "env://" if TorchElasticEnvironment.detect() else slurm
    dist.init_process_group(
        "gloo",
        init_method=address,
        rank=mine.rank,
        world_size=mine.world_size,
        timeout=timedelta(days=1),  # ranks wait for the one with the most work
    )
    try:
        yield mine
    finally:
        dist.destroy_process_group()
