"""Stream datasets larger than memory from shards, with worker processes."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader

from ddpm_lightning.data.fitting import Fit
from ddpm_lightning.data.shards import dotted_endings, find_shards, num_samples, read_samples, slice_shards
from ddpm_lightning.data.source import Batch, EndlessLoader, Form, Share, Source
from ddpm_lightning.data.workers import Decoder, EvalBatches, Passes, TrainBatches, WorkerBatch
from ddpm_lightning.errors import STOP_SIGNALS, UserError, brief
from ddpm_lightning.ranges import require, require_one_of

__all__ = ["Stream"]

log = logging.getLogger(__name__)


class StreamTrainLoader(EndlessLoader):
    """Training batches of one rank, in an order independent of the workers and their prefetching."""

    def __init__(self, decoder: Decoder, passes: Passes, share: Share, workers: int):
        super().__init__(num_samples(passes.shards), share)
        self._decoder = decoder
        self._passes = passes
        images = share.images * share.accumulate
        self._order = [images, passes.segments(images), passes.buffer]  # determines the order, together with the seed
        self._first_pass, self._before = 0, 0  # first pass in this order, and the images served to all ranks before it
        self._workers = min(workers, share.batch_size)

    def _batches_from(self, position: int) -> Iterator[Batch]:
        passes, number = self._passes._replace(first=self._first_pass), (position - self._before) // self._share.images
        batches = TrainBatches(self._decoder, passes, self._share, number)
        return _read(batches, self._workers, parts=max(1, self._workers))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "order": self._order, "begun": [self._first_pass, self._before]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume as in `EndlessLoader`; if the order has changed, skip the rest of the pass, so that no image is repeated in it."""
        super().load_state_dict(state)
        self._first_pass, self._before = state.get("begun", [0, 0])
        if state.get("order") != self._order:
            self._first_pass += -(-(self._position - self._before) // num_samples(self._passes.shards))
            self._before = self._position
            if self._share.rank == 0:
                log.warning(
                    "data: the images per optimizer step, data.dataset.segments or data.dataset.buffer changed: the stream "
                    "resumes with its next pass, number %d",
                    self._first_pass + 1,
                )


@dataclass(frozen=True)
class StreamEvalLoader:
    """One pass over a split, in a fixed order."""

    batches: EvalBatches
    workers: int

    def __len__(self) -> int:
        return self.batches.batches_per_reader(max(1, self.workers)) * max(1, self.workers)

    def __iter__(self) -> Iterator[Batch]:
        return _read(self.batches, self.workers)


class Stream(Source):
    """A dataset in shards, read by workers in each process; the last shards by name are held out for validation.

    Each pass over the training images permutes the shards by (seed, pass) and cuts the sequence of their samples into
    *segments* of equal length (±1), which are read concurrently; each continues with a segment of the next pass. So a pass
    holds each sample once, and all batches are full. A segment is shuffled block by block, by (seed, pass, segment, block).
    Each segment contributes equally to an optimizer step, so the order depends only on the seed and the images per step, not
    on the numbers of processes, accumulated batches and workers, which read the segments of their own images. A resumed run
    opens the shards where it stopped without decoding earlier images; with a different number of images per step it resumes
    with the next pass. To keep the order, a damaged image is replaced by the next undamaged one of its segment.

    Args:
        root: see `find_shards`.
        channels: 1 or 3.
        image_size: (height, width); images are resized to cover it and center-cropped.
        resize: how they are resized, see `Fit`.
        image_key: the extension of the images, or several, such as "png;jpg".
        label_key: the extension of the files with integer labels; None for no labels.
        sizes: see `find_shards`.
        val_shards: the number of shards to hold out.
        buffer: shuffle buffer, in samples over all segments; the workers hold up to twice as many, undecoded.
        segments: maximum number of segments, also limited by the shards and images per step; if below `workers`, shards are shared.
        workers: reading processes per training process; 0 reads in the training process.
        max_damaged: the fraction of damaged images above which the run stops.

    Raises:
        UserError: for a setting out of range, and see `find_shards`.
    """

    def __init__(
        self,
        root: str | Sequence[str],
        channels: int,
        *,
        image_size: Sequence[int],
        resize: str = "bicubic",
        image_key: str = "png;jpg;jpeg;webp",
        label_key: str | None = "cls",
        sizes: str | None = None,
        val_shards: int = 1,
        buffer: int = 2000,
        segments: int = 32,
        workers: int = 2,
        max_damaged: float = 0.01,
    ):
        require("data.dataset.val_shards", val_shards, "0..")
        require("data.dataset.buffer", buffer, "1..100000000")
        require("data.dataset.segments", segments, "1..65536")
        require("data.dataset.workers", workers, "0..1024")
        require("data.dataset.max_damaged", max_damaged, "[0, 1]")
        keys = tuple(image_key.lower().split(";"))
        shards = find_shards(root, keys, label_key=label_key, sizes=sizes)
        hint = f"at least one of the {len(shards)} shards in data.root={root} must remain for training"
        require("data.dataset.val_shards", val_shards, f"0..{len(shards) - 1}", hint=hint)
        cut = len(shards) - val_shards
        self._workers = workers
        self._parts = {"train": shards[:cut], "validation": shards[cut:], "all": shards}
        self._passes = Passes(shards[:cut], buffer, segments)
        self._decoder = Decoder(keys, label_key, None, channels, Fit.of(image_size, resize), max_damaged, 0)

    def prepared(self, form: Form) -> "Stream":
        """Return the stream itself, after checking the label of its first sample.

        Raises:
            UserError: for a label outside 0..num_classes − 1, or no label.
        """
        require_one_of("data.dtype", form.values.dtype, ("uint8",), hint="shards hold 8-bit images")
        _allow_open_files(64 + min(self._passes.most, len(self._passes.shards)))
        self._decoder = self._decoder._replace(num_classes=form.num_classes)
        self._passes = self._passes._replace(seed=form.seed, flip=form.flip)
        first = next(read_samples(slice_shards(self._parts["train"], 0, 1)))
        # Of shards behind URLs, which are not counted, no names are known before.
        if endings := dotted_endings(first.files, self._decoder.image_keys, self._decoder.label_key):
            self._parts = {k: [shard._replace(endings=endings) for shard in part] for k, part in self._parts.items()}
            self._passes = self._passes._replace(shards=self._parts["train"])
            first = next(read_samples(slice_shards(self._parts["train"], 0, 1)))
        if first.damage is None:
            self._decoder.label(first)
        return self

    @property
    def fingerprint(self) -> str:
        shards = [(shard.url.rpartition("/")[2], shard.samples) for shard in self._parts["all"]]
        return sha256(repr(shards).encode()).hexdigest()[:12]

    def num_images(self, name: str) -> int:
        return num_samples(self._parts[name])

    def train_loader(self, share: Share, device: torch.device) -> StreamTrainLoader:
        segments, readers = self._passes.segments(share.images * share.accumulate), share.world_size * self._workers
        if readers > 2 * segments and share.rank == 0:
            log.warning(
                "data: %d workers share %d segments, so each shard is read %d times: raise data.dataset.segments=%d (requires as many "
                "shards) or lower data.dataset.workers",
                *(readers, segments, -(-readers // segments), self._passes.most),
            )
        return StreamTrainLoader(self._decoder_of("train", share), self._passes, share, self._workers)

    def loader(
        self, name: str, share: Share, *, device: torch.device | str = "cpu", labeled: bool = True
    ) -> Iterable[Batch]:
        if not self._parts[name]:
            return []
        batches = EvalBatches(self._decoder_of(name, share), self._parts[name], share)
        return StreamEvalLoader(batches, min(self._workers, self.num_images(name) // share.world_size))

    def _decoder_of(self, name: str, share: Share) -> Decoder:
        return self._decoder._replace(images=self.num_images(name) // share.world_size)


def _read(batches: TrainBatches | EvalBatches, workers: int, *, parts: int = 1) -> Iterator[Batch]:
    """The workers' batches, each joined from `parts`; warns of damaged images and stops at too many.

    Raises:
        UserError: for too many damaged images, or a sample without a valid label.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 * parts if workers else None,
        pin_memory=torch.cuda.is_available() and parts == 1,
        multiprocessing_context=_processes() if workers else None,
        worker_init_fn=partial(_obey, os.getpid()),
        generator=torch.Generator(),  # keeps the global generator untouched
    )
    seen, damaged = 0, 0
    for handed in zip(*[_alive(loader, workers)] * parts, strict=True):
        for lost in filter(None, (part.damaged for part in handed)):
            for what in filter(None, lost):
                log.warning("%s is damaged and skipped", what)
            damaged += len(lost)
            batches.decoder.check_damaged(damaged, next(filter(None, lost), "the end of a shard"), seen=seen)
        for error in filter(None, (part.error for part in handed)):
            raise UserError(error)
        batch = _joined([part.batch for part in handed])
        seen += len(batch.ids)
        yield batch


def _allow_open_files(number: int) -> None:
    """Raise the process's limit on open files, if it is lower.

    Raises:
        UserError: if it cannot be raised that far.
    """
    if sys.platform == "win32":
        return
    import resource

    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    if low < number and (high == resource.RLIM_INFINITY or high >= number):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, high))
        low = number
    hint = "data.dataset.segments shards are open at once: lower it, or raise the limit with `ulimit -n`"
    require("the system's limit on open files", low, f"{number}..", hint=hint)


def _alive(loader: DataLoader[Any], workers: int) -> Iterator[WorkerBatch]:
    """The workers' batches.

    Raises:
        UserError: if a worker dies.
    """
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not workers:
            raise
        raise UserError(
            f"data: a worker process died ({brief(error)}), possibly out of memory: lower "
            f"data.dataset.workers={workers} or data.dataset.buffer"
        ) from error


def _joined(parts: list[Batch]) -> Batch:
    """Join the parts of a batch, in pinned memory if there is a GPU."""
    if len(parts) == 1:
        return parts[0]

    def join(tensors: Sequence[Any]) -> Any:
        whole = None if tensors[0] is None else torch.cat(list(tensors))
        return whole.pin_memory() if whole is not None and torch.cuda.is_available() else whole

    return Batch(*map(join, zip(*parts, strict=True)))


def _processes() -> BaseContext:
    """The multiprocessing context: a fork server without threads or GPU, with the workers' imports preloaded.

    The server and the workers block signals from the start, until `_obey` sets their handlers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    if sys.platform == "linux":
        from multiprocessing import forkserver, resource_tracker  # not available on Windows

        resource_tracker.ensure_running()  # otherwise the fork server starts it, with signals unblocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _obey(parent: int, worker: int) -> None:
    """Make a worker end with its run, not before: Ctrl-C and SLURM's signals reach it too, but the last step needs its batch."""
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
