"""Find the image files in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from ddpm_lightning.images import readable_endings

__all__ = ["find_images"]

_SYSTEM = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN"}


def find_images(root: Path) -> tuple[list[Path], list[Path]]:
    """The image files in a folder and its subfolders, in order, and the other files.

    Follows linked folders. Skips hidden and system files such as `._a.png`, `.ipynb_checkpoints` and `__MACOSX`.
    """
    files = sorted(_files(root, ()))
    pictures = [path for path in files if path.suffix.lower() in readable_endings()]
    return pictures, [path for path in files if path.suffix.lower() not in readable_endings()]


def _files(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    here = os.path.realpath(folder)
    if here in above or not os.path.isdir(here):  # a cyclic link
        return
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name in _SYSTEM:
            continue
        if entry.is_dir():
            yield from _files(folder / entry.name, (*above, here))
        elif entry.is_file():
            yield folder / entry.name
