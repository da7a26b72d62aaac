"""What the workers of a stream do: each reads its own lane of the shards, and makes batches of it."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from io import BytesIO
from itertools import count, islice, repeat
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ddpm_lightning.data.datasets import read_picture
from ddpm_lightning.data.shards import Record, Shard, read_records, stretch, total
from ddpm_lightning.data.source import Batch
from ddpm_lightning.errors import UserError
from ddpm_lightning.seeds import derive

__all__ = ["Lanes", "Once", "Read", "Reader", "Row"]


class Read(NamedTuple):
    """What a worker hands over: a batch, what was damaged on the way to it, and the sentence that it ends with, if it does."""

    batch: Batch | None
    damaged: tuple[str, ...]
    error: str | None = None


class Reader(NamedTuple):
    """Records to batches: which of a sample's files are image and label, and the form of the images; see `Stream`."""

    image_keys: tuple[str, ...]
    label_key: str | None
    num_classes: int | None
    channels: int
    size: tuple[int, int]
    max_damaged: float
    images: int  # of a pass of one rank

    def reads(self, records: Iterable[tuple[Record, bool]], sizes: Iterable[int]) -> Iterator[Read]:
        """Batches of these sizes, of records that come with whether they are to be mirrored."""
        damaged: list[str] = []
        whole = self._whole(records, damaged)
        try:
            for size in sizes:
                images, labels, ids = zip(*islice(whole, size), strict=True)
                x0 = torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
                y = None if self.num_classes is None else torch.tensor(labels)
                yield Read(Batch(x0, y, torch.tensor(ids)), tuple(damaged))
                damaged.clear()
        except UserError as error:  # as a value: a worker's exception arrives with its traceback for a message
            yield Read(None, tuple(damaged), str(error))

    def label(self, record: Record) -> int:
        """The label of a sample, 0 in training without.

        Raises:
            UserError: where it has none that will do.
        """
        if self.num_classes is None:
            return 0
        if (held := record.files.get(str(self.label_key))) is None:
            others = ", ".join(key for key in record.files if not key.startswith("__"))
            raise UserError(
                f"data.dataset.label_key={self.label_key}: {record.name} has no such file, but {others}; give another ending, "
                "or data.num_classes=null to train without labels"
            )
        try:
            label = int(held)
        except ValueError as error:
            raise UserError(
                f"data.dataset.label_key={self.label_key}: in {record.name} it is no whole number; give another ending, or "
                "data.num_classes=null to train without labels"
            ) from error
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"data.num_classes={self.num_classes}, but {record.name} has the label {label}: give more, or null to train "
                "without labels"
            )
        return label

    def refuse(self, damaged: int, name: str, *, seen: int = 0) -> None:
        """Stop where more images are damaged than may be.

        Raises:
            UserError: that names one.
        """
        if damaged > self.max_damaged * max(self.images, seen):
            raise UserError(
                f"{damaged} of {max(self.images, seen)} images are damaged, among them {name}: mend or remove them, or allow "
                f"more by data.dataset.max_damaged (now {self.max_damaged})"
            )

    def _whole(
        self, records: Iterable[tuple[Record, bool]], damaged: list[str]
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Images, labels and numbers; the place of a damaged one is taken by the next that is whole, or at the end the last."""
        missing, last = 0, None
        for record, mirrored in records:
            try:
                image = self._image(record)
            except ValueError as error:
                damaged.append(f"{record.name} {error}" if str(error) else "")
                missing += 1
                self.refuse(missing, record.name)  # a lane of nothing else would never hand over a batch
                continue
            last = (image[:, ::-1] if mirrored else image, self.label(record), record.id)
            yield from repeat(last, missing + 1)
            missing = 0
        if last is None:
            raise UserError(f"none of the {missing} images that a worker reads is whole: mend or remove the shards")
        yield from repeat(last, missing)

    def _image(self, record: Record) -> np.ndarray:
        if record.damage is not None:
            raise ValueError(record.damage)
        for key in self.image_keys:
            if key in record.files:
                try:
                    return read_picture(BytesIO(record.files[key]), self.channels, self.size)
                except ValueError as error:
                    raise ValueError(f"({error})") from error
        raise ValueError(f"(no {' or '.join(self.image_keys)})")


class Row(NamedTuple):
    """The endless row of passes that a lane reads from; see `Stream`."""

    shards: Sequence[Shard]
    buffer: int
    seed: int
    flip: bool
    first: int = 0  # the pass that it begins with

    def records(self, lane: int, lanes: int, *, skip: int) -> Iterator[tuple[Record, bool]]:
        """A lane's samples in order, behind the first `skip` ones, and whether each is to be mirrored."""
        images = total(self.shards)
        for epoch in count(self.first):
            part = (lane + epoch) % lanes  # in turn, so that no lane has the longer part of each pass
            start, stop = part * images // lanes, (part + 1) * images // lanes
            if skip >= stop - start:
                skip -= stop - start
                continue
            first, skip_here = divmod(skip, self.buffer)
            skip = 0
            key = derive(self.seed, "flip", epoch)
            order = self._permutation(len(self.shards), "shards", epoch)
            pieces = stretch((self.shards[i] for i in order), start + first * self.buffer, stop)
            records = read_records(pieces)
            held = list(islice(records, self.buffer))
            for block in count(first):
                ahead: list[Record] = []
                for k, i in enumerate(self._permutation(len(held), "buffer", epoch, part, block)):
                    if k >= skip_here:
                        yield held[i], self.flip and _coin(key, held[i].id)
                    ahead += islice(records, 1)  # steadily, not a block at once
                held, skip_here = ahead, 0
                if not held:
                    break

    def _permutation(self, n: int, *key: int | str) -> list[int]:
        order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(derive(self.seed, *key))).tolist()
        return order


class Lanes(IterableDataset[Read]):
    """What the workers of one rank read for training, from its batch `number` on."""

    def __init__(self, reader: Reader, row: Row, *, batch_size: int, rank: int, world_size: int, number: int):
        self.reader = reader
        self._row = row
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._number = number

    def __iter__(self) -> Iterator[Read]:
        worker, workers = _worker()
        number = self._number + worker  # of this worker's first batch; its lane has given number // workers before
        lane, lanes = self._rank * workers + number % workers, self._world_size * workers
        records = self._row.records(lane, lanes, skip=number // workers * self._batch_size)
        return self.reader.reads(records, repeat(self._batch_size))


class Once(IterableDataset[Read]):
    """What the workers of one rank read for validation: each sample once, as many batches for every lane."""

    def __init__(self, reader: Reader, shards: Sequence[Shard], *, batch_size: int, rank: int, world_size: int):
        self.reader = reader
        self._shards = shards
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def batches(self, workers: int) -> int:
        """Batches of each lane; where they do not come out even, some hold one image more."""
        return -(-(total(self._shards) // (self._world_size * workers)) // self._batch_size)

    def __iter__(self) -> Iterator[Read]:
        worker, workers = _worker()
        images, lane, lanes = total(self._shards), self._rank * workers + worker, self._world_size * workers
        start, stop = lane * images // lanes, (lane + 1) * images // lanes
        cuts = [k * (stop - start) // self.batches(workers) for k in range(self.batches(workers) + 1)]
        records = ((record, False) for record in read_records(stretch(self._shards, start, stop)))
        return self.reader.reads(records, np.diff(cuts).tolist())


def _coin(key: int, number: int) -> bool:
    """A hash's bit: `derive` takes as long as a small picture does."""
    return blake2b(number.to_bytes(8, "little"), key=key.to_bytes(8, "little"), digest_size=1).digest()[0] % 2 == 1


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
