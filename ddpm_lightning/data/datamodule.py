"""The one data module: images, split and served in an order that is computed from the seed."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import torch
from lightning.pytorch import LightningDataModule

from ddpm_lightning.data.loaders import EvalLoader, ImageSet, TrainLoader
from ddpm_lightning.data.points import SHAPE
from ddpm_lightning.data.source import Batch, EndlessLoader, Form, Share, Source
from ddpm_lightning.images import from_uint8
from ddpm_lightning.ranges import require, require_one_of

__all__ = ["EvalLoader", "ImageDataModule", "TrainLoader"]


class Dataset(Protocol):
    """A dataset in memory or a stream, which becomes a source of the requested form."""

    def prepared(self, form: Form) -> Source: ...


class ImageDataModule(LightningDataModule):
    """A dataset of images, its split into training and validation, and its loaders.

    Args:
        dataset: called once per process, gives the dataset in memory or the stream; what has to be downloaded is downloaded
            by one process.
        channels: 1 or 3; grayscale images are repeated and color ones turned gray to fit. Points have 2, and the size [1, 1].
        image_size: side, or (height, width), to which the images are resized where they differ.
        batch_size: images per step and process.
        val_fraction: the fraction held out for validation, chosen by the seed; a stream has shards for it instead.
        num_classes: the number of labels that the model is given, or None for training without labels.
        flip: mirror half of the training images.
        on_device: keep the images of a dataset in memory on the training device, as bytes, so that a small network never
            waits for them.
        seed: what the split, the order and the flips are computed from.
        root: the folder of the dataset's files, or the shards, which `dataset` is called with; None for datasets without.

    Raises:
        UserError: for a setting outside its range.
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
        size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        if (channels, *size) != SHAPE:
            require_one_of("channels", channels, (1, 3))
        require("batch_size", batch_size, "1..65536")
        require("val_fraction", val_fraction, "[0, 1)")
        require("seed", seed, "0..")
        self._dataset = dataset if root is None else partial(dataset, root=root)
        self._form = Form(channels, size, num_classes, val_fraction, flip, seed)
        self._batch_size = batch_size
        self._on_device = on_device
        self._source: Source | None = None
        self._train: EndlessLoader | None = None

    @property
    def seed(self) -> int:
        """What the split, the order and the flips are computed from."""
        return self._form.seed

    @property
    def source(self) -> Source:
        """The dataset, or the stream, once `setup` was called."""
        assert self._source is not None
        return self._source

    def setup(self, stage: str | None = None) -> None:
        if self._source is None:
            self._source = self._dataset().prepared(self._form)
        self._source.check(self._share().world_size)

    def train_dataloader(self) -> EndlessLoader:
        self._train = self.source.train_loader(self._share(), self._device())
        return self._train

    def val_dataloader(self) -> Iterable[Batch]:
        labeled = self._form.num_classes is not None
        return self.source.loader("validation", self._share(), device=self._device(), labeled=labeled)

    def teardown(self, stage: str) -> None:
        if self._train is not None:
            self._train.close()

    def batches(self, name: str, batch_size: int) -> Iterable[Batch]:
        """One pass over the images of "train" or "validation" in a fixed order, as bytes on the CPU, not mirrored."""
        return self.source.loader(name, Share(batch_size))

    def split(self, name: str) -> ImageSet:
        """The same images at once, or "all", with labels of zero where there are none; they must fit in memory."""
        images = [torch.empty(0, self._form.channels, *self._form.image_size, dtype=torch.uint8)]
        labels = [torch.empty(0, dtype=torch.long)]
        for batch in self.batches(name, 1024):
            images.append(batch.x0)
            labels.append(torch.zeros_like(batch.ids) if batch.y is None else batch.y)
        return ImageSet(torch.cat(images), torch.cat(labels))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if batch.x0.is_floating_point():  # points
            return batch
        return batch._replace(x0=from_uint8(batch.x0))  # bytes travel to the device, floats are made there

    def _share(self) -> Share:
        if not self.trainer:
            return Share(self._batch_size)
        trainer = self.trainer
        return Share(self._batch_size, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer and self._on_device else torch.device("cpu")
