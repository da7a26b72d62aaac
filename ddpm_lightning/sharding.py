"""Sharding of weights across devices (FSDP2), for networks that do not fit on one device."""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["FSDP2", "shard", "shared_like", "unsharded"]


class FSDP2(ModelParallelStrategy):
    """Shards each block's weights, gradients and optimizer state across all devices, and gathers the weights while it runs.

    Checkpoints are single files in the same format as with other strategies.
    """

    def __init__(self, **options: Any):
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network's weights across the mesh, in place, by the members of its module lists."""
    model.to(memory_format=torch.contiguous_format)  # the only layout that can be sharded
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for block in [child for part in lists for child in part if not isinstance(child, nn.ModuleList)]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # even without a backward pass, as in validation


def shared_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Shard a full tensor like a parameter; returns the tensor itself if the parameter is not sharded."""
    if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def unsharded(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; returns other tensors unchanged. A collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
