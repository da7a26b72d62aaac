"""Weights sharded across devices (FSDP2), for networks that one device cannot hold."""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["FSDP2", "shard", "shared_like", "unsharded"]


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state of each block are sharded across all devices; weights are gathered while it runs.

    Checkpoints are one file, with the names and the weights of every other strategy.
    """

    def __init__(self, **options: Any):
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network's weights across the mesh, in place, block by block: the members of its module lists."""
    model.to(memory_format=torch.contiguous_format)  # the one layout that can be sharded
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for block in [child for part in lists for child in part if not isinstance(child, nn.ModuleList)]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # also where no backward pass follows, as in validation


def shared_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor, sharded like the parameter; the tensor itself where the parameter is not sharded."""
    if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def unsharded(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, or the tensor itself; a collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
