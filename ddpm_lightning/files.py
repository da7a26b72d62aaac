"""Files and folders that are written atomically, and zip files that are verified before they are read."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ddpm_lightning.errors import UserError

__all__ = ["atomic_folder", "check_zip", "replace_file"]


@contextmanager
def replace_file(path: Path, mode: str = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """A file to write to that takes the place of `path` when it is complete and on the disk; on an error nothing is left of it.

    A link at `path` is replaced, not followed.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)  # no link at this name is followed
    text: dict[str, Any] = (
        {} if "b" in mode else {"newline": newline, "encoding": "utf-8", "errors": "backslashreplace"}
    )
    try:
        with os.fdopen(new, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, which takes its place at the end.

    Raises:
        UserError: where the folder cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): give another folder") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_zip(path: Path) -> None:
    """Verify the checksums of a zip file that PyTorch or NumPy wrote, which they themselves do not do when they read it.

    Raises:
        OSError: where the file cannot be read.
        ValueError: for a file that is no zip file, is damaged, or would unpack to more bytes than it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two of its members have one name")
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if packed or sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("it unpacks to more bytes than it has")
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
    except OSError:
        raise
    except Exception as error:  # zipfile raises what it comes upon in damaged bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
