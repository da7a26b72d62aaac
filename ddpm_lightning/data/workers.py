"""The work of a stream's workers: each reads its own part of the shards, and makes batches of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ddpm_lightning.data.image_files import check_damaged, read_image
from ddpm_lightning.data.shards import Sample, Shard, num_samples, read_samples, slice_shards
from ddpm_lightning.data.source import Batch, Share
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require
from ddpm_lightning.seeds import derive

__all__ = ["Decoder", "EvalBatches", "Passes", "TrainBatches", "WorkerBatch"]


class WorkerBatch(NamedTuple):
    """What a worker hands over: a batch and the damaged samples on the way to it, or the sentence of the error that ended it."""

    batch: Batch | None
    damaged: tuple[str, ...]
    error: str | None = None


class Decoder(NamedTuple):
    """Samples to batches: which of a sample's files are image and label, and the form of the images; see `Stream`."""

    image_keys: tuple[str, ...]
    label_key: str | None
    num_classes: int | None
    channels: int
    size: tuple[int, int]
    max_damaged: float
    images: int  # of a pass of one rank

    def batches(self, samples: Iterable[tuple[Sample, bool]], sizes: Iterable[int]) -> Iterator[WorkerBatch]:
        """Batches of these sizes, of samples that come with whether they are to be mirrored."""
        damaged: list[str] = []
        decoded = self._decoded(samples, damaged)
        try:
            for size in sizes:
                images, labels, ids = zip(*islice(decoded, size), strict=True)
                x0 = torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
                y = None if self.num_classes is None else torch.tensor(labels)
                yield WorkerBatch(Batch(x0, y, torch.tensor(ids)), tuple(damaged))
                damaged.clear()
        except UserError as error:  # as a value: a worker's exception arrives with its traceback for a message
            yield WorkerBatch(None, tuple(damaged), str(error))

    def label(self, sample: Sample) -> int:
        """The label of a sample, 0 in training without.

        Raises:
            UserError: for a sample without an integer in 0..num_classes − 1.
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
            hint=f"the sample has the files {endings}; data.num_classes={self.num_classes} may be null to train without labels",
        )
        return label

    def check_damaged(self, damaged: int, example: str, *, seen: int = 0) -> None:
        """Refuse more damaged images than may be, of a pass or of those `seen`; see `image_files.check_damaged`."""
        check_damaged(damaged, max(self.images, seen), self.max_damaged, example=example)

    def _decoded(
        self, samples: Iterable[tuple[Sample, bool]], damaged: list[str]
    ) -> Iterator[tuple[np.ndarray, int, int]]:
        """Images, labels and numbers; a damaged image is replaced by the next one that is not, or at the end by the last."""
        missing, last, name = 0, None, ""
        for sample, mirrored in samples:
            name = sample.name
            try:
                image = self._image(sample)
            except ValueError as error:
                damaged.append(f"{name} ({error})" if str(error) else "")
                missing += 1
                self.check_damaged(missing, name)  # a reader of nothing else would never hand over a batch
                continue
            last = (image[:, ::-1] if mirrored else image, self.label(sample), sample.id)
            yield from repeat(last, missing + 1)
            missing = 0
        if last is None:
            check_damaged(missing, missing, self.max_damaged, example=name)
        else:
            yield from repeat(last, missing)

    def _image(self, sample: Sample) -> np.ndarray:
        key = next((key for key in self.image_keys if key in sample.files), None)
        if sample.damage is not None or key is None:
            raise ValueError(f"no {' or '.join(self.image_keys)}" if sample.damage is None else sample.damage)
        return read_image(BytesIO(sample.files[key]), self.channels, self.size)


class Passes(NamedTuple):
    """The endless row of passes over the shards, of which each reader has a part; see `Stream`."""

    shards: Sequence[Shard]
    buffer: int
    seed: int = 0
    flip: bool = False
    first: int = 0  # the pass that it begins with

    def samples(self, reader: int, readers: int, *, skip: int) -> Iterator[tuple[Sample, bool]]:
        """A reader's samples in order, behind the first `skip` ones, and whether each is to be mirrored."""
        images = num_samples(self.shards)
        for epoch in count(self.first):
            part = (reader + epoch) % readers  # in turn, so that no reader has the longer part of each pass
            start, stop = part * images // readers, (part + 1) * images // readers
            if skip >= stop - start:
                skip -= stop - start
                continue
            first, skip_here = divmod(skip, self.buffer)
            skip = 0
            key = derive(self.seed, "flip", epoch)
            order = self._permutation(len(self.shards), "shards", epoch)
            slices = slice_shards((self.shards[i] for i in order), start + first * self.buffer, stop)
            samples = read_samples(slices)
            held = list(islice(samples, self.buffer))
            for block in count(first):
                ahead: list[Sample] = []
                for k, i in enumerate(self._permutation(len(held), "buffer", epoch, part, block)):
                    if k >= skip_here:
                        yield held[i], self.flip and _coin(key, held[i].id)
                    ahead += islice(samples, 1)  # steadily, not a block at once
                held, skip_here = ahead, 0
                if not held:
                    break

    def _permutation(self, n: int, *key: int | str) -> list[int]:
        order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(derive(self.seed, *key))).tolist()
        return order


@dataclass(eq=False)
class TrainBatches(IterableDataset[WorkerBatch]):
    """What the workers of one rank read for training, from its batch `number` on."""

    decoder: Decoder
    passes: Passes
    share: Share
    number: int

    def __iter__(self) -> Iterator[WorkerBatch]:
        worker, workers = _worker()
        number = self.number + worker  # of this worker's first batch; its reader has given number // workers before
        reader, readers = self.share.rank * workers + number % workers, self.share.world_size * workers
        samples = self.passes.samples(reader, readers, skip=number // workers * self.share.batch_size)
        return self.decoder.batches(samples, repeat(self.share.batch_size))


@dataclass(eq=False)
class EvalBatches(IterableDataset[WorkerBatch]):
    """What the workers of one rank read for evaluation: each sample once, as many batches for every reader."""

    decoder: Decoder
    shards: Sequence[Shard]
    share: Share

    def batches_per_reader(self, workers: int) -> int:
        """Batches of each reader; where they do not come out even, some hold one image more."""
        return -(-(num_samples(self.shards) // (self.share.world_size * workers)) // self.share.batch_size)

    def __iter__(self) -> Iterator[WorkerBatch]:
        worker, workers = _worker()
        images = num_samples(self.shards)
        reader, readers = self.share.rank * workers + worker, self.share.world_size * workers
        start, stop = reader * images // readers, (reader + 1) * images // readers
        batches = self.batches_per_reader(workers)
        cuts = [k * (stop - start) // batches for k in range(batches + 1)]
        samples = ((sample, False) for sample in read_samples(slice_shards(self.shards, start, stop)))
        return self.decoder.batches(samples, np.diff(cuts).tolist())


def _coin(key: int, number: int) -> bool:
    """A hash's bit: `derive` takes as long as a small image does."""
    return blake2b(number.to_bytes(8, "little"), key=key.to_bytes(8, "little"), digest_size=1).digest()[0] % 2 == 1


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
