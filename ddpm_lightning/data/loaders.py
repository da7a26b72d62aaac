"""A dataset in memory: how it is split, and served in an order that is computed from the seed."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import count
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.source import Batch, EndlessLoader, Source
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

    def prepared(
        self, channels: int, image_size: Sequence[int], *, num_classes: int | None, val_fraction: float, seed: int
    ) -> "InMemory":
        """The dataset in the requested form, and split.

        Args:
            channels: grayscale images are repeated and color ones turned gray to fit.
            image_size: (height, width), to which they are resized where they differ.
            num_classes: the number of labels, or None for training without.
            val_fraction: the fraction held out, chosen by the seed.
            seed: the run's.

        Raises:
            UserError: for labels outside 0..num_classes − 1, and a fraction that leaves no training image.
        """
        from torchvision.transforms.v2 import functional as transforms  # heavy, and a stream's workers do without

        images, labels = self
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
        return InMemory(ImageSet(images, labels), labeled=num_classes is not None, val_fraction=val_fraction, seed=seed)


class TrainLoader(EndlessLoader):
    """Batches from an endless row of passes over the data, each pass in its own order.

    Position p of the row is image `permutation(seed, p // N)[p % N]`, so every pass holds each image once, a batch may
    run on into the next pass, and all batches are full. Behind n images, rank r takes the positions from n + r·B on, and
    all W ranks together W·B: the order is known from n alone, which is the state, and no change of W or B leaves an image out.

    Args:
        data: the images.
        indices: the images' numbers in the dataset, which a batch carries along.
        batch_size: images per batch and rank, B.
        seed: the run's seed.
        rank: this process.
        world_size: the number of processes.
        flip: mirror each image with probability ½, computed from (seed, pass, image).
        labeled: whether a batch holds labels.
        accumulate: see `EndlessLoader`.
    """

    def __init__(
        self,
        data: ImageSet,
        indices: Tensor,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = False,
        labeled: bool = False,
        accumulate: int = 1,
    ):
        super().__init__(len(indices) // (batch_size * world_size * accumulate), accumulate, batch_size * world_size)
        self._data = data
        self._indices = indices
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._flip = flip
        self._labeled = labeled
        self._passes: dict[int, tuple[Tensor, Tensor]] = {}

    def _batches_from(self, position: int) -> Iterator[Batch]:
        return map(self._batch, count(position + self._rank * self._batch_size, self._world_size * self._batch_size))

    def _batch(self, first: int) -> Batch:
        positions = torch.arange(first, first + self._batch_size)
        epochs = positions // len(self._indices)
        chosen, mirrored = [], []
        for epoch in epochs.unique().tolist():
            order, coins = self._pass(epoch)
            local = order[positions[epochs == epoch] % len(self._indices)]
            chosen.append(local)
            mirrored.append(coins[local])
        local = torch.cat(chosen)
        there = _to(local, self._data.images.device)
        images = self._data.images[there]
        if self._flip:
            coins = _to(torch.cat(mirrored), images.device)[:, None, None, None]
            images = torch.where(coins, images.flip(-1), images)
        return Batch(images, self._data.labels[there] if self._labeled else None, self._indices[local])

    def _pass(self, epoch: int) -> tuple[Tensor, Tensor]:
        if epoch not in self._passes:
            self._passes = {k: v for k, v in self._passes.items() if k >= epoch - 1}
            size = len(self._indices)
            order = torch.randperm(size, generator=torch.Generator().manual_seed(derive(self._seed, "order", epoch)))
            coins = torch.rand(size, generator=torch.Generator().manual_seed(derive(self._seed, "flip", epoch))) < 0.5
            self._passes[epoch] = (order, coins)
        return self._passes[epoch]


class EvalLoader:
    """Batches of a dataset in its own order, every image once: rank r of W has the images r, r + W, r + 2W, …"""

    def __init__(
        self,
        data: ImageSet,
        indices: Tensor,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        labeled: bool = False,
    ):
        self._data = data
        self._indices = indices
        self._labeled = labeled
        # As many batches on each rank, since sharded networks compute together, and none of them empty.
        batches = ceil(ceil(len(indices) / world_size) / max(batch_size, min(2, world_size)))
        self._chunks = torch.arange(rank, len(indices), world_size).tensor_split(batches)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        for local in self._chunks:
            there = _to(local, self._data.images.device)
            y = self._data.labels[there] if self._labeled else None
            yield Batch(self._data.images[there], y, self._indices[local])


def _to(choice: Tensor, device: torch.device) -> Tensor:
    """A choice of images, made on the CPU, on their device; the CPU does not wait for it."""
    return choice if device.type == "cpu" else choice.pin_memory().to(device, non_blocking=True)


class InMemory(Source):
    """A dataset in memory, and the numbers of its training and of its validation images.

    Args:
        data: the dataset.
        labeled: whether training and validation batches hold labels.
        val_fraction: the fraction held out, chosen by the seed.
        seed: the run's.

    Raises:
        UserError: for a fraction that leaves no training image.
    """

    def __init__(self, data: ImageSet, *, labeled: bool, val_fraction: float, seed: int):
        size = len(data.images)
        held_out = round(val_fraction * size)
        if held_out >= size:
            raise UserError(
                f"data.val_fraction must be small enough to leave a training image, got {val_fraction} of {size}"
            )
        shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(derive(seed, "split")))
        self.val_indices, self.train_indices = shuffled[:held_out].sort().values, shuffled[held_out:].sort().values
        self._data = data
        self._labeled = labeled

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(*self._data)

    def num_images(self, name: str) -> int:
        return len(self._indices(name))

    def train_loader(
        self,
        batch_size: int,
        seed: int,
        *,
        rank: int,
        world_size: int,
        flip: bool,
        accumulate: int,
        device: torch.device,
    ) -> TrainLoader:
        return TrainLoader(
            self.part("train", device),
            self.train_indices,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            flip=flip,
            labeled=self._labeled,
            accumulate=accumulate,
        )

    def val_loader(self, batch_size: int, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        if not len(self.val_indices):
            return []
        return EvalLoader(
            self.part("validation", device),
            self.val_indices,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            labeled=self._labeled,
        )

    def batches(self, name: str, batch_size: int) -> Iterable[Batch]:
        if not len(indices := self._indices(name)):
            return []
        return EvalLoader(self.part(name), indices, batch_size=batch_size, labeled=True)

    def part(self, name: str, device: torch.device | str = "cpu") -> ImageSet:
        """A copy of "train", "validation" or "all" on a device."""
        chosen = self._indices(name)
        return ImageSet(self._data.images[chosen].to(device), self._data.labels[chosen].to(device))

    def _indices(self, name: str) -> Tensor:
        if name == "all":
            return torch.arange(len(self._data.images))
        return {"train": self.train_indices, "validation": self.val_indices}[name]
