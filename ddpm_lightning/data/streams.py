"""A source for sets larger than memory: shards that are read, in many processes, as their images are wanted."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader

from ddpm_lightning.data.lanes import Lanes, Once, Reader, Row
from ddpm_lightning.data.shards import find_shards, read_records, stretch, total
from ddpm_lightning.data.source import Batch, Endless, Source
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import is_integer, within

__all__ = ["Stream"]

log = logging.getLogger(__name__)


class StreamLoader(Endless):
    """Training batches of one rank, in an order known from their number; what workers have read ahead does not count.

    Args:
        reader: what makes batches.
        row: the passes over the set.
        batch_size: images per batch and rank.
        rank: this process.
        world_size: the number of processes.
        accumulate: see `Endless`.
        workers: see `Stream`.
    """

    def __init__(
        self, reader: Reader, row: Row, *, batch_size: int, rank: int, world_size: int, accumulate: int, workers: int
    ):
        images = batch_size * world_size
        super().__init__(total(row.shards) // (images * accumulate), accumulate, images)
        self._reader = reader
        self._row_of_passes = row
        self._place = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
        self._lanes = [batch_size, world_size, workers]
        self._begun = [
            0,
            0,
        ]  # the pass that these lanes began with, and the images that all ranks had been given by then
        self._workers = workers

    def _batches_from(self, position: int) -> Iterator[Batch]:
        first, before = self._begun
        row, number = self._row_of_passes._replace(first=first), (position - before) // self._images
        return _read(Lanes(self._reader, row, number=number, **self._place), self._workers)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "lanes": self._lanes, "begun": self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Endless`; where other lanes were read, the rest of their pass is left out, so that no image comes twice in it."""
        super().load_state_dict(state)
        self._begun = first, before = state.get("begun", [0, 0])
        if state.get("lanes", self._lanes) != self._lanes:
            passes = -(-(self._position - before) // total(self._row_of_passes.shards))
            self._begun = [first + passes, self._position]
            if self._place["rank"] == 0:
                log.warning(
                    "data: the processes, data.dataset.workers or data.batch_size have changed: the stream goes on with its next pass, "
                    "the number %d",
                    first + passes + 1,
                )


class OnceLoader:
    """One pass over a part of a set, in a fixed order."""

    def __init__(self, once: Once, workers: int):
        self._once = once
        self._workers = workers

    def __len__(self) -> int:
        return self._once.batches(max(1, self._workers)) * max(1, self._workers)

    def __iter__(self) -> Iterator[Batch]:
        return _read(self._once, self._workers)


class Stream(Source):
    """A set in shards, read by some workers in each process; the last shards, by name, are the validation images.

    A *lane* is a worker of a process. A pass over the training images puts the shards in an order that is drawn from
    (seed, pass), and cuts the row of their samples into as many parts as there are lanes, equal but for one sample; each
    lane reads its own, and runs on into the next pass. So a pass holds each sample once, all batches are full, and no rank
    waits for another's data; with fewer shards than lanes, some read parts of one shard. Within its part a lane
    shuffles block by block of `buffer` samples, in an order drawn from (seed, pass, part, block). Batch m of a rank is
    the next of its lane m mod workers. All this is known from m, the seed and the numbers of processes and workers: a
    run that goes on with the same opens the shard where it stopped, and no image before it is decoded; with others it goes on with
    the next pass. The place of a damaged image is
    taken by the next whole one of its lane, for the same reason.

    Args:
        root: see `find_shards`.
        channels: 1 or 3.
        image_size: (height, width); images are resized to cover it and cropped at the centre.
        image_key: the ending of the images, or several, such as "png;jpg".
        label_key: the ending of the files with the label, a whole number; None for a set that is used without.
        sizes: see `find_shards`.
        val_shards: how many shards are held out.
        buffer: samples in a block; a lane holds up to twice as many, not yet decoded.
        workers: processes that read and decode, for each training process; 0: it does so itself.
        max_damaged: the share of damaged images above which a run is stopped.

    Raises:
        UserError: for a setting that will not do, and as `find_shards`.
    """

    def __init__(
        self,
        root: str | Sequence[str],
        channels: int,
        *,
        image_size: Sequence[int],
        image_key: str = "png;jpg;jpeg;webp",
        label_key: str | None = "cls",
        sizes: str | None = None,
        val_shards: int = 1,
        buffer: int = 1000,
        workers: int = 2,
        max_damaged: float = 0.01,
    ):
        for key, value, interval in (
            ("val_shards", val_shards, "[0, 1e8]"),
            ("buffer", buffer, "[1, 1e8]"),
            ("workers", workers, "[0, 1024]"),
        ):
            if not is_integer(value, interval):
                raise UserError(f"data.dataset.{key}={value} will not do: give a whole number in {interval}")
        if not within(max_damaged, "[0, 1]"):
            raise UserError(f"data.dataset.max_damaged={max_damaged} is no share: give one from 0 to 1")
        keys = tuple(image_key.lower().split(";"))
        shards = find_shards(root, keys, sizes=sizes)
        if val_shards >= len(shards):
            raise UserError(
                f"data.dataset.val_shards={val_shards} leaves none of the {len(shards)} shards in data.root={root} to train on: "
                "give less, or more shards"
            )
        cut = len(shards) - val_shards
        self._workers = workers
        self._parts = {"train": shards[:cut], "validation": shards[cut:], "all": shards}
        self._reader = Reader(keys, label_key, None, channels, (image_size[1], image_size[0]), max_damaged, 0)
        self._buffer = buffer
        self._val_shards = val_shards

    def prepared(
        self, channels: int, image_size: Sequence[int], *, num_classes: int | None, val_fraction: float, seed: int
    ) -> "Stream":
        """Itself, once its first sample is seen to have what is wanted; the rest are settings of a set in memory.

        Raises:
            UserError: where it has no label that will do.
        """
        if num_classes is not None and self._reader.label_key is None:
            raise UserError(
                f"data.num_classes={num_classes} wants labels, and data.dataset.label_key is null: give their ending, as cls"
            )
        self._reader = self._reader._replace(num_classes=num_classes)
        first = next(read_records(stretch(self._parts["train"], 0, 1)))
        if first.damage is None:
            self._reader.label(first)
        return self

    @property
    def fingerprint(self) -> str:
        shards = [(shard.url.rpartition("/")[2], shard.samples) for shard in self._parts["all"]]
        return sha256(repr(shards).encode()).hexdigest()[:12]

    def check(self, world_size: int) -> None:
        if (images := total(self._parts["train"])) < world_size * max(1, self._workers):
            raise UserError(
                f"data.dataset.workers={self._workers}, in {world_size} process(es), are more than the {images} training images: "
                "give fewer"
            )
        if 0 < (held_out := total(self._parts["validation"])) < world_size:
            raise UserError(
                f"data.dataset.val_shards={self._val_shards} holds out {held_out} images for {world_size} processes: hold out "
                "more, or 0"
            )

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
    ) -> StreamLoader:
        return StreamLoader(
            self._reader_of("train", world_size),
            Row(self._parts["train"], self._buffer, seed, flip),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            workers=self._workers,
        )

    def val_loader(self, batch_size: int, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        return self._once("validation", batch_size, rank=rank, world_size=world_size)

    def batches(self, name: str, batch_size: int) -> Iterable[Batch]:
        return self._once(name, batch_size, rank=0, world_size=1)

    def _once(self, name: str, batch_size: int, *, rank: int, world_size: int) -> Iterable[Batch]:
        if not (shards := self._parts[name]):
            return []
        reader = self._reader_of(name, world_size)
        once = Once(reader, shards, batch_size=batch_size, rank=rank, world_size=world_size)
        return OnceLoader(once, min(self._workers, total(shards) // world_size))

    def _reader_of(self, name: str, world_size: int) -> Reader:
        return self._reader._replace(images=total(self._parts[name]) // world_size)


def _read(lanes: Lanes | Once, workers: int) -> Iterator[Batch]:
    """What the workers hand over; damaged images are named, counted and, when too many, the end.

    Raises:
        UserError: then, and for a sample without a label that will do.
    """
    loader = DataLoader(
        lanes,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=_processes() if workers else None,
        worker_init_fn=partial(_obey, os.getpid()),
        generator=torch.Generator(),  # or it draws from the global one
    )
    seen, damaged = 0, 0
    for batch, lost, error in loader:
        for what in filter(None, lost):
            log.warning("%s is damaged and left out", what)
        damaged += len(lost)
        if lost:
            lanes.reader.refuse(damaged, next(filter(None, lost), "the end of a shard"), seen=seen)
        if error is not None:
            raise UserError(error)
        seen += len(batch.ids)
        yield batch


def _processes() -> BaseContext:
    """Workers are forked from a process that has no threads and no GPU, and has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _obey(parent: int, worker: int) -> None:
    """Let a worker end with its run and not before it: Ctrl-C and SLURM's signals reach it too, and the run's last step wants its batch."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while True:
        info = signal.sigtimedwait({signal.SIGTERM}, 2)
        if (info is not None and info.si_pid == parent) or not Path(f"/proc/{parent}").exists():
            os._exit(0)
