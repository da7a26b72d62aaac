"""The workers of a stream, which read shards and decode batches."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import count, islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ddpm_lightning.data.fitting import Fit
from ddpm_lightning.data.image_files import check_damaged, read_image
from ddpm_lightning.data.shards import Sample, Shard, num_samples, read_samples, slice_shards
from ddpm_lightning.data.source import Batch, Share
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require
from ddpm_lightning.seeds import derive

__all__ = ["Decoder", "EvalBatches", "Passes", "TrainBatches", "WorkerBatch"]


class DamagedError(Exception):
    """A damaged image, with the reason; empty if an earlier image reported it."""


class WorkerBatch(NamedTuple):
    """A worker's batch and the damaged samples before it, or the message of the error that stopped the worker."""

    batch: Batch | None
    damaged: tuple[str, ...]
    error: str | None = None


Decoded = tuple[np.ndarray, int, int]  # an image (H, W, C), its label and its index in the dataset


class Decoder(NamedTuple):
    """Decodes samples into batches, see `Stream`."""

    image_keys: tuple[str, ...]
    label_key: str | None
    num_classes: int | None
    channels: int
    fit: Fit
    max_damaged: float
    images: int  # images per pass and rank

    def batches(self, rows: Iterable[Iterable[Decoded]], damaged: list[str]) -> Iterator[WorkerBatch]:
        """A batch for each row of images; decoding adds the names of damaged ones to `damaged`."""
        try:
            for row in rows:
                images, labels, ids = zip(*row, strict=True)
                x0 = torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
                y = None if self.num_classes is None else torch.tensor(labels)
                yield WorkerBatch(Batch(x0, y, torch.tensor(ids)), tuple(damaged))
                damaged.clear()
        except UserError as error:  # as a value: a worker's exception arrives with its traceback for a message
            yield WorkerBatch(None, tuple(damaged), str(error))

    def label(self, sample: Sample) -> int:
        """The label of a sample; 0 when training without labels.

        Raises:
            UserError: for a label that is missing or outside 0..num_classes − 1.
        """
        if self.num_classes is None:
            return 0
        label: Any = sample.files.get(str(self.label_key))
        try:
            label = int(label)
        except (TypeError, ValueError):
            label = label and label[:20]
        endings = ", ".join(key for key in sample.files if not key.startswith("__"))
        require(
            f"data.dataset.label_key={self.label_key or 'null'}: the label of {sample.name}",
            label,
            f"0..{self.num_classes - 1}",
            hint=f"the sample has the files {endings}; data.num_classes=null, now {self.num_classes}, trains without labels",
        )
        return label

    def check_damaged(self, damaged: int, example: str, *, seen: int = 0) -> None:
        """Refuse too many damaged images in a pass or among those `seen`; see `image_files.check_damaged`."""
        check_damaged(damaged, max(self.images, seen), self.max_damaged, example=example)

    def decoded(self, sample: Sample, mirrored: bool) -> Decoded:
        """A sample's image, label and index.

        Raises:
            DamagedError: for an unreadable or missing image.
            UserError: for an invalid label.
        """
        key = next((key for key in self.image_keys if key in sample.files), None)
        if sample.damage is not None or key is None:
            raise DamagedError(f"no {' or '.join(self.image_keys)}" if sample.damage is None else sample.damage)
        try:
            image = read_image(BytesIO(sample.files[key]), self.channels, self.fit)
        except ValueError as error:
            raise DamagedError(str(error)) from error
        return image[:, ::-1] if mirrored else image, self.label(sample), sample.id


class Row:
    """Images in order, decoded on demand; a damaged one is replaced by the next undamaged one, or by the last at the end.

    Args:
        decoder: decodes the samples.
        samples: pairs of a sample and whether to mirror it.
        first: the index of the first sample.
    """

    def __init__(self, decoder: Decoder, samples: Iterator[tuple[Sample, bool]], first: int = 0):
        self._decoder = decoder
        self._samples = samples
        self._next = first
        self._ahead: list[tuple[Sample, bool]] = []  # samples read while searching for a replacement
        self._last: Decoded | None = None

    def image(self, index: int, damaged: list[str]) -> Decoded:
        """The image at an index, which must not decrease between calls; adds the names of damaged images to `damaged`."""
        while self._next < index:
            self._pop()
            self._next += 1
        self._next += 1
        sample, mirrored = self._pop()
        try:
            self._last = self._decoder.decoded(sample, mirrored)
        except DamagedError as error:
            name = f"{sample.name} ({error})" if str(error) else ""
            damaged.append(name)
            self._last = self._after(name or sample.name)
        return self._last

    def _pop(self) -> tuple[Sample, bool]:
        return self._ahead.pop(0) if self._ahead else next(self._samples)

    def _after(self, name: str) -> Decoded:
        """The next undamaged image."""
        for missing in count(1):
            self._decoder.check_damaged(missing, name)  # a row of damaged images only would never yield a batch
            if missing > len(self._ahead):
                self._ahead += islice(self._samples, 1)
            if missing > len(self._ahead):
                break
            with suppress(DamagedError):
                return self._decoder.decoded(*self._ahead[missing - 1])
        if self._last is None:
            check_damaged(missing, missing, self._decoder.max_damaged, example=name)
        assert self._last is not None
        return self._last


class Passes(NamedTuple):
    """The endless sequence of passes over the shards, cut into segments; see `Stream`."""

    shards: Sequence[Shard]
    buffer: int
    most: int  # maximum number of segments
    seed: int = 0
    flip: bool = False
    first: int = 0  # the first pass

    def segments(self, images: int) -> int:
        """The number of segments for a number of images per optimizer step, to which each contributes equally."""
        return max(n for n in range(1, min(self.most, len(self.shards), images) + 1) if images % n == 0)

    def samples(self, segment: int, segments: int, *, skip: int) -> Iterator[tuple[Sample, bool]]:
        """A segment's samples in order, after the first `skip`, with whether to mirror each."""
        images, buffer = num_samples(self.shards), -(-self.buffer // segments)
        for epoch in count(self.first):
            part = (segment + epoch) % segments  # rotated, so that no segment is always the longer one
            start, stop = part * images // segments, (part + 1) * images // segments
            if skip >= stop - start:
                skip -= stop - start
                continue
            first, skip_here = divmod(skip, buffer)
            skip = 0
            key = derive(self.seed, "flip", epoch)
            order = self._permutation(len(self.shards), "shards", epoch)
            slices = slice_shards((self.shards[i] for i in order), start + first * buffer, stop)
            samples = read_samples(slices)
            held = list(islice(samples, buffer))
            for block in count(first):
                ahead: list[Sample] = []
                for k, i in enumerate(self._permutation(len(held), "buffer", epoch, part, block)):
                    if k >= skip_here:
                        yield held[i], self.flip and _coin(key, held[i].id)
                    ahead += islice(samples, 1)  # one at a time, not a block at once
                held, skip_here = ahead, 0
                if not held:
                    break

    def _permutation(self, n: int, *key: int | str) -> list[int]:
        order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(derive(self.seed, *key))).tolist()
        return order


@dataclass(eq=False)
class TrainBatches(IterableDataset[WorkerBatch]):
    """The training batches read by one rank's workers, from batch `number`; each worker reads an equal part of each batch."""

    decoder: Decoder
    passes: Passes
    share: Share
    number: int

    def __iter__(self) -> Iterator[WorkerBatch]:
        damaged: list[str] = []
        return self.decoder.batches(self._rows(damaged), damaged)

    def _rows(self, damaged: list[str]) -> Iterator[Iterator[Decoded]]:
        """The worker's rows of images; a step's images come from the segments in order."""
        worker, workers = _worker()
        size, images = self.share.batch_size, self.share.images * self.share.accumulate
        segments = self.passes.segments(images)
        each = images // segments
        begun: dict[int, Row] = {}

        def image(place: int) -> Decoded:
            step, within = divmod(place, images)
            segment, offset = divmod(within, each)
            index = step * each + offset
            if segment not in begun:
                begun[segment] = Row(self.decoder, self.passes.samples(segment, segments, skip=index), index)
            return begun[segment].image(index, damaged)

        for first in count(self.number * self.share.images + self.share.rank * size, self.share.images):
            places = range(first + worker * size // workers, first + (worker + 1) * size // workers)
            yield map(image, places)


@dataclass(eq=False)
class EvalBatches(IterableDataset[WorkerBatch]):
    """The evaluation batches read by one rank's workers: each sample once, with the same number of batches per reader."""

    decoder: Decoder
    shards: Sequence[Shard]
    share: Share

    def batches_per_reader(self, workers: int) -> int:
        """The number of batches per reader; some may hold one image more."""
        return -(-(num_samples(self.shards) // (self.share.world_size * workers)) // self.share.batch_size)

    def __iter__(self) -> Iterator[WorkerBatch]:
        worker, workers = _worker()
        images = num_samples(self.shards)
        reader, readers = self.share.rank * workers + worker, self.share.world_size * workers
        start, stop = reader * images // readers, (reader + 1) * images // readers
        batches = self.batches_per_reader(workers)
        cuts = [k * (stop - start) // batches for k in range(batches + 1)]
        row = Row(self.decoder, ((sample, False) for sample in read_samples(slice_shards(self.shards, start, stop))))
        damaged: list[str] = []
        rows = ((row.image(i, damaged) for i in range(first, last)) for first, last in pairwise(cuts))
        return self.decoder.batches(rows, damaged)


def _coin(key: int, number: int) -> bool:
    """A fair coin from a hash, since `derive` takes as long as decoding a small image."""
    return blake2b(number.to_bytes(8, "little"), key=key.to_bytes(8, "little"), digest_size=1).digest()[0] % 2 == 1


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
