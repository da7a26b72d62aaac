"""Estimate a run's time, memory and largest batch size from a few trial steps."""

import copy
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ddpm_lightning.data.source import Batch, Condition, in_turn
from ddpm_lightning.module import DDPM
from ddpm_lightning.runs.graphs import forget_graphs, random_state_kept
from ddpm_lightning.runs.processes import total_memory

__all__ = ["Estimate", "Trial", "automatic_batch_size"]

SPARE = 0.9  # usable fraction of the memory
COPIES = 5  # memory in multiples of the weights: weights, gradients, Adam's two moments, EMA
PATIENCE = 2.0  # maximum seconds of a trial step
GAIN = 1.1  # minimum speedup per image for doubling the batch size
FIRST, LARGEST = 8, 65536  # range of trial batch sizes


class Estimate(NamedTuple):
    """Estimated time and memory of training.

    seconds: per batch, forward and backward; memory: bytes of tensors; held: bytes available; fits: the largest power of two
    that fits as batch size.
    """

    seconds: float
    memory: float
    held: float
    fits: int

    def sentence(self, batches: int | None) -> str:
        """The estimate as a sentence, with the total time if the number of batches is known."""
        time = f"{self.seconds:.2g} s a batch" if batches is None else _duration(self.seconds * batches)
        held = f" of {_size(self.held)} of memory" if math.isfinite(self.held) else ""
        fits = ", which is too much; data.batch_size" if self.memory > self.held else "; data.batch_size"
        return f"Training will take about {time} and use about {_size(self.memory)}{held} for tensors{fits} can be at most {self.fits}"


class Trial:
    """Trial steps with random images before a run: forward and backward pass without an update.

    Runs on a copy of the module, and restores the random state.

    Args:
        module: the module, on any device.
        trainer: provides device and precision.
        shape: the shape of one sample.
        condition: conditions to cycle through; None for none.
    """

    def __init__(self, module: DDPM, trainer: Trainer, shape: Sequence[int], condition: Condition | None):
        self._trainer, self._shape, self._condition = trainer, shape, condition
        self._device = trainer.strategy.root_device
        self._module = copy.deepcopy(module).to(self._device)
        if trainer.world_size == 1:  # otherwise it would wait for the other processes
            self._module.trainer = trainer
        self._weights = COPIES * sum(p.numel() * p.element_size() for p in module.parameters())

    def estimate(self, batch_size: int) -> Estimate:
        """Estimate for a batch size, extrapolated from smaller batches if it takes too much time or memory."""
        tried = min(FIRST, batch_size)
        self._step(tried)  # allocates gradients and warms up libraries
        activations, held = self._peak(tried) / tried, self._held()
        free = SPARE * held - self._weights
        fits = 2 ** int(math.log2(min(LARGEST, free / activations))) if free > activations else 1
        seconds = self._seconds(tried)
        while tried < batch_size and 4 * seconds < PATIENCE and 4 * tried <= fits:
            tried = min(4 * tried, batch_size)
            seconds = self._seconds(tried)
        forget_graphs(self._module)
        return Estimate(seconds * batch_size / tried, self._weights + activations * batch_size, held, fits)

    def _peak(self, batch_size: int) -> float:
        """Peak bytes of a step, excluding weights, buffers and gradients."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
            self._step(batch_size)
            return torch.cuda.max_memory_allocated(self._device) - before
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        with _LiveMemory([*self._module.parameters(), *self._module.buffers(), *gradients]) as memory:
            self._step(batch_size)
        return memory.peak

    def _seconds(self, batch_size: int) -> float:
        """Seconds of a step, after a warm-up on GPUs."""
        is_gpu = self._device.type == "cuda"
        if is_gpu:
            self._step(batch_size)
            torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        self._step(batch_size)
        if is_gpu:
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started

    def _step(self, batch_size: int) -> None:
        with random_state_kept(self._device):
            x0 = torch.rand(batch_size, *self._shape, device=self._device) * 2 - 1
            y = in_turn(self._condition, range(batch_size), self._device)
            batch = Batch(x0, y, torch.arange(batch_size))
            with self._trainer.precision_plugin.forward_context():
                loss = self._module.training_step(batch, 0)["loss"]
            self._module.backward(loss)

    def _held(self) -> float:
        """Bytes available for the run."""
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0] + torch.cuda.memory_reserved(self._device)
        return total_memory()


def automatic_batch_size(trial: Trial, images: int) -> int:
    """The smallest power of two beyond which batches are not faster per image, do not fit, or exceed the number of images."""
    size, seconds = FIRST, math.inf
    while True:
        found = trial.estimate(size)
        if found.seconds * GAIN > 2 * seconds:
            return size // 2
        if found.fits <= size or 2 * size > images:
            return min(size, found.fits)
        size, seconds = 2 * size, found.seconds


class _LiveMemory(TorchDispatchMode):
    """Tracks the peak bytes of tensors allocated inside.

    Args:
        there: existing tensors, whose views are not counted.
    """

    def __init__(self, there: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._alive = WeakIdKeyDictionary()
        self._there = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in there})

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._there:
                    self._alive[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


def _duration(seconds: float) -> str:
    """Format as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    """Format as 40 MiB or 1.3 GiB."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"
