"""The setting `compile=`: `torch.compile` of the network's blocks, or CUDA graphs."""

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.models.fast_cpu import has_fast_forms
from ddpm_lightning.models.network import blocks_of

__all__ = ["COMPILE", "compile_blocks", "is_compiled", "uses_graphs"]

log = logging.getLogger(__name__)

COMPILE = ("auto", True, False, "graphs")  # values of `compile=`


def is_compiled(how: str | bool) -> bool:
    """Whether `compile=` selects compiled blocks."""
    return how is True


def uses_graphs(how: str | bool, device: torch.device) -> bool:
    """Whether `compile=` selects CUDA graphs on this device: "graphs", or "auto" on a GPU."""
    return how in ("auto", "graphs") and device.type == "cuda"


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile the network block by block, in place; blocks of the same type and shape share their code, cached on disk.

    Weights keep their names, so checkpoints do not depend on compilation. A block that cannot be compiled runs eagerly.
    On a CPU, a network with the layers of `models.fast_cpu` is not compiled, since it is a fifth faster without.

    Raises:
        UserError: on a CPU without a C++ compiler.
    """
    if device.type == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise UserError("compile=true requires a C++ compiler on a CPU: install g++, or choose compile=false")
    if device.type == "cpu" and has_fast_forms(model):
        log.warning(
            "compile=true is ignored on a CPU, where this network's own layers are faster: set model.fast_cpu=false to compile them"
        )
        return
    blocks = blocks_of(model)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(blocks))
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 8 * len(blocks)
    )
    for block in blocks:
        block.compile(dynamic=False)
        block._compiled_call_impl = _Falling(block, block._compiled_call_impl)  # type: ignore[arg-type]


class _Falling:
    """A block's compiled call, which falls back to eager execution after the first failure."""

    warned = False

    def __init__(self, block: nn.Module, compiled: Callable[..., Any]):
        self._block, self._compiled = block, compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._compiled(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            if not _Falling.warned:
                _Falling.warned = True
                log.warning("compile=true failed; the network runs uncompiled (%s)", brief(error))
            self._block._compiled_call_impl = None
            return self._block(*args, **kwargs)
