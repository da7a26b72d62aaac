"""A user's own package in the folder that a program is started from, which nothing else is imported from."""

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["allow"]


class _Here(MetaPathFinder):
    """Finds packages in the working folder by their names, after everything that is installed, and then what they import."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is not None or name not in self.names:
            return None
        if (spec := PathFinder.find_spec(name, [os.getcwd()])) is not None and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return spec


_here = _Here()


def allow(targets: Iterable[str]) -> None:
    """Let the packages of these dotted names be imported from the working folder, if they are not installed.

    A folder may be a stranger's, and Hydra and PyTorch import what they find under certain names: so it is on the path only when
    one of these packages is found in it.
    """
    _here.names |= {target.partition(".")[0] for target in targets}
    if _here not in sys.meta_path:
        sys.meta_path.append(_here)
