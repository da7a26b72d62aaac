"""The data module: splits a dataset and serves it in an order computed from the seed."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule

from ddpm_lightning.data.loaders import EvalLoader, ImageSet, TrainLoader
from ddpm_lightning.data.source import Batch, EndlessLoader, Form, Share, Source, map_condition
from ddpm_lightning.data.values import Values, values_of
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import is_integer, require, shown

__all__ = ["EvalLoader", "ImageDataModule", "TrainLoader", "listed"]


class Dataset(Protocol):
    """A dataset in memory or a stream, which can be turned into a source of a given form."""

    def prepared(self, form: Form) -> Source: ...


class ImageDataModule(LightningDataModule):
    """A dataset, its training and validation split, and its loaders.

    Args:
        dataset: called once per process, returns a dataset in memory or a stream; one process downloads files if needed.
        channels: 1 or 3 for 8-bit images, which are converted to grayscale or color; otherwise the data's own number.
            Points have 2, and the size [1, 1].
        image_size: side or (height, width), to which 8-bit images are resized; (length,) for signals and
            (frames, height, width) for videos.
        batch_size: images per step and process; "auto" is 1 until train.py has found the best size.
        val_fraction: the fraction held out for validation, selected by the seed; streams hold out shards instead.
        num_classes: the number of labels for the model, or None to train without labels.
        flip: mirror half of the training images.
        on_device: keep a dataset in memory on the training device, as stored, so that small networks never wait for data.
        seed: determines the split, the order and the flips.
        root: the dataset's folder or shards, passed to `dataset`; None for datasets without files.
        dtype: the type of the stored values and of saved samples, "uint8", "uint16" or "float32"; None is uint8, or float32
            for points.
        value_range: [low, high], the values mapped to −1 and 1; None is the full range of an integer dtype, or [−1, 1].
        class_names: names of the labels 0, 1, … that the run was trained with; None takes the dataset's.

    Raises:
        UserError: for a setting out of range, and from `setup` for a dataset with other class names.
    """

    def __init__(
        self,
        dataset: Callable[..., Dataset],
        *,
        channels: int,
        image_size: int | Sequence[int],
        batch_size: int | Literal["auto"],
        val_fraction: float = 0.1,
        num_classes: int | None = None,
        flip: bool = False,
        on_device: bool = True,
        seed: int = 0,
        root: str | Sequence[str] | None = None,
        dtype: str | None = None,
        value_range: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        super().__init__()
        size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        described = {"channels": channels, "image_size": size, "dtype": dtype, "value_range": value_range}
        if batch_size != "auto" and not is_integer(batch_size, "1..65536"):
            raise UserError(f"batch_size must be an integer from 1 to 65536 or auto, got {shown(batch_size)}")
        require("val_fraction", val_fraction, "[0, 1)")
        require("seed", seed, "0..")
        self._dataset = dataset if root is None else partial(dataset, root=root)
        self._form = Form(channels, size, num_classes, val_fraction, flip, seed, values_of(described))
        self.batch_size: int = 1 if batch_size == "auto" else batch_size
        self._on_device = on_device
        self._class_names = class_names
        self._source: Source | None = None
        self._train: EndlessLoader | None = None

    @property
    def seed(self) -> int:
        """Determines the split, the order and the flips."""
        return self._form.seed

    @property
    def values(self) -> Values:
        """Type and range of the stored values."""
        return self._form.values

    @property
    def source(self) -> Source:
        """The dataset or stream, after `setup`."""
        assert self._source is not None
        return self._source

    def setup(self, stage: str | None = None) -> None:
        if self._source is None:
            self._source = self._dataset().prepared(self._form)
            named = list(self._source.classes or ())
            if self._class_names is not None and named and named != [*self._class_names]:
                raise UserError(
                    f"data: the labels are {listed(named)}, but the run was trained on {listed(self._class_names)}: use the same dataset"
                )
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
        """Iterate once over "train" or "validation" in a fixed order, as stored, on the CPU, not mirrored."""
        return self.source.loader(name, Share(batch_size))

    def split(self, name: str, *, about: int | None = None) -> ImageSet:
        """The images of "train", "validation" or "all" in memory, or about the first so many, with zeros for missing labels."""
        batches = [*islice(self.batches(name, 1024), None if about is None else -(-about // 1024))]
        if not batches:
            none = torch.empty(0, self._form.channels, *self._form.image_size, dtype=self.values.memory)
            return ImageSet(none, torch.empty(0, dtype=torch.long))
        first, *others = [torch.zeros_like(batch.ids) if batch.y is None else batch.y for batch in batches]
        labels = map_condition(lambda *parts: torch.cat(parts), first, *others)
        return ImageSet(torch.cat([batch.x0 for batch in batches]), labels)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch._replace(
            x0=self.values.normalize(batch.x0)
        )  # bytes are moved to the device and converted to floats there

    def _share(self) -> Share:
        if not self.trainer:
            return Share(self.batch_size)
        trainer = self.trainer
        return Share(self.batch_size, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer and self._on_device else torch.device("cpu")


def listed(names: Sequence[str]) -> str:
    """Up to 20 labels with their names."""
    several = ", ".join(f"{number} = {name}" for number, name in enumerate(names[:20]))
    return several + (f" and {len(names) - 20} more" if len(names) > 20 else "")
