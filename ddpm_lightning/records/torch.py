"""Load files of `torch.save` as plain data: runs no code, and refuses damaged or forged files."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.files import check_zip

__all__ = ["load_plain"]

_DEPTH, _VALUES = 64, 5_000_000
_PLAIN = (Tensor, str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


def load_plain(path: Path, *, checked: bool = True) -> Any:
    """Load a file to the CPU, after verifying its checksums and declared sizes.

    Args:
        path: the file.
        checked: whether to require checksums, which PyTorch files have since version 1.6.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for a file that is damaged, is not plain data, or declares more than it holds, with the reason in one line.
    """
    if checked or zipfile.is_zipfile(path):
        check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual file formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises many types
        raise ValueError(type(error).__name__) from error
    _check_plain(content)
    return content


def _check_plain(content: Any) -> None:
    """Refuse content that cannot be traversed, copied or saved in bounded time and memory."""
    left, count = [(content, 0)], 0
    while left:
        node, depth = left.pop()
        count += 1
        if depth > _DEPTH or count > _VALUES:
            raise ValueError("it is nested without end")
        if isinstance(node, Mapping):
            left += [(child, depth + 1) for pair in node.items() for child in pair]
        elif isinstance(node, list | tuple | set | frozenset):
            left += [(child, depth + 1) for child in node]
        elif isinstance(node, Tensor) and not _is_plain(node):
            raise ValueError("it holds a tensor that is not dense or has fewer values than it declares")
        elif not isinstance(node, _PLAIN):
            raise ValueError(f"it holds a {type(node).__name__}")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, on the CPU, and holds all its values."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    # A view with stride 0 may declare any number of elements, and copying it would allocate them.
    last = tensor.storage_offset() + tensor.numel()
    return tensor.device.type == "cpu" and bool(last * tensor.element_size() <= tensor.untyped_storage().nbytes())
