"""A dataset in memory: how it is split, and served in an order that is computed from the seed."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import count
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.source import Batch, EndlessLoader, Form, Share, Source
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.seeds import derive

__all__ = ["EvalLoader", "ImageSet", "InMemory", "TrainLoader", "check_size"]


_BYTES = 16 * 2**30  # of a dataset in memory


def check_size(count: int, channels: int, image_size: Sequence[int]) -> None:
    """Refuse a dataset that does not fit in memory, before it is made.

    Raises:
        UserError: for more than 16 GiB as bytes.
    """
    height, width = image_size
    if (size := count * channels * height * width) > _BYTES:
        raise UserError(
            f"data.image_size must be smaller, got {[height, width]}: the {count:,} images of the dataset are "
            f"{size / 2**30:.0f} GiB as bytes, and at most {_BYTES // 2**30} GiB fit in memory"
        )


class ImageSet(NamedTuple):
    """A dataset that fits in memory: images uint8 (N, C, H, W), or points float32 (N, 2, 1, 1) in [−1, 1]; labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def prepared(self, form: Form) -> "InMemory":
        """The dataset in the requested form, and split.

        Raises:
            UserError: for labels outside 0..num_classes − 1, and a fraction that leaves no training image.
        """
        from torchvision.transforms.v2 import functional as transforms  # heavy, and a stream's workers do without

        images, labels = self
        channels, image_size, num_classes, *_ = form
        check_size(len(images), channels, image_size)
        holds_points = images.is_floating_point()
        hint = "the dataset holds points, of data.image_size=[1, 1]" if holds_points else "the dataset holds images"
        require_one_of("data.channels", channels, (2,) if holds_points else (1, 3), hint=hint)
        if list(images.shape[-2:]) != list(image_size):
            images = transforms.resize(images, list(image_size), antialias=True)
        if images.shape[1] != channels:
            images = transforms.rgb_to_grayscale(images) if channels == 1 else images.expand(-1, 3, -1, -1)
        if num_classes is not None and not 0 <= (low := int(labels.min())) <= (high := int(labels.max())) < num_classes:
            fitting = f"{high + 1} or more, or null" if low >= 0 else "null"
            raise UserError(
                f"data.num_classes must be {fitting}, got {num_classes}: the labels are from {low} to {high}"
            )
        return InMemory(ImageSet(images, labels), form)


class TrainLoader(EndlessLoader):
    """Batches from an endless row of passes over the data, each pass in its own order.

    Position p of the row is image `permutation(seed, p // N)[p % N]`, so every pass holds each image once, a batch may
    run on into the next pass, and all batches are full. Behind n images, rank r takes the positions from n + r·B on, and
    all W ranks together W·B: the order is known from n alone, which is the state, and no change of W or B leaves an image out.

    Args:
        data: the images, of which ids are the numbers in the dataset.
        share: this process's.
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
        there = _to(mirrored, batch.x0.device)[:, None, None, None]
        return batch._replace(x0=torch.where(there, batch.x0.flip(-1), batch.x0))


@lru_cache(maxsize=2)
def _pass(size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The images of a pass in their order, and which of them are mirrored."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))
    coins = torch.rand(size, generator=torch.Generator().manual_seed(derive(seed, "flip", epoch))) < 0.5
    return order, coins[order]


class EvalLoader:
    """Batches of a dataset in its own order, every image once: rank r of W has the images r, r + W, r + 2W, …"""

    def __init__(self, data: Batch, share: Share):
        self._data = data
        # As many batches on each rank, since sharded networks compute together, and none of them empty.
        size, ranks = len(data.ids), share.world_size
        batches = ceil(ceil(size / ranks) / max(share.batch_size, min(2, ranks)))
        self._chunks = torch.arange(share.rank, size, ranks).tensor_split(batches)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        return (_take(self._data, chosen) for chosen in self._chunks)


def _take(data: Batch, chosen: Tensor) -> Batch:
    there = _to(chosen, data.x0.device)
    return Batch(data.x0[there], None if data.y is None else data.y[there], data.ids[chosen])


def _to(choice: Tensor, device: torch.device) -> Tensor:
    """A choice of images, made on the CPU, on their device; the CPU does not wait for it."""
    return choice if device.type == "cpu" else choice.pin_memory().to(device, non_blocking=True)


class InMemory(Source):
    """A dataset in memory, and the numbers of its training and of its validation images.

    Args:
        data: the dataset.
        form: says what is held out, mirrored and labeled, and the seed.

    Raises:
        UserError: for a fraction that leaves no training image.
    """

    def __init__(self, data: ImageSet, form: Form):
        size = len(data.images)
        held_out = round(form.val_fraction * size)
        if held_out >= size:
            raise UserError(
                f"data.val_fraction must be small enough to leave a training image, got {form.val_fraction} of {size}"
            )
        shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(derive(form.seed, "split")))
        self.val_indices, self.train_indices = shuffled[:held_out].sort().values, shuffled[held_out:].sort().values
        self._indices = {"train": self.train_indices, "validation": self.val_indices, "all": torch.arange(size)}
        self._data = data
        self._form = form

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(*self._data)

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
        """A copy of a part, on a device."""
        ids = self._indices[name]
        return Batch(self._data.images[ids].to(device), self._data.labels[ids].to(device) if labeled else None, ids)
