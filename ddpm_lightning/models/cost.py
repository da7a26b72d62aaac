"""Floating-point operations (FLOP) of a network, and FLOP/s of a device."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.data.source import map_condition

__all__ = ["call_on_meta", "matmul_speed", "training_flops"]


def training_flops(model: nn.Module, shape: Sequence[int], y: Any = None) -> int:
    """FLOP of a training step per sample: three times those of model(x, t, y), since the backward pass takes twice as many.

    Counts matrix products, convolutions and attention, with a multiply-add as two; computes nothing.

    Args:
        model: the network, on any device.
        shape: the shape of one sample.
        y: the condition of one sample, such as a label (1,), or None.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call_on_meta(model, shape, y)
    return 3 * counter.get_total_flops()


def call_on_meta(model: nn.Module, shape: Sequence[int], y: Any = None) -> None:
    """Call the model with one sample on the meta device, to check shapes; takes the arguments of `training_flops`."""
    x, t = torch.empty(1, *shape, device="meta"), torch.empty(1, dtype=torch.long, device="meta")
    on_meta = {name: p.to("meta") for name, p in [*model.named_parameters(), *model.named_buffers()]}
    torch.func.functional_call(
        model, on_meta, (x, t, None if y is None else map_condition(lambda rows: rows.to("meta"), y))
    )


@cache  # shared by the runs of a sweep in one process
def matmul_speed(device: torch.device) -> float:
    """FLOP/s of the device's matrix product: 8192×8192 in bfloat16 on a GPU, otherwise 1024×1024 in float32.

    The fastest of several, since other processes may use the device.
    """
    is_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if is_gpu else (1024, torch.float32)
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(a, a)
        if is_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
