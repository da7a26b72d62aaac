"""Batches, and the sources that serve them: datasets in memory and streams."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.data.values import Values
from ddpm_lightning.ranges import require

__all__ = [
    "Batch",
    "Condition",
    "EndlessLoader",
    "Form",
    "Share",
    "Source",
    "beside",
    "in_turn",
    "is_labels",
    "map_condition",
    "tensors_of",
]

Condition = Tensor | Mapping[str, Tensor]  # labels (B,), or tensors with a leading batch axis


def map_condition(function: Callable[..., Any], y: Condition, *others: Condition) -> Any:
    """Apply a function to each tensor of a condition, together with the same tensors of other conditions."""
    if isinstance(y, Mapping):
        return {name: function(value, *(other[name] for other in others)) for name, value in y.items()}  # type: ignore[index]
    return function(y, *others)


def beside(values: Tensor, x: Tensor) -> Tensor:
    """One value per sample, shaped to broadcast with x: (B, 1, 1, 1) for images, (B, 1, 1) for signals, and so on."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def is_labels(y: Condition | None) -> bool:
    """Whether a condition is integer labels (N,)."""
    return isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()


def in_turn(condition: Condition | None, indices: Iterable[int], device: torch.device | str = "cpu") -> Any:
    """The conditions of images i, row `i % N` of N each, on a device; None without a condition."""
    if condition is None:
        return None
    chosen = torch.tensor([*indices])
    return map_condition(lambda rows: rows[chosen % len(rows)].to(device), condition)


def tensors_of(condition: Condition) -> list[Tensor]:
    """The tensors of a condition."""
    return [*condition.values()] if isinstance(condition, Mapping) else [condition]


class Batch(NamedTuple):
    """A training batch, or a whole split of a dataset in memory.

    x0: images (B, C, H, W) or other data (B, C, ...), in the stored dtype from the loader and float32 in [−1, 1] from the
    data module; y: int64 labels (B,), another condition or None; ids: int64 (B,), the images' indices in the dataset.
    """

    x0: Tensor
    y: Condition | None
    ids: Tensor

    @classmethod
    def of(cls, given: Any, first: int = 0) -> "Batch":
        """Convert a batch of any loader: a `Batch`, images (B, C, H, W) in [−1, 1], or a pair of images and labels.

        Args:
            given: the loader's batch.
            first: the index of the first image, if the loader gives no ids.
        """
        if isinstance(given, cls):
            return given
        x0, y = (given, None) if isinstance(given, Tensor) else (*given, None)[:2]
        return cls(x0, y, torch.arange(first, first + len(x0)))


class Form(NamedTuple):
    """The form of a dataset, see `ImageDataModule`; image_size is (height, width), (length,) or (frames, height, width)."""

    channels: int
    image_size: Sequence[int]
    num_classes: int | None = None
    val_fraction: float = 0.0
    flip: bool = False
    seed: int = 0
    values: Values = Values()


class Share(NamedTuple):
    """One process's share of each batch.

    batch_size: images per batch and rank; rank: this process; world_size: the number of processes; accumulate: batches per
    optimizer step.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    @property
    def images(self) -> int:
        """The images of a batch on all ranks."""
        return self.batch_size * self.world_size


class EndlessLoader(ABC):
    """Endless batches, cut into Lightning epochs; the state is the number of images served to all ranks.

    An epoch is a whole number of optimizer steps, at least one: otherwise Lightning would cut its last step short.

    Args:
        num_images: images in a pass over the data, which is one epoch.
        share: this process's share of each batch.
    """

    def __init__(self, num_images: int, share: Share):
        self._len = max(1, num_images // (share.images * share.accumulate)) * share.accumulate
        self._share = share
        self._position = 0
        self._row: Iterator[Batch] | None = None

    @abstractmethod
    def _batches_from(self, position: int) -> Iterator[Batch]:
        """The batches after the first `position` images."""

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Batch]:
        if self._row is None:
            self._row = self._batches_from(
                self._position
            )  # kept across epochs, together with the workers' prefetched batches
        for batch in islice(self._row, self._len):
            self._position += self._share.images
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state; "skip" is a number of batches to skip after it."""
        self.close()
        self._position = state["images"] + state.get("skip", 0) * self._share.images

    def close(self) -> None:
        """Stop the workers, if any; the next batch starts new ones."""
        self._row = None


class Source(ABC):
    """Serves the "train" and "validation" splits of a dataset."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the dataset: by its images and labels in memory, or by a stream's shards and their sizes."""

    @abstractmethod
    def num_images(self, name: str) -> int:
        """The number of images of "train", "validation" or "all"."""

    def check(self, world_size: int) -> None:
        """Refuse more processes than validation images.

        Raises:
            UserError: for more processes than validation images, if any image is held out.
        """
        if images := self.num_images("validation"):
            hint = "each needs a validation image: set data.val_fraction (for streams data.dataset.val_shards) to more, or to 0"
            require("the number of processes", world_size, f"1..{images}", hint=hint)

    def conditions(self, count: int) -> Condition | None:
        """Conditions of the first held-out (else training) images; None for labels or no condition."""
        return None

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the labels 0, 1, …; empty if unnamed, None for a dataset without labels."""
        return ()

    @property
    def extent(self) -> list[float]:
        """The minimum and maximum stored value."""
        return []

    def outside(self, clip: float) -> float:
        """The fraction of values beyond ±clip, which a clipping sampler cannot reach."""
        return 0.0

    @abstractmethod
    def train_loader(self, share: Share, device: torch.device) -> EndlessLoader:
        """Endless training batches of one rank, in an order computed from the seed."""

    @abstractmethod
    def loader(
        self, name: str, share: Share, *, device: torch.device | str = "cpu", labeled: bool = True
    ) -> Iterable[Batch]:
        """One rank's share of "train", "validation" or "all": each image once, in a fixed order, as stored, not mirrored.

        Args:
            name: the split.
            share: this process's share; all ranks get the same number of batches.
            device: the device of a dataset in memory.
            labeled: whether batches include labels, if any; other conditions are always included.
        """
