"""The one data module: a set or a stream of images, split and served in an order that is computed from the seed."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import torch
from lightning.pytorch import LightningDataModule

from ddpm_lightning.data.loaders import EvalLoader, ImageSet, TrainLoader
from ddpm_lightning.data.points import SHAPE
from ddpm_lightning.data.source import Batch, Endless, Source
from ddpm_lightning.images import from_uint8
from ddpm_lightning.ranges import check_seed, is_integer, within

__all__ = ["EvalLoader", "ImageDataModule", "TrainLoader"]


class Dataset(Protocol):
    """What the factory gives: a set or a stream, which becomes a source in the wanted form."""

    def prepared(
        self, channels: int, image_size: Sequence[int], *, num_classes: int | None, val_fraction: float, seed: int
    ) -> Source: ...


class ImageDataModule(LightningDataModule):
    """A set of images, its split into training and validation, and its loaders.

    Args:
        dataset: called once per process, gives the set, or the stream; what has to be downloaded it lets one process download.
        channels: 1 or 3; grey images are repeated and colour ones turned grey to fit. Points have 2, and the size [1, 1].
        image_size: side, or (height, width), to which the images are resized where they differ.
        batch_size: images per step and process.
        val_fraction: the share that is held out for validation, drawn from the seed; a stream has shards for it instead.
        num_classes: the number of labels that the model is given, or None for training without labels.
        flip: mirror half of the training images.
        on_device: keep the images of a set on the device that trains, as bytes, so that a small network never waits for them.
        seed: what the split, the order and the flips are computed from.
        root: the folder of the set's files, or the shards, which `dataset` is called with; None for sets without.

    Raises:
        ValueError: for a share or size that leaves no image to train on.
    """

    def __init__(
        self,
        dataset: Callable[..., Dataset],
        *,
        channels: int,
        image_size: int | Sequence[int],
        batch_size: int,
        val_fraction: float = 0.1,
        num_classes: int | None = None,
        flip: bool = False,
        on_device: bool = True,
        seed: int = 0,
        root: str | Sequence[str] | None = None,
    ):
        super().__init__()
        if not is_integer(batch_size, "[1, 65536]"):
            raise ValueError(f"batch_size={batch_size} is no number of images: give a whole number from 1 to 65536")
        self._size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        if channels not in (1, 3) and (channels, *self._size) != SHAPE:
            raise ValueError(f"channels={channels} will not do: give 1 for grey images or 3 for colour")
        if not within(val_fraction, "[0, 1)"):
            raise ValueError(f"val_fraction={val_fraction} lies outside [0, 1): give a share such as 0.1")
        check_seed(seed)
        self._dataset = dataset if root is None else partial(dataset, root=root)
        self._channels = channels
        self._batch_size = batch_size
        self._val_fraction = val_fraction
        self._num_classes = num_classes
        self._flip = flip
        self._on_device = on_device
        self._seed = seed
        self._source: Source | None = None
        self._train: Endless | None = None

    @property
    def seed(self) -> int:
        """What the split, the order and the flips are computed from."""
        return self._seed

    @property
    def source(self) -> Source:
        """The set, or the stream, once `setup` was called."""
        assert self._source is not None
        return self._source

    def setup(self, stage: str | None = None) -> None:
        if self._source is None:
            self._source = self._dataset().prepared(
                self._channels,
                self._size,
                num_classes=self._num_classes,
                val_fraction=self._val_fraction,
                seed=self._seed,
            )
        self._source.check(self._ranks()[1])

    def train_dataloader(self) -> Endless:
        rank, world_size = self._ranks()
        self._train = self.source.train_loader(
            self._batch_size,
            self._seed,
            rank=rank,
            world_size=world_size,
            flip=self._flip,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
            device=self._device(),
        )
        return self._train

    def val_dataloader(self) -> Iterable[Batch]:
        rank, world_size = self._ranks()
        return self.source.val_loader(self._batch_size, rank=rank, world_size=world_size, device=self._device())

    def teardown(self, stage: str) -> None:
        if self._train is not None:
            self._train.close()

    def batches(self, name: str, batch_size: int) -> Iterable[Batch]:
        """One pass over the images of "train" or "validation" in a fixed order, as bytes on the CPU and not mirrored."""
        return self.source.batches(name, batch_size)

    def split(self, name: str) -> ImageSet:
        """The same at once, of "all" too, with labels of zero where there are none; a stream's part has to fit in memory then."""
        parts = list(self.batches(name, 1024))
        if not parts:
            return ImageSet(torch.empty(0, self._channels, *self._size, dtype=torch.uint8), torch.empty(0).long())
        labels = [part.ids.new_zeros(len(part.ids)) if part.y is None else part.y for part in parts]
        return ImageSet(torch.cat([part.x0 for part in parts]), torch.cat(labels))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if batch.x0.is_floating_point():  # points
            return batch
        return batch._replace(x0=from_uint8(batch.x0))  # bytes travel to the device, floats are made there

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer and self._on_device else torch.device("cpu")
