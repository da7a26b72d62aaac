"""CUDA graphs: a training step's forward and backward pass, or an evaluation of the network, launched at once.

A small network on a GPU waits for Python, which launches some 2,000 kernels a step. A graph records them once and replays them, with the
same numbers: the generators that `Randomness` seeds before each step are part of it.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ddpm_lightning.data.source import Batch, Condition, map_condition
from ddpm_lightning.errors import brief
from ddpm_lightning.module import DDPM

__all__ = ["GraphedDDPM", "forget_graphs", "graph_evaluations", "graph_training", "random_state_kept"]

log = logging.getLogger(__name__)

WARM_UPS = 3  # calls before a graph is recorded, in which libraries choose their kernels

Record = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


def graph_training(module: DDPM, trainer: Trainer, *, strangers: bool = False) -> None:
    """Replay the module's training step as a graph, where that is possible: on one GPU, with a batch a step, and not in float16.

    Args:
        module: whose class becomes `GraphedDDPM`.
        trainer: of the run.
        strangers: also for a network or a loss from elsewhere, which may do on the host what a graph would do only once.
    """
    one = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    times = module.loss.times
    on_device = not times.adaptive and not times.on_host and (strangers or _is_ours(module))
    if one and not scaled and on_device:
        module.__class__ = GraphedDDPM


def forget_graphs(module: DDPM) -> None:
    """Free the graphs that were recorded so far; the next step records its own."""
    module.__dict__.pop("_graphs", None)


def _is_ours(module: nn.Module) -> bool:
    """Whether all parts are of this package or PyTorch's, which are known to stay on the device."""
    return all(type(part).__module__.partition(".")[0] in ("ddpm_lightning", "torch") for part in module.modules())


def graph_evaluations(model: nn.Module, record: Record | None = None, *, strangers: bool = False) -> None:
    """Replay the network's evaluations without gradients as a graph for each shape; its weights keep their names.

    Args:
        model: the network.
        record: how a graph is recorded; None: on the GPU.
        strangers: also for a network from elsewhere.
    """
    if not strangers and not _is_ours(model):
        return
    model._compiled_call_impl = _GraphedCall(model, record or _recorded)


class GraphedDDPM(DDPM):
    """A DDPM whose forward and backward pass is a graph; clipping, optimizer and averages follow as they do without."""

    record: Record | None = None  # how a graph is recorded; None: on the GPU
    _graphs: dict[Any, "_Step"]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        self._is_replayed = False
        if self._cannot_be_recorded:
            return super().training_step(batch, batch_idx)
        batch = Batch.of(batch)
        graphs = self.__dict__.setdefault("_graphs", {})
        key = (_shape(batch.x0), None if batch.y is None else str(map_condition(_shape, batch.y)))
        try:
            if key not in graphs:
                graphs[key] = _Step(self, super().training_step, batch, self.record or _recorded)
            outputs = graphs[key](batch)
        except RuntimeError as error:  # of a network or a loss that waits for the device, or copies from the host
            log.warning("this training step cannot be a CUDA graph, and runs without (%s)", brief(error))
            self._cannot_be_recorded = True
            return super().training_step(batch, batch_idx)
        self._is_replayed = True
        return outputs

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._is_replayed:  # else the gradients are there
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        if not self._is_replayed:  # a graph writes its gradients, and adds to none
            super().optimizer_zero_grad(*args, **kwargs)

    _is_replayed = _cannot_be_recorded = False


class _Step:
    """The graph of a training step for one shape of batch: its inputs, outputs and gradients stay where they are."""

    def __init__(self, module: DDPM, step: Callable[[Any, int], dict[str, Tensor]], batch: Batch, record: Record):
        self._inputs = _copied(batch.x0), None if batch.y is None else map_condition(_copied, batch.y)
        self._parameters = module._listed

        def run() -> dict[str, Tensor]:
            for parameter in self._parameters:
                parameter.grad = None
            with _no_autocast_cache():
                outputs = step(Batch(*self._inputs, batch.ids), 0)
            outputs["loss"].backward()
            gradients = {str(i): p.grad for i, p in enumerate(self._parameters) if p.grad is not None}
            return {**{name: value.detach() for name, value in outputs.items()}, **gradients}

        with random_state_kept(batch.x0.device):
            self._replay, found = record(run)
        self._outputs = {name: value for name, value in found.items() if not name.isdigit()}
        self._gradients = [found.get(str(i)) for i in range(len(self._parameters))]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        x0, y = self._inputs
        x0.copy_(batch.x0)
        if y is not None and batch.y is not None:
            map_condition(lambda here, given: here.copy_(given), y, batch.y)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._outputs


class _GraphedCall:
    """A network's call, as a graph where no gradients are asked for."""

    def __init__(self, model: nn.Module, record: Record):
        self._model, self._record = model, record
        self._graphs: dict[Any, tuple[tuple[Any, ...], Callable[[], None], Tensor]] = {}
        self._failed = False

    def __call__(self, x: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        if self._failed or torch.is_grad_enabled() or self._model.training:
            return self._model._call_impl(x, t, y)
        key = (
            _shape(x),
            _shape(t),
            None if y is None else str(map_condition(_shape, y)),
            torch.is_autocast_enabled(x.device.type),
        )
        if key not in self._graphs:
            inputs = _copied(x), _copied(t), None if y is None else map_condition(_copied, y)

            def run() -> Tensor:
                with _no_autocast_cache():
                    return self._model._call_impl(*inputs)

            try:
                self._graphs[key] = inputs, *self._record(run)
            except RuntimeError as error:
                log.warning("this network cannot be a CUDA graph, and runs without (%s)", brief(error))
                self._failed = True
                return self._model._call_impl(x, t, y)
        inputs, replay, out = self._graphs[key]
        inputs[0].copy_(x)
        inputs[1].copy_(t)
        if y is not None and inputs[2] is not None:
            map_condition(lambda here, given: here.copy_(given), inputs[2], y)
        replay()
        return out.clone()  # a caller may keep it


def _recorded(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """The replay of what a function launches on the GPU, and what it returned, which each replay writes anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = run()
    return graph.replay, found


class random_state_kept:
    """What is sampled inside is sampled again afterwards."""

    def __init__(self, device: torch.device):
        self._device = device

    def __enter__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def __exit__(self, *error: Any) -> None:
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self._device)


def _no_autocast_cache() -> Any:
    """Autocast as it is, without its cache, whose tensors would be outside of the graph."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=False)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    return (*tensor.shape, tensor.dtype)
