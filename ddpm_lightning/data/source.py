"""The batches of a training step, and the source that serves them: a dataset in memory, or a stream."""

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
    "in_turn",
    "is_labels",
    "map_condition",
    "tensors_of",
]

Condition = Tensor | Mapping[str, Tensor]  # labels (B,), or any tensors with the batch first


def map_condition(function: Callable[..., Any], y: Condition, *others: Condition) -> Any:
    """The function of a condition's tensor, or of each by its name, and of the same of other conditions."""
    if isinstance(y, Mapping):
        return {name: function(value, *(other[name] for other in others)) for name, value in y.items()}  # type: ignore[index]
    return function(y, *others)


def is_labels(y: Condition | None) -> bool:
    """Whether a condition is integer labels (N,)."""
    return isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()


def in_turn(condition: Condition | None, indices: Iterable[int], device: torch.device | str = "cpu") -> Any:
    """Image i's condition, row `i % N` of N, for each of these i, on a device; None where there is none."""
    if condition is None:
        return None
    chosen = torch.tensor([*indices])
    return map_condition(lambda rows: rows[chosen % len(rows)].to(device), condition)


def tensors_of(condition: Condition) -> list[Tensor]:
    """The tensors of a condition."""
    return [*condition.values()] if isinstance(condition, Mapping) else [condition]


class Batch(NamedTuple):
    """What a training step gets; also a whole part of a dataset in memory.

    x0: (B, C, H, W) of images and (B, C, ...) of other data, as stored from the loader, such as uint8, and float32 in [−1, 1]
    from the data module on; y: (B,) int64 labels, another condition or None; ids: (B,) int64, each image's number within its dataset.
    """

    x0: Tensor
    y: Condition | None
    ids: Tensor

    @classmethod
    def of(cls, given: Any, first: int = 0) -> "Batch":
        """A batch as any loader gives it: this one's own, images (B, C, H, W) in [−1, 1] alone, or with their labels.

        Args:
            given: what the loader gave.
            first: the number of the first image, where the loader gave none.
        """
        if isinstance(given, cls):
            return given
        x0, y = (given, None) if isinstance(given, Tensor) else (*given, None)[:2]
        return cls(x0, y, torch.arange(first, first + len(x0)))


class Form(NamedTuple):
    """What is made of a dataset, as the arguments of `ImageDataModule` say; image_size is (height, width), (length,) or (frames, height, width)."""

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
        """The images of a batch, on all ranks together."""
        return self.batch_size * self.world_size


class EndlessLoader(ABC):
    """Batches without end, cut into epochs of Lightning's; the state is how many images all ranks together were given.

    An epoch has at least one optimizer step, and whole ones: Lightning would cut a step short where `len` is no multiple.

    Args:
        num_images: in a pass over the data, which makes an epoch.
        share: this process's.
    """

    def __init__(self, num_images: int, share: Share):
        self._len = max(1, num_images // (share.images * share.accumulate)) * share.accumulate
        self._share = share
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
            self._position += self._share.images
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; with "skip", from so many batches after it."""
        self.close()
        self._position = state["images"] + state.get("skip", 0) * self._share.images

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
            hint = "each needs a validation image: set data.val_fraction (for streams data.dataset.val_shards) to more, or to 0"
            require("the number of processes", world_size, f"1..{images}", hint=hint)

    def conditions(self, count: int) -> Condition | None:
        """Those of the first held-out images, or training images where none is held out; None where they are labels, or none."""
        return None

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the labels 0, 1, …; empty where they have none, and None for a dataset without labels."""
        return ()

    @property
    def extent(self) -> list[float]:
        """The least and the largest stored value."""
        return []

    def outside(self, clip: float) -> float:
        """The fraction of the values beyond ±clip, which a sampler that clips there would not reach."""
        return 0.0

    @abstractmethod
    def train_loader(self, share: Share, device: torch.device) -> EndlessLoader:
        """Training batches of one rank, from an endless row of passes in orders that are computed from the seed."""

    @abstractmethod
    def loader(
        self, name: str, share: Share, *, device: torch.device | str = "cpu", labeled: bool = True
    ) -> Iterable[Batch]:
        """One rank's part of "train", "validation" or "all": each image once, in a fixed order, as stored, not mirrored.

        Args:
            name: the part.
            share: all ranks get as many batches.
            device: where a dataset in memory is kept.
            labeled: whether to give the labels that there are; another condition is always given.
        """
