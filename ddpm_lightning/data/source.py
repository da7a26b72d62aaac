"""What a training step gets, and what gives it: a source, which a set in memory is, and a stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "Endless", "Source"]


class Batch(NamedTuple):
    """What a training step gets.

    x0: (B, C, H, W), of images uint8 from the loader and float32 in [−1, 1] from the data module on; y: (B,) int64 labels
    or None; ids: (B,) int64, each image's number within its set.
    """

    x0: Tensor
    y: Tensor | None
    ids: Tensor


class Endless(ABC):
    """Batches without end, of which an epoch of Lightning's is so many; the state is how many images all ranks together were given.

    Args:
        steps: optimiser steps per epoch; at least one is made of it.
        accumulate: batches per step; Lightning would cut a step short where its epoch, `len`, is no multiple.
        images: of a batch, on all ranks together.
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
        """Go to a state's place; with "skip", so many batches behind it."""
        self.close()
        self._position = state["images"] + state.get("skip", 0) * self._images

    def close(self) -> None:
        """End the workers, if there are any; the next batch starts others."""
        self._row = None


class Source(ABC):
    """A set that is split into "train" and "validation", and serves both."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this set from others: by all its images and labels in memory, by its shards and their sizes in a stream."""

    @abstractmethod
    def check(self, world_size: int) -> None:
        """Refuse, by a UserError, more processes than there is work for."""

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
    ) -> Endless:
        """Training batches of one rank, from an endless row of passes in orders that are computed from the seed."""

    @abstractmethod
    def val_loader(self, batch_size: int, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        """One rank's share of the validation images, each once, in a fixed order and as many batches for every rank."""

    @abstractmethod
    def batches(self, name: str, batch_size: int) -> Iterable[Batch]:
        """One pass over "train", "validation" or "all" in a fixed order: bytes on the CPU, not mirrored, with the labels that there are."""
