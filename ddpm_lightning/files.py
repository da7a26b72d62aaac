"""Atomic files and folders, zip checksums, and file locks."""

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from ddpm_lightning.errors import UserError

__all__ = ["atomic_folder", "check_zip", "replace_file", "try_lock"]

_FOLDER = 0x10  # the MS-DOS directory flag of a zip member


@contextmanager
def replace_file(path: Path, mode: str = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """Write a file atomically: it replaces `path` once it is complete and on disk, and is removed after an error.

    A link at `path` is replaced, not followed.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    text: dict[str, Any] = (
        {} if "b" in mode else {"newline": newline, "encoding": "utf-8", "errors": "backslashreplace"}
    )
    try:
        with beside.open(mode.replace("w", "x"), **text) as file:  # a new file, so no link is followed
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write a folder atomically: a temporary folder that is renamed to `folder` at the end, and removed after an error.

    Raises:
        UserError: if the folder is not empty or cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}): give another folder") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_zip(path: Path) -> None:
    """Verify the checksums of a zip file written by PyTorch or NumPy, which do not verify them on reading.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for a file that is not a zip file, is damaged, or unpacks to more bytes than it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two members have the same name")
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if packed or sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("it unpacks to more bytes than it has")
            if any(member.is_dir() or member.external_attr & _FOLDER for member in members):
                # PyTorch would not read it, and return uninitialized memory.
                raise ValueError("a member is marked as a folder")
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
    except OSError:
        raise
    except Exception as error:  # zipfile raises many types on damaged bytes
        if str(error) == "File is not a zip file":
            raise ValueError("it is damaged, or not a file of PyTorch or NumPy") from error
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """Lock a file until its descriptor, the return value, is closed; None if another process holds the lock.

    The file is not truncated, and links are not followed. A file system without locks counts as locked.

    Raises:
        OSError: if the file cannot be opened.
    """
    flags = (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY) | getattr(os, "O_NOFOLLOW", 0)
    for wait in (0.3, 0):  # another process may be trying the lock or removing the file
        descriptor = os.open(path, flags, 0o666)
        try:
            locked = lock_descriptor(descriptor, blocking=False)
        except OSError:
            return descriptor
        with suppress(FileNotFoundError):
            if locked and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
        time.sleep(wait)
    return None
