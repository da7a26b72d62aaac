"""Files that `torch.save` wrote, read as plain data: no code in them is run, and no damaged or forged byte is taken."""

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
    """The contents of a file, on the CPU, once its checksums and the sizes that it declares are verified.

    Args:
        path: the file.
        checked: whether the file must have checksums, as those that PyTorch has saved since version 1.6.

    Raises:
        OSError: where the file cannot be read.
        ValueError: for a file that is damaged, holds anything but plain data, or declares more than it holds; one line says how.
    """
    if checked or zipfile.is_zipfile(path):
        check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a strange file's format: what matters is whether it can be read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises what it comes upon
        raise ValueError(type(error).__name__) from error
    _check_plain(content)
    return content


def _check_plain(content: Any) -> None:
    """Refuse what cannot be walked through, copied or saved again in bounded time and memory."""
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
    """Whether a tensor is a dense one on the CPU that has all its values."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    # A view of stride 0 has as many elements as it says, and a copy of it, which is made next, takes their memory.
    last = tensor.storage_offset() + tensor.numel()
    return tensor.device.type == "cpu" and bool(last * tensor.element_size() <= tensor.untyped_storage().nbytes())
