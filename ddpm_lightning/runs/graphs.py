"""CUDA graphs of a training step's forward and backward pass, or of a network evaluation.

A small network on a GPU waits for Python, which launches about 2,000 kernels per step. A graph captures them once and replays
them with identical results: it includes the dropout generators, which `Randomness` seeds before each replay, while t
and ε are sampled outside.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_lightning.data.source import Condition, map_condition
from ddpm_lightning.errors import brief
from ddpm_lightning.module import DDPM

__all__ = ["GraphedDDPM", "forget_graphs", "graph_evaluations", "graph_training", "random_state_kept"]

log = logging.getLogger(__name__)

WARM_UPS = 3  # calls before capture, in which libraries select their kernels

Record = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


def graph_training(module: DDPM, trainer: Trainer, *, strangers: bool = False) -> None:
    """Replay the training step's forward and backward pass as a graph, unless weights are sharded.

    Multiple processes average their gradients after the replay instead of during the backward pass.

    Args:
        module: its class becomes `GraphedDDPM`.
        trainer: the run's trainer.
        strangers: include networks and losses from other packages, whose host-side code a graph would run only once.
    """
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if whole and (strangers or _is_ours(module)):
        module.__class__ = GraphedDDPM
        module.scaler = getattr(trainer.precision_plugin, "scaler", None)
        module.batches = trainer.accumulate_grad_batches


def forget_graphs(module: DDPM) -> None:
    """Free the captured graphs; the next step captures a new one."""
    module.__dict__.pop("_graphs", None)


def _is_ours(module: nn.Module) -> bool:
    """Whether all submodules are from this package or PyTorch, which are known to stay on the device."""
    return all(type(part).__module__.partition(".")[0] in ("ddpm_lightning", "torch") for part in module.modules())


def graph_evaluations(model: nn.Module, record: Record | None = None, *, strangers: bool = False) -> None:
    """Replay the network's evaluations without gradients as graphs, one per shape; weights keep their names.

    Args:
        model: the network.
        record: captures a graph; None captures on the GPU.
        strangers: include networks from other packages.
    """
    if not strangers and not _is_ours(model):
        return
    model._compiled_call_impl = _GraphedCall(model, record or _recorded)


class GraphedDDPM(DDPM):
    """A DDPM whose forward and backward pass is a graph; clipping, optimizer and EMA run as usual."""

    record: Record | None = None  # captures a graph; None captures on the GPU
    scaler: torch.amp.GradScaler | None = None  # of the loss, in float16
    batches: int = 1  # per optimizer step
    _graphs: dict[Any, "_Step"]

    def on_train_start(self) -> None:
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self._average = _Average(self.trainer.world_size)
            self.trainer.strategy.model.require_backward_grad_sync = False  # its hooks would wait for a backward pass

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        self._is_last = self._ends_step(batch_idx) if self._trainer else True
        return super().training_step(batch, batch_idx)

    def learn(
        self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weight: Tensor, y: Condition | None
    ) -> dict[str, Tensor]:
        self._replayed = None
        inputs = {"x0": x0, "x_t": x_t, "t": t, "noise": noise, "weight": weight, **_named(y)}
        if self._cannot_be_recorded:
            return super().learn(x0, x_t, t, noise, weight, y)
        graphs = self.__dict__.setdefault("_graphs", {})
        key = tuple(map(_shape, inputs.values()))
        try:
            if key not in graphs:
                graphs[key] = _Step(self, super().learn, inputs, self.record or _recorded)
            outputs = graphs[key].replay(inputs)
        except RuntimeError as error:  # the network or loss synchronizes with the device or copies from the host
            log.warning("this training step cannot be captured as a CUDA graph and runs without one (%s)", brief(error))
            self._cannot_be_recorded = True
            return super().learn(x0, x_t, t, noise, weight, y)
        self._replayed = graphs[key]
        return outputs

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._replayed is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._replayed.add_gradients()
        if self._average is not None and self._is_last:
            self._average(self._listed)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        if self._replayed is None or self.batches > 1:  # otherwise the graph overwrites the gradients
            super().optimizer_zero_grad(*args, **kwargs)

    _replayed: "_Step | None" = None
    _average: "_Average | None" = None
    _cannot_be_recorded = False
    _is_last = True


class _Step:
    """The graph of a training step for one batch shape, with static inputs, outputs and gradients."""

    def __init__(
        self, module: DDPM, learn: Callable[..., dict[str, Tensor]], inputs: Mapping[str, Tensor], record: Record
    ):
        self._inputs = {name: _copied(value) for name, value in inputs.items()}
        self._parameters, self._adds = module._listed, module.batches > 1
        scaled = (lambda loss: loss) if module.scaler is None else module.scaler.scale
        given = {name: value for name, value in self._inputs.items() if not name.startswith("y")}
        y = _unnamed(self._inputs)

        def run() -> dict[str, Tensor]:
            before = [parameter.grad for parameter in self._parameters]
            for parameter in self._parameters:
                parameter.grad = None
            with _no_autocast_cache():
                outputs = learn(**given, y=y)
            scaled(outputs["loss"] / module.batches).backward()
            gradients = {str(i): p.grad for i, p in enumerate(self._parameters) if p.grad is not None}
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = gradient
            return {**{name: value.detach() for name, value in outputs.items()}, **gradients}

        with random_state_kept(inputs["x0"].device):
            self._replay, found = record(run)
        self._outputs = {name: value for name, value in found.items() if not name.isdigit()}
        self._gradients = [found.get(str(i)) for i in range(len(self._parameters))]

    def replay(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs and gradients for new inputs."""
        torch._foreach_copy_([*self._inputs.values()], [*inputs.values()])
        self._replay()
        return self._outputs

    def add_gradients(self) -> None:
        """Assign the last replay's gradients to the parameters, or add them to those of the step's other batches."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is not None and parameter.grad is not None and self._adds:
                parameter.grad += gradient
            else:
                parameter.grad = None if gradient is None else gradient.clone() if self._adds else gradient


class _Average:
    """Averages gradients over all processes, with one all-reduce per dtype."""

    def __init__(self, world_size: int):
        self._world_size = world_size
        self._flat: dict[Any, tuple[Tensor, list[Tensor]]] = {}

    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        given = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for _, gradient in given):  # in the same order on all ranks
            some = [(parameter, gradient) for parameter, gradient in given if gradient.dtype == dtype]
            flat, places = self._place(dtype, [gradient for _, gradient in some])
            torch._foreach_copy_(places, [gradient for _, gradient in some])
            torch.distributed.all_reduce(flat.div_(self._world_size))
            for (parameter, _), mean in zip(some, places, strict=True):
                parameter.grad = mean

    def _place(self, dtype: torch.dtype, gradients: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A flat buffer for all gradients and its views in their shapes, reused for the same shapes."""
        key = (dtype, *(gradient.shape for gradient in gradients))
        if key not in self._flat:
            sizes = [gradient.numel() for gradient in gradients]
            flat = torch.empty(sum(sizes), dtype=dtype, device=gradients[0].device)
            places = [
                part.as_strided(gradient.shape, gradient.stride())
                for part, gradient in zip(flat.split(sizes), gradients, strict=True)
            ]
            self._flat[key] = flat, places
        return self._flat[key]


class _GraphedCall:
    """A network's call, as a graph if gradients are disabled."""

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
                log.warning("this network cannot be captured as a CUDA graph and runs without one (%s)", brief(error))
                self._failed = True
                return self._model._call_impl(x, t, y)
        inputs, replay, out = self._graphs[key]
        inputs[0].copy_(x)
        inputs[1].copy_(t)
        if y is not None and inputs[2] is not None:
            map_condition(lambda here, given: here.copy_(given), inputs[2], y)
        replay()
        return out.clone()  # the caller may keep it


def _recorded(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Capture a function as a graph; returns the replay and the function's outputs, which each replay overwrites."""
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
    """Restore the random state on exit."""

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
    """The current autocast without its cache, whose tensors would be outside the graph."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=False)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    return (*tensor.shape, tensor.dtype)


def _named(y: Condition | None) -> dict[str, Tensor]:
    """A condition's tensors, with names that begin with "y"."""
    if y is None:
        return {}
    return {"y": y} if isinstance(y, Tensor) else {f"y.{name}": value for name, value in y.items()}


def _unnamed(inputs: Mapping[str, Tensor]) -> Condition | None:
    """The inverse of `_named`."""
    return inputs.get("y", {name[2:]: value for name, value in inputs.items() if name.startswith("y.")} or None)
