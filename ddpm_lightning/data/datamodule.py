"""The one data module: a set, split and served in an order that is computed from the seed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import ceil

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ddpm_lightning.data.datasets import Batch, ImageSet
from ddpm_lightning.data.points import SHAPE
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import from_uint8
from ddpm_lightning.ranges import is_whole, within
from ddpm_lightning.seeds import derive

__all__ = ["EvalLoader", "ImageDataModule", "TrainLoader"]


class TrainLoader:
    """Batches from an endless row of passes over the data, each pass in its own order.

    Position p of the row is image `permutation(seed, p // N)[p % N]`, so every pass holds each image once, a batch may
    run on into the next pass, and all batches are full. Micro-batch m of rank r takes the positions from
    (m·W + r)·B on: the order is known from m alone, is the same for every world size W at one global batch size, and
    its state is that one number.

    Args:
        data: the images.
        indices: the images' numbers in the whole set, which a batch carries along.
        batch_size: images per batch and rank, B.
        seed: the run's seed.
        rank: this process.
        world_size: the number of processes.
        flip: mirror each image with probability ½, drawn from (seed, pass, image).
        labelled: whether a batch holds labels.
        accumulate: batches per optimiser step; Lightning would cut a step short where its epoch, `len`, is no multiple.
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
        labelled: bool = False,
        accumulate: int = 1,
    ):
        self._data = data
        self._indices = indices
        self._batch_size = batch_size
        self._accumulate = accumulate
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._flip = flip
        self._labelled = labelled
        self._batches = 0
        self._passes: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        steps = len(self._indices) // (self._batch_size * self._world_size * self._accumulate)
        return max(1, steps) * self._accumulate

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            self._batches += 1
            yield self._batch(self._batches - 1)

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._batches = state["batches"]

    def _batch(self, number: int) -> Batch:
        first = (number * self._world_size + self._rank) * self._batch_size
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
        return Batch(images, self._data.labels[there] if self._labelled else None, self._indices[local])

    def _pass(self, epoch: int) -> tuple[Tensor, Tensor]:
        if epoch not in self._passes:
            self._passes = {k: v for k, v in self._passes.items() if k >= epoch - 1}
            size = len(self._indices)
            order = torch.randperm(size, generator=torch.Generator().manual_seed(derive(self._seed, "order", epoch)))
            coins = torch.rand(size, generator=torch.Generator().manual_seed(derive(self._seed, "flip", epoch))) < 0.5
            self._passes[epoch] = (order, coins)
        return self._passes[epoch]


class EvalLoader:
    """Batches of a set in its own order, every image once: rank r of W has the images r, r + W, r + 2W, …"""

    def __init__(
        self,
        data: ImageSet,
        indices: Tensor,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        labelled: bool = False,
    ):
        self._data = data
        self._indices = indices
        self._labelled = labelled
        # As many batches on each rank, since networks that are shared out compute together.
        batches = ceil(ceil(len(indices) / world_size) / batch_size)
        self._chunks = torch.arange(rank, len(indices), world_size).tensor_split(batches)

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        for local in self._chunks:
            there = _to(local, self._data.images.device)
            y = self._data.labels[there] if self._labelled else None
            yield Batch(self._data.images[there], y, self._indices[local])


def _to(choice: Tensor, device: torch.device) -> Tensor:
    """A choice of images, made on the CPU, on their device; the CPU does not wait for it."""
    return choice if device.type == "cpu" else choice.pin_memory().to(device, non_blocking=True)


class ImageDataModule(LightningDataModule):
    """A set of images, its split into training and validation, and its loaders.

    Args:
        dataset: called once per process, gives the set; what has to be downloaded it lets one process download.
        channels: 1 or 3; grey images are repeated and colour ones turned grey to fit. Points have 2, and the size [1, 1].
        image_size: side, or (height, width), to which the images are resized where they differ.
        batch_size: images per step and process.
        val_fraction: the share that is held out for validation, drawn from the seed.
        num_classes: the number of labels that the model is given, or None for training without labels.
        flip: mirror half of the training images.
        on_device: keep the images on the device that trains, as bytes, so that a small network never waits for them.
        seed: what the split, the order and the flips are computed from.
        root: the folder of the set's files, which `dataset` is called with; None for sets without.

    Raises:
        ValueError: for a share or size that leaves no image to train on.
    """

    def __init__(
        self,
        dataset: Callable[..., ImageSet],
        *,
        channels: int,
        image_size: int | Sequence[int],
        batch_size: int,
        val_fraction: float = 0.1,
        num_classes: int | None = None,
        flip: bool = False,
        on_device: bool = True,
        seed: int = 0,
        root: str | None = None,
    ):
        super().__init__()
        if not is_whole(batch_size, "[1, 65536]"):
            raise ValueError(f"batch_size={batch_size} is no number of images: give a whole number from 1 to 65536")
        self._size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        if channels not in (1, 3) and (channels, *self._size) != SHAPE:
            raise ValueError(f"channels={channels} will not do: give 1 for grey images or 3 for colour")
        if not within(val_fraction, "[0, 1)"):
            raise ValueError(f"val_fraction={val_fraction} lies outside [0, 1): give a share such as 0.1")
        if not is_whole(seed, "[0, inf)"):
            raise ValueError(f"seed={seed} is no seed: give a whole number, 0 or more")
        self._dataset = dataset if root is None else partial(dataset, root=root)
        self._channels = channels
        self._batch_size = batch_size
        self._val_fraction = val_fraction
        self._num_classes = num_classes
        self._flip = flip
        self._on_device = on_device
        self._seed = seed
        self._data: ImageSet | None = None

    def setup(self, stage: str | None = None) -> None:
        processes = self.trainer.world_size if self.trainer else 1
        if self._data is None:
            self._load()
        if 0 < len(self.val_indices) < processes:
            raise UserError(
                f"data.val_fraction={self._val_fraction} holds out {len(self.val_indices)} images for {processes} processes: "
                "hold out more, or 0"
            )

    def _load(self) -> None:
        images, labels = self._dataset()
        if images.is_floating_point() != ((self._channels, *self._size) == SHAPE):
            kind = "points: they have 2 and [1, 1]" if images.is_floating_point() else "images: they have 1 or 3"
            raise UserError(
                f"data.channels={self._channels}, data.image_size={self._size}, but the set holds {kind}; give these"
            )
        if list(images.shape[-2:]) != self._size:
            images = transforms.resize(images, self._size, antialias=True)
        if images.shape[1] != self._channels:
            images = transforms.rgb_to_grayscale(images) if self._channels == 1 else images.expand(-1, 3, -1, -1)
        if self._num_classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < self._num_classes:
            raise UserError(
                f"data.num_classes={self._num_classes}, but the set's labels go from {int(labels.min())} to "
                f"{int(labels.max())}: give data.num_classes={int(labels.max()) + 1}, or null to train without labels"
            )
        held_out = round(self._val_fraction * len(images))
        if held_out >= len(images):
            raise UserError(f"data.val_fraction={self._val_fraction} leaves no image to train on: give less")
        shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(self._seed, "split")))
        self.val_indices, self.train_indices = shuffled[:held_out].sort().values, shuffled[held_out:].sort().values
        self._data = ImageSet(images, labels)

    def train_dataloader(self) -> TrainLoader:
        return TrainLoader(
            self._subset(self.train_indices),
            self.train_indices,
            batch_size=self._batch_size,
            seed=self._seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            flip=self._flip,
            labelled=self._num_classes is not None,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
        )

    def val_dataloader(self) -> Iterable[Batch]:
        if not len(self.val_indices):
            return []
        return EvalLoader(
            self._subset(self.val_indices),
            self.val_indices,
            batch_size=self._batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            labelled=self._num_classes is not None,
        )

    def split(self, name: str) -> ImageSet:
        """The images of "train", "validation" or "all", as bytes on the CPU and not mirrored, in the set's own order."""
        assert self._data is not None
        if name == "all":
            return self._data
        chosen = {"train": self.train_indices, "validation": self.val_indices}[name]
        return ImageSet(self._data.images[chosen], self._data.labels[chosen])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if batch.x0.is_floating_point():  # points
            return batch
        return batch._replace(x0=from_uint8(batch.x0))  # bytes travel to the device, floats are made there

    def _subset(self, indices: Tensor) -> ImageSet:
        assert self._data is not None
        device = self.trainer.strategy.root_device if self.trainer and self._on_device else torch.device("cpu")
        return ImageSet(self._data.images[indices].to(device), self._data.labels[indices].to(device))
