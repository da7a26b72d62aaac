"""A dataset in memory, its split, and its loaders in an order computed from the seed."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import count
from math import ceil, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.labels import check_labels
from ddpm_lightning.data.source import (
    Batch,
    Condition,
    EndlessLoader,
    Form,
    Share,
    Source,
    beside,
    is_labels,
    map_condition,
    tensors_of,
)
from ddpm_lightning.data.values import POINTS, Values, kind_of
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.seeds import derive

__all__ = ["EvalLoader", "ImageSet", "InMemory", "TrainLoader", "check_size", "require_sides"]


_BYTES = Values()
_IMAGES = 4  # axes of a batch of images
_MOST = 16 * 2**30  # maximum bytes of a dataset in memory


def check_size(count: int, channels: int, image_size: Sequence[int], values: Values = _BYTES) -> None:
    """Refuse a dataset that does not fit in memory, before allocating it.

    Raises:
        UserError: for more than 16 GiB.
    """
    kind = "bytes" if values.memory.itemsize == 1 else values.dtype
    if (size := count * channels * prod(image_size) * values.memory.itemsize) > _MOST:
        raise UserError(
            f"data.image_size must be smaller, got {[*image_size]}: the {count:,} images of the dataset are "
            f"{size / 2**30:.0f} GiB as {kind}, and at most {_MOST // 2**30} GiB fit in memory"
        )


def require_sides(image_size: Sequence[int]) -> None:
    """Refuse a size that is not [height, width].

    Raises:
        UserError: for any other number of sides.
    """
    if len(image_size) != 2:
        raise UserError(f"data.image_size must be [height, width] for a dataset of images, got {[*image_size]}")


class ImageSet(NamedTuple):
    """A dataset that fits in memory.

    images: uint8 (N, C, H, W), points float32 (N, 2, 1, 1) in [−1, 1], or other data (N, C, ...) in `data.dtype`;
    labels: int64 (N,), or another condition; classes: names of the labels 0, 1, …, empty if unnamed, or None for a dataset
    without labels, whose `labels` are zeros.
    """

    images: Tensor
    labels: Any  # a Condition
    classes: Sequence[str] | None = ()

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the dataset."""
        return [self.images, *tensors_of(self.labels)]

    def prepared(self, form: Form) -> "InMemory":
        """Convert the dataset to the given form and split it.

        Raises:
            UserError: for values that do not match the form, labels outside 0..num_classes − 1, or a validation fraction that
                leaves no training image.
        """
        check_size(len(self.images), form.channels, form.image_size, form.values)
        images = self.images
        if images.dtype is torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3):
            images = _resized(images, form)
        images = form.values.check(images)
        _check_shape(images, form)
        _check_condition(self.labels, images, flip=form.flip)
        check_labels(self.labels, self.classes, form.num_classes)
        return InMemory(self._replace(images=images), form)


def _resized(images: Tensor, form: Form) -> Tensor:
    """8-bit images in the form's size and number of channels."""
    from torchvision.transforms.v2 import functional as transforms  # heavy, and not needed by a stream's workers

    require_one_of("data.channels", form.channels, (1, 3), hint="the dataset holds images")
    require_sides(form.image_size)
    if [*images.shape[-2:]] != [*form.image_size]:
        images = transforms.resize(images, [*form.image_size], antialias=True)
    if images.shape[1] != form.channels:
        images = transforms.rgb_to_grayscale(images) if form.channels == 1 else images.expand(-1, 3, -1, -1)
    return images


def _check_shape(images: Tensor, form: Form) -> None:
    _, channels, *size = images.shape
    holds = "points" if (channels, *size) == POINTS else "values"
    require_one_of(
        "data.channels", form.channels, (channels,), hint=f"the dataset holds {holds} of data.image_size={size}"
    )
    require_one_of("data.image_size", [*form.image_size], (size,), hint="the dataset's own size")


def _check_condition(y: Condition, images: Tensor, *, flip: bool) -> None:
    """Refuse a condition with a different number of rows than images, or one that cannot be mirrored with them."""
    for value in tensors_of(y):
        if len(value) != len(images):
            raise UserError(
                f"data.dataset.condition must have one row for each of the {len(images)} samples, got {len(value)}"
            )
        if flip and value.ndim > 2 and not value.ndim == images.ndim == _IMAGES:
            raise UserError(
                f"data.flip must be false for samples of {[*images.shape[1:]]} with a condition of {[*value.shape[1:]]}, got true: "
                "only images and image conditions can be mirrored"
            )


class TrainLoader(EndlessLoader):
    """Batches from an endless sequence of passes over the data, each in its own order.

    Position p is image `permutation(seed, p // N)[p % N]`, so each pass holds every image once, batches may span two
    passes, and all batches are full. After n images, rank r takes the B positions from n + r·B, and all W ranks together
    W·B. The state is n alone, so no image is skipped when W or B changes.

    Args:
        data: the images, with their indices in the dataset as ids.
        share: this process's share of each batch.
        seed: the run's seed.
        flip: mirror each image with probability ½, computed from (seed, pass, image).
    """

    def __init__(self, data: Batch, share: Share, *, seed: int, flip: bool = False):
        super().__init__(len(data.ids), share)
        self._data = data
        self._seed = seed
        self._flip = flip

    def _batches_from(self, position: int) -> Iterator[Batch]:
        return map(self._batch, count(position + self._share.rank * self._share.batch_size, self._share.images))

    def _batch(self, first: int) -> Batch:
        size, stop = len(self._data.ids), first + self._share.batch_size
        parts = []
        for epoch in range(first // size, (stop - 1) // size + 1):
            part = slice(max(0, first - epoch * size), stop - epoch * size)
            parts.append([row[part] for row in _pass(size, self._seed, epoch)])
        chosen, mirrored = map(torch.cat, zip(*parts, strict=True))
        batch = _take(self._data, chosen)
        if not self._flip:
            return batch
        x0, y, there = batch.x0, batch.y, _to(mirrored, batch.x0.device)

        def mirror(values: Tensor) -> Tensor:
            """Mirrors images and image-shaped conditions, such as masks."""
            if not values.ndim == x0.ndim == _IMAGES:
                return values
            return torch.where(beside(there, values), values.flip(-1), values)

        return batch._replace(x0=mirror(x0), y=None if y is None else map_condition(mirror, y))


@lru_cache(maxsize=2)
def _pass(size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of a pass's images, and which of them are mirrored."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))
    coins = torch.rand(size, generator=torch.Generator().manual_seed(derive(seed, "flip", epoch))) < 0.5
    return order, coins[order]


class EvalLoader:
    """Batches of a dataset in its own order, every image once: rank r of W takes the images r, r + W, r + 2W, …"""

    def __init__(self, data: Batch, share: Share):
        self._data = data
        # The same number of batches on each rank, none empty, since sharded networks compute together.
        size, ranks = len(data.ids), share.world_size
        batches = ceil(ceil(size / ranks) / max(share.batch_size, min(2, ranks)))
        self._chunks = torch.arange(share.rank, size, ranks).tensor_split(batches)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        return (_take(self._data, chosen) for chosen in self._chunks)


def _take(data: Batch, chosen: Tensor) -> Batch:
    there = _to(chosen, data.x0.device)
    y = None if data.y is None else map_condition(lambda rows: rows[there], data.y)
    return Batch(data.x0[there], y, data.ids[chosen])


def _to(choice: Tensor, device: torch.device) -> Tensor:
    """Move indices from the CPU to the images' device, without blocking."""
    return choice if device.type == "cpu" else choice.pin_memory().to(device, non_blocking=True)


class InMemory(Source):
    """A dataset in memory, with the indices of its training and validation images.

    Args:
        data: the dataset.
        form: the split, flips, labels and seed.

    Raises:
        UserError: for a validation fraction that leaves no training image.
    """

    def __init__(self, data: ImageSet, form: Form):
        size = len(data.images)
        held_out = round(form.val_fraction * size)
        if held_out >= size:
            raise UserError(
                f"data.val_fraction must leave at least one training image, got {form.val_fraction} of {size} images"
            )
        shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(derive(form.seed, "split")))
        self.val_indices, self.train_indices = shuffled[:held_out].sort().values, shuffled[held_out:].sort().values
        self._indices = {"train": self.train_indices, "validation": self.val_indices, "all": torch.arange(size)}
        self._data = data
        self._form = form

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(*self._data.tensors)

    def conditions(self, count: int) -> Condition | None:
        labels, ids = self._data.labels, self.val_indices if len(self.val_indices) else self.train_indices
        return None if is_labels(labels) else map_condition(lambda rows: rows[ids[:count]], labels)

    @property
    def classes(self) -> Sequence[str] | None:
        return self._data.classes

    @property
    def extent(self) -> list[float]:
        return [float(f"{float(value):.4g}") for value in self._data.images.aminmax()]

    def outside(self, clip: float) -> float:
        values, images = self._form.values, self._data.images
        middle, reach = (values.high + values.low) / 2, clip * (values.high - values.low) / 2
        if values.is_whole and clip >= 1:
            return 0.0
        return int(((images < middle - reach) | (images > middle + reach)).count_nonzero()) / images.numel()

    @property
    def are_images(self) -> bool:
        """Whether the data are 8-bit images with 1 or 3 channels."""
        form = self._form
        return (
            kind_of({"channels": form.channels, "image_size": form.image_size, "dtype": form.values.dtype}) == "images"
        )

    def num_images(self, name: str) -> int:
        return len(self._indices[name])

    def train_loader(self, share: Share, device: torch.device) -> TrainLoader:
        data = self._part("train", device, labeled=self._form.num_classes is not None)
        return TrainLoader(data, share, seed=self._form.seed, flip=self._form.flip)

    def loader(
        self, name: str, share: Share, *, device: torch.device | str = "cpu", labeled: bool = True
    ) -> Iterable[Batch]:
        return EvalLoader(self._part(name, device, labeled=labeled), share) if self.num_images(name) else []

    def _part(self, name: str, device: torch.device | str, *, labeled: bool) -> Batch:
        """A copy of a split on a device."""
        ids, labels = self._indices[name], self._data.labels
        y = map_condition(lambda rows: rows[ids].to(device), labels) if labeled or not is_labels(labels) else None
        return Batch(self._data.images[ids].to(device), y, ids)
