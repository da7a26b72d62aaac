"""Sources of images that fit in memory, as bytes."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_lightning.data.loaders import ImageSet, check_size
from ddpm_lightning.data.source import Batch
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import open_image

__all__ = [
    "Batch",
    "ImageSet",
    "digits",
    "from_torchvision",
    "huggingface",
    "image_folder",
    "read_images",
    "read_picture",
]

log = logging.getLogger(__name__)

_UNSAFE_READERS = ("pandas", "cache", "generator", "spark", "sql")  # of datasets: pickles, and a database's commands
_PARTIAL = ".ddpm_lightning_download_"  # the name of a folder begins so while a set is downloaded to it

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def digits() -> ImageSet:
    """The 1,797 handwritten digits that scikit-learn ships: 8×8 pixels, one channel, ten classes (UCI Optical Recognition of Handwritten Digits)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (torch.from_numpy(data.images) * (255 / 16)).round().to(torch.uint8)
    return ImageSet(images[:, None], torch.from_numpy(data.target).long())


def from_torchvision(
    source: Callable[..., Any],
    *,
    root: str | Path,
    channels: int,
    image_size: Sequence[int],
    download: bool = True,
) -> ImageSet:
    """One of torchvision's sets, downloaded on first use.

    Args:
        source: the set's class with its arguments, but for `root` and `download`.
        root: the folder that it lies in, or is downloaded to.
        channels: as in `read_images`, for sets that are files; the others are converted by the data module.
        image_size: likewise.
        download: whether the set may be downloaded to that folder.

    Raises:
        UserError: where the set is neither on the disk nor to be had.
    """
    try:
        found = source(root=root, download=False)
    except (RuntimeError, FileNotFoundError) as error:
        name = getattr(source, "func", source).__name__
        if not download:
            raise UserError(
                f"data.root={root}, which a checkpoint names, does not hold {name}: give the set's folder by data.root=... (evaluate.py: "
                "data_root=...); it is downloaded where it is not there"
            ) from error
        try:
            found = _downloaded(source, Path(root))
        except (URLError, RuntimeError, OSError) as error:
            raise UserError(
                f"data.root={root} does not hold {name}, and it cannot be downloaded ({' '.join(str(error).split())}): "
                "download it where there is a network, and give the folder by data.root=..."
            ) from error
    if not hasattr(found, "data"):  # CelebA: files
        folder = Path(found.root) / found.base_folder / "img_align_celeba"
        images, kept = read_images([folder / name for name in found.filename], channels=channels, image_size=image_size)
        return ImageSet(images, torch.zeros(len(kept), dtype=torch.long))
    images = torch.as_tensor(np.asarray(found.data))
    if images.dim() == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = found.labels if hasattr(found, "labels") else found.targets
    return ImageSet(images.contiguous(), torch.as_tensor(np.asarray(labels)).long())


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a folder that exists, against other processes on this machine and, where its file system has locks, on others."""
    path = folder / f"{_PARTIAL}lock"
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                    continue  # its last holder has removed it, and someone else made a new one
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _downloaded(source: Callable[..., Any], root: Path) -> Any:
    """The set, downloaded beside its place and moved there; of a download in vain, or cut short, nothing is left but what was there."""
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _one_at_a_time(root):
            with suppress(RuntimeError, FileNotFoundError):
                return source(root=root, download=False)  # another process was first
            for cut_short in root.glob(f"{_PARTIAL}*/"):
                shutil.rmtree(cut_short, ignore_errors=True)
            partial = Path(mkdtemp(prefix=_PARTIAL, dir=root))
            try:
                _lend(source, root, partial)
                source(root=partial, download=True)
                for path in sorted(partial.rglob("*")):
                    if not path.is_dir():
                        place = root / path.relative_to(partial)
                        place.parent.mkdir(parents=True, exist_ok=True)
                        os.replace(path, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()  # refused where anything is in it
    return source(root=root, download=False)


def _lend(source: Callable[..., Any], root: Path, partial: Path) -> None:
    """Other names for the set's files that are there already, such as an archive that was put in place by hand."""
    kind = getattr(source, "func", source)
    folders = {kind.__name__, getattr(kind, "base_folder", kind.__name__)}
    for path in [*root.glob("*"), *(below for name in folders for below in (root / name).rglob("*"))]:
        if path.is_file() and not path.name.startswith(_PARTIAL):
            place = partial / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a file system without such names: it is downloaded
                os.link(path, place)


def image_folder(root: str | Path, *, channels: int, image_size: Sequence[int], max_damaged: float = 0.01) -> ImageSet:
    """All pictures in a folder and below it; the folder right below the root that a picture lies in, in order of names, is its label.

    Args:
        root: the folder.
        channels: as in `read_images`, for the rest likewise.
        image_size: see `read_images`.
        max_damaged: see `read_images`.

    Raises:
        UserError: where there are none.
    """
    root = Path(root)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
    if not paths:
        raise UserError(
            f"data.root={root} holds no pictures: it or the folders below it must hold files such as *.png or *.jpg"
        )
    images, kept = read_images(paths, channels=channels, image_size=image_size, max_damaged=max_damaged)
    first = [path.relative_to(root).parts for path in paths]
    classes = sorted({parts[0] for parts in first if len(parts) > 1})
    labels = torch.tensor([classes.index(parts[0]) if len(parts) > 1 else 0 for parts in first])
    return ImageSet(images, labels[kept])


def huggingface(
    root: str,
    *,
    channels: int,
    image_size: Sequence[int],
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = None,
) -> ImageSet:
    """A set of Hugging Face's, from the hub or a local folder, as its library `datasets` reads it.

    Args:
        root: its name on the hub, or the folder.
        channels: see `read_images`.
        image_size: see `read_images`.
        split: which of its parts.
        image_column: the column of the images.
        label_column: the column of whole-number labels; None for a set that is used without.

    Raises:
        UserError: where the library is missing, the set cannot be had, or it has no such column.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "data=huggingface needs the package datasets: pip install 'ddpm_lightning[huggingface]'"
        ) from error
    local = Path(root).is_dir()
    if not local and root in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
        raise UserError(
            f"data.root={root} is one of the library's own readers, and no set: give a local folder, or a set's name on the hub"
        )
    try:
        where = str(Path(root).resolve()) if local else root  # else a folder called csv would be taken for a reader
        code = {"trust_remote_code": False} if int(datasets.__version__.partition(".")[0]) < 4 else {}
        builder = datasets.load_dataset_builder(where, **code)
        if type(builder).__module__.rpartition(".")[2] in _UNSAFE_READERS:
            raise ValueError(f"it holds files for {type(builder).__name__}, which could run code in them")
        found = datasets.load_dataset(where, split=split, **code)
    except Exception as error:  # its own classes, and those of what it downloads with
        raise UserError(
            f"data.root={root}, split={split} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]}): "
            "give the name of a set on the hub, where there is a network, or a local folder"
        ) from error
    for key, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in found.column_names:
            raise UserError(
                f"data.dataset.{key}={column} is no column of {root}: choose one of {', '.join(found.column_names)}"
            )
    height, width = image_size
    if isinstance(found.features[image_column], datasets.Image):  # decoded here, as the pictures in a folder are
        found = found.cast_column(image_column, datasets.Image(decode=False))
    arrays = [
        _from_table(row, channels, (width, height), f"image {i} of {root}") for i, row in enumerate(found[image_column])
    ]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    labels = torch.zeros(len(images)) if label_column is None else torch.as_tensor(list(found[label_column]))
    return ImageSet(images, labels.long())


def read_images(
    paths: Sequence[Path], *, channels: int, image_size: Sequence[int], max_damaged: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Picture files as uint8 (N, C, H, W), resized and cropped at the centre, and the numbers (N,) of those that could be read.

    Transparent parts become white; 16 bits become 8. A damaged file is named and left out.

    Args:
        paths: the files.
        channels: 1 or 3.
        image_size: (height, width).
        max_damaged: the share of damaged files above which the set is refused.

    Raises:
        UserError: for more damaged files than that, or more images than fit in memory.
    """
    height, width = image_size
    check_size(len(paths), channels, image_size)

    def read(path: Path) -> np.ndarray | None:
        try:
            return read_picture(path, channels, (width, height))
        except ValueError as error:
            log.warning("%s is damaged and left out (%s)", path, error)
            return None

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        arrays = list(pool.map(read, paths))
    kept = [i for i, array in enumerate(arrays) if array is not None]
    damaged = len(paths) - len(kept)
    if damaged > max_damaged * len(paths):
        raise UserError(
            f"{damaged} of {len(paths)} pictures are damaged, among them {paths[next(i for i, a in enumerate(arrays) if a is None)]}: "
            f"mend or remove them, or allow more by data.dataset.max_damaged (now {max_damaged})"
        )
    images = torch.from_numpy(np.stack([array for array in arrays if array is not None]))
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(kept)


def read_picture(file: Path | IO[bytes], channels: int, size: tuple[int, int]) -> np.ndarray:
    """One picture as uint8 (H, W, C), in the form that `read_images` describes.

    Args:
        file: its file.
        channels: 1 or 3.
        size: (width, height).

    Raises:
        ValueError: where it is damaged; one line says how.
    """
    try:
        with open_image(file) as picture:
            return _as_bytes(picture, channels, size)
    except Exception as error:  # on damaged bytes Pillow's decoders raise what they come upon
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _from_table(cell: Any, channels: int, size: tuple[int, int], name: str) -> np.ndarray:
    """A picture in a cell of a table, the bytes or the path of its file."""
    held = cell if isinstance(cell, dict) else {}
    file = BytesIO(held["bytes"]) if held.get("bytes") else Path(str(held.get("path")))
    try:
        if isinstance(file, Path) and not file.is_file():
            raise ValueError(f"there is no file {file}")
        return read_picture(file, channels, size)
    except ValueError as error:
        raise UserError(f"{name} cannot be read ({error}): mend it, or leave it out") from error


def _as_bytes(image: Image.Image, channels: int, size: tuple[int, int]) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits in 32: Pillow would cut them off at 255
        levels = np.asarray(image).clip(0, 65535).astype(np.uint16)  # n/257, rounded: there are no halves
        image = Image.fromarray(((levels + np.uint32(128)) // np.uint32(257)).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), size, Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size[1], size[0], channels)
