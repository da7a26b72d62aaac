"""The batches of a training step, and the source that serves them: a dataset in memory, or a stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.ranges import require

__all__ = ["Batch", "EndlessLoader", "Source"]


class Batch(NamedTuple):
    """What a training step gets.

    x0: (B, C, H, W), of images uint8 from the loader and float32 in [−1, 1] from the data module on; y: (B,) int64 labels
    or None; ids: (B,) int64, each image's number within its dataset.
    """

    x0: Tensor
    y: Tensor | None
    ids: Tensor


class EndlessLoader(ABC):
    """Batches without end, cut into epochs of Lightning's; the state is how many images all ranks together were given.

    Args:
        steps: optimizer steps per epoch, at least one.
        accumulate: batches per step; Lightning would cut a step short where its epoch, `len`, is no multiple.
        images: the images of a batch, on all ranks together.
    """

    def __init__(self, steps: int, accumulate: int, images: int):
        self._len = max(1, steps) * accumulate
        self._images = images
        self._position = 0
        self._row: Iterator[Batch] | None = None

    @abstractmethod
    def _batches_from(self, position: int) -> Iterator[Batch]:
        """The batches behind the first `position` images."""

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Batch]:
        if self._row is None:
            self._row = self._batches_from(self._position)  # kept from epoch to epoch, with what workers read ahead
        for batch in islice(self._row, self._len):
            self._position += self._images
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; with "skip", from so many batches after it."""
        self.close()
        self._position = state["images"] + state.get("skip", 0) * self._images

    def close(self) -> None:
        """End the workers, if there are any; the next batch starts new ones."""
        self._row = None


class Source(ABC):
    """A dataset that is split into "train" and "validation", and serves both."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the dataset: by all its images and labels in memory, by its shards and their sizes in a stream."""

    @abstractmethod
    def num_images(self, name: str) -> int:
        """The number of images of "train", "validation" or "all"."""

    def check(self, world_size: int) -> None:
        """Refuse more processes than there is work for.

        Raises:
            UserError: for more processes than validation images, where there are any.
        """
        if images := self.num_images("validation"):
            hint = "each needs a validation image: hold out more, or 0, by data.val_fraction (data.dataset.val_shards of a stream)"
            require("the number of processes", world_size, f"1..{images}", hint=hint)

    @abstractmethod
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
    ) -> EndlessLoader:
        """Training batches of one rank, from an endless row of passes in orders that are computed from the seed."""

    @abstractmethod
    def val_loader(self, batch_size: int, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        """One rank's part of the validation images, each once, in a fixed order and as many batches for every rank."""

    @abstractmethod
    def batches(self, name: str, batch_size: int) -> Iterable[Batch]:
        """One pass over "train", "validation" or "all" in a fixed order: bytes on the CPU, not mirrored, with the labels that there are."""
