"""The process group of a sampling or evaluation started by torchrun or SLURM."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import Tensor

from ddpm_lightning.runs.rendezvous import check_rendezvous

__all__ = ["ALONE", "ProcessGroup", "join_process_group"]


@dataclass(frozen=True)
class ProcessGroup:
    """A process group: this process's rank, the world size, and its rank on its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def gather(self, mine: Tensor | None) -> list[Tensor]:
        """Gather the tensors of all ranks that have one, in order; on rank zero only."""
        tensors = [mine] * self.world_size
        if self.world_size > 1:
            dist.gather_object(mine, tensors if self.rank == 0 else None)
        return [tensor for tensor in tensors if tensor is not None and self.rank == 0]

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


ALONE = ProcessGroup()


@contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """Join the process group, if any."""
    # SLURM_NTASKS is also set in a batch script without srun, where waiting for other tasks would never end.
    kinds = (TorchElasticEnvironment, *([SLURMEnvironment] if "SLURM_STEP_NUM_TASKS" in os.environ else []))
    environment = next((kind() for kind in kinds if kind.detect()), None)
    if environment is None or environment.world_size() == 1:
        yield ALONE
        return
    check_rendezvous(environment, environment.world_size())
    group = ProcessGroup(environment.global_rank(), environment.world_size(), environment.local_rank())
    slurm = f"tcp://{environment.main_address}:{environment.main_port}"
    address = "env://" if TorchElasticEnvironment.detect() else slurm
    dist.init_process_group(
        "gloo",
        init_method=address,
        rank=group.rank,
        world_size=group.world_size,
        timeout=timedelta(days=1),  # ranks wait for the one with the most work
    )
    try:
        yield group
    finally:
        dist.destroy_process_group()
