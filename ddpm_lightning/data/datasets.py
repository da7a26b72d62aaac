"""Image datasets in memory; every public function can be a config's `data.dataset`."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any
from urllib.error import URLError

import numpy as np
import torch
from filelock import FileLock

from ddpm_lightning import terminal
from ddpm_lightning.data.folders import find_images
from ddpm_lightning.data.image_files import read_images
from ddpm_lightning.data.labels import NO_LABEL, in_order, labels_of
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.errors import UserError, brief, optional_package
from ddpm_lightning.ranges import require_one_of

__all__ = ["digits", "from_torchvision", "huggingface", "image_folder"]

# Builders of `datasets` that run pickles or database commands.
_UNSAFE_READERS = ("pandas", "cache", "generator", "spark", "sql")
_PARTIAL = ".ddpm_lightning_download_"  # prefix of a download's temporary folder and lock

log = logging.getLogger(__name__)


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
    resize: str = "bicubic",
    crop: Sequence[int] | None = None,
    download: bool = True,
) -> ImageSet:
    """Load a torchvision dataset, downloaded on first use by one process at a time.

    Args:
        source: the dataset class with its arguments, except `root` and `download`.
        root: the folder that holds the dataset, or to download it to.
        channels: see `read_images`, for datasets of image files; the data module converts the others.
        image_size: see `channels`.
        resize, crop: see `channels`.
        download: whether the dataset may be downloaded; false for a folder named by a checkpoint.

    Raises:
        UserError: if the folder does not hold the dataset and it cannot be downloaded.
    """
    try:
        found = _downloaded(source, Path(root)) if download else source(root=root, download=False)
    except (URLError, RuntimeError, OSError) as error:
        name = getattr(source, "func", source).__name__
        named = "" if download else " (named by a checkpoint)"
        raise UserError(
            f"data.root={root}{named} does not hold {name}, and it cannot be downloaded there ({brief(error)}): set "
            "data.root=... (evaluate.py: data_root=...) to its folder, or to a folder to download it to"
        ) from error
    if not hasattr(found, "data"):  # CelebA: files
        folder = Path(found.root) / found.base_folder / "img_align_celeba"
        images, kept = read_images(
            [folder / name for name in found.filename],
            channels=channels,
            image_size=image_size,
            resize=resize,
            crop=crop,
        )
        return ImageSet(images, torch.zeros(len(kept), dtype=torch.long), None)
    images = torch.as_tensor(np.asarray(found.data))
    if images.dim() == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = found.labels if hasattr(found, "labels") else found.targets
    return ImageSet(images.contiguous(), torch.as_tensor(np.asarray(labels)).long(), getattr(found, "classes", ()))


def _downloaded(source: Callable[..., Any], root: Path) -> Any:
    """The dataset, downloaded atomically; a failed download leaves nothing behind."""
    with suppress(RuntimeError, FileNotFoundError):
        return source(root=root, download=False)
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    lock = root / f"{_PARTIAL}lock"
    try:
        with FileLock(lock):
            try:
                return _download(source, root)
            finally:
                with suppress(OSError):
                    lock.unlink()  # a process waiting for this lock finds the dataset in place
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()  # fails if the folder is not empty


def _download(source: Callable[..., Any], root: Path) -> Any:
    with suppress(RuntimeError, FileNotFoundError):
        return source(root=root, download=False)  # another process was first
    for interrupted in root.glob(f"{_PARTIAL}*/"):
        shutil.rmtree(interrupted, ignore_errors=True)
    partial = Path(mkdtemp(prefix=_PARTIAL, dir=root))
    try:
        _link_existing(source, root, partial)
        with terminal.hidden():  # torchvision shows the download
            source(root=partial, download=True)
        for path in sorted(partial.rglob("*")):
            if not path.is_dir():
                place = root / path.relative_to(partial)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return source(root=root, download=False)


def _link_existing(source: Callable[..., Any], root: Path, partial: Path) -> None:
    """Hard-link files of the dataset that exist already, such as a manually downloaded archive."""
    kind = getattr(source, "func", source)
    folders = {kind.__name__, getattr(kind, "base_folder", kind.__name__)}
    for path in [*root.glob("*"), *(inside for name in folders for inside in (root / name).rglob("*"))]:
        if path.is_file() and not path.name.startswith(_PARTIAL):
            place = partial / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a file system without hard links: the file is downloaded
                os.link(path, place)


def image_folder(
    root: str | Path,
    *,
    channels: int,
    image_size: Sequence[int],
    max_damaged: float = 0.01,
    dtype: str | None = None,
    resize: str = "bicubic",
    crop: Sequence[int] | None = None,
) -> ImageSet:
    """Load all images in a folder and its subfolders, see `find_images`; the top-level subfolder is an image's label.

    Subfolders are numbered in order of their names, or numerically if all names are integers. Images directly in the root
    have no label.

    Args:
        root: the folder.
        channels: see `read_images`.
        image_size: see `read_images`.
        max_damaged: see `read_images`.
        dtype: see `read_images`.
        resize, crop: see `read_images`.

    Raises:
        UserError: for a folder without images, and see `read_images`.
    """
    root = Path(root)
    paths, others = find_images(root)
    if not paths:
        what = "which has none" if root.exists() else "which does not exist"
        raise UserError(f"data.root must be a folder of images such as *.png or *.jpg, got {root}, {what}")
    if others:
        log.warning(
            "data.root=%s: skipping %d files that are not images, such as %s", root, len(others), others[0].name
        )
    form: Any = {"channels": channels, "image_size": image_size, "max_damaged": max_damaged, "dtype": dtype}
    images, kept = read_images(paths, resize=resize, crop=crop, **form)
    folders = [path.relative_to(root).parts[0] if path.parent != root else None for path in paths]
    classes = in_order(folder for folder in folders if folder is not None)
    if not classes:
        return ImageSet(images, torch.zeros(len(images), dtype=torch.long), None)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [NO_LABEL if folder is None else numbers[folder] for folder in folders]
    return ImageSet(images, torch.tensor(labels)[kept], classes)


def huggingface(
    root: str,
    *,
    channels: int,
    image_size: Sequence[int],
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = None,
    max_damaged: float = 0.01,
    dtype: str | None = None,
    resize: str = "bicubic",
    crop: Sequence[int] | None = None,
) -> ImageSet:
    """Load a Hugging Face dataset from the hub or a local folder, including one written by `save_to_disk`.

    Images are image files or their paths, relative to the folder; a missing file counts as damaged.

    Args:
        root: the name on the hub, or the folder.
        channels: see `read_images`.
        image_size: see `read_images`.
        max_damaged: see `read_images`.
        dtype: see `read_images`.
        resize, crop: see `read_images`.
        split: the split to load.
        image_column: the column of the images.
        label_column: the column of integer labels; None for no labels.

    Raises:
        UserError: if the library is missing, the dataset cannot be loaded or lacks an image column, and see `read_images`.
    """
    with optional_package("datasets", "huggingface", needed_by="data=huggingface"):
        import datasets
    try:
        found = _load_split(root, split)
    except UserError:
        raise
    except Exception as error:  # its own types, and those of its HTTP client
        raise UserError(
            f"data.root={root}, split={split} cannot be loaded ({brief(error)}): give the name of a dataset on the hub "
            "(requires a network), or a local folder"
        ) from error
    require_one_of("data.dataset.image_column", image_column, found.column_names)
    require_one_of("data.dataset.label_column", label_column, [*found.column_names, None])
    if isinstance(found.features[image_column], datasets.Image):  # decoded here, like images in a folder
        found = found.cast_column(image_column, datasets.Image(decode=False))
    files = [_file_in(cell, Path(root), f"data.dataset.image_column={image_column}") for cell in found[image_column]]
    names = [f"image {row} of data.root={root}" for row in range(len(files))]
    form: Any = {"channels": channels, "image_size": image_size, "max_damaged": max_damaged, "dtype": dtype}
    images, kept = read_images(files, names=names, resize=resize, crop=crop, **form)
    if label_column is None:
        return ImageSet(images, torch.zeros(len(images), dtype=torch.long), None)
    labels, classes = labels_of(list(found[label_column]), f"data.dataset.label_column={label_column}")
    return ImageSet(images, labels[kept], classes or getattr(found.features[label_column], "names", ()))


def _load_split(root: str, split: str) -> Any:
    """Load a split from the hub or a folder; refuses files that can run code."""
    import datasets

    local = Path(root).is_dir()
    if not local and root in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
        raise ValueError("the name is one of the library's file readers")
    if not local:
        _ask_hub_once(root)
    if any((Path(root) / name).is_file() for name in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(root)
        if isinstance(saved, datasets.Dataset):
            splits = tuple({"train", str(saved.split or "train")})
            require_one_of("data.dataset.split", split, splits, hint="the folder holds one split")
            return saved
        require_one_of("data.dataset.split", split, [*saved])
        return saved[split]
    where = str(Path(root).resolve()) if local else root  # a folder named csv would be taken for a reader
    code = {"trust_remote_code": False} if int(datasets.__version__.partition(".")[0]) < 4 else {}
    builder = datasets.load_dataset_builder(where, **code)
    if type(builder).__module__.rpartition(".")[2] in _UNSAFE_READERS:
        raise ValueError(f"its files need {type(builder).__name__}, which can run code from them")
    return datasets.load_dataset(where, split=split, **code)


def _ask_hub_once(root: str) -> None:
    """Fall back to the cache if there is no network: the library would retry six times, for half a minute.

    Raises:
        HfHubHTTPError: for a name unknown to the hub.
    """
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(root, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError:
        raise
    except Exception:  # of any HTTP client
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True


def _file_in(cell: Any, folder: Path, key: str) -> Path | IO[bytes]:
    """The image file in a table cell, given as bytes or path."""
    if cell is not None and not isinstance(cell, str | bytes | dict):
        raise UserError(f"{key} must be a column of image files or their paths, got {type(cell).__name__}")
    content = cell.get("bytes") if isinstance(cell, dict) else cell if isinstance(cell, bytes) else None
    path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
    if content or not path:
        return BytesIO(content or b"")
    return next((place for place in (folder / path, Path(path)) if place.is_file()), BytesIO())
