"""Shards, tar files in the format of WebDataset: how they are found, counted and read."""

import json
import os
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from glob import glob
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlparse

from ddpm_lightning.errors import UserError, brief, optional_package
from ddpm_lightning.ranges import require

__all__ = ["Sample", "Shard", "find_shards", "num_samples", "read_samples", "slice_shards"]


_FILE = 2**28  # bytes of a sample's file; a larger one is not an image
_HEADER = 2**20  # bytes of a name, or of other words about a file
_WORDS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _BoundedTarInfo(tarfile.TarInfo):
    """A file in a tar file, whose size is checked before it is read: a few bytes can declare more than a memory holds."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0:
            raise tarfile.ReadError(f"it declares {self.size:,} bytes")
        if self.type in _WORDS and self.size > _HEADER:
            raise tarfile.ReadError(f"it has a name, or words about a file, of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


class Shard(NamedTuple):
    """A tar file: its path or URL, the number within the dataset of its first sample, and how many samples it holds."""

    url: str
    first: int
    samples: int


class Sample(NamedTuple):
    """A sample as its shard holds it.

    id: the number within the dataset; files: the contents by ending; damage: why there are none, "" where an earlier
    sample has said so, None of a sample that could be read.
    """

    id: int
    name: str
    files: dict[str, Any]
    damage: str | None = None


def find_shards(root: str | Sequence[str], image_keys: Sequence[str], *, sizes: str | None = None) -> list[Shard]:
    """The shards of a dataset in the order of their names, each with the number of its samples.

    Args:
        root: a folder of *.tar files, a pattern with * or {00..99}, an URL or "pipe:" command as webdataset takes them, or
            a list of these.
        image_keys: the endings of images, one of which each shard must hold.
        sizes: a JSON file with the number of samples in each shard, by file name; None: the headers are counted.

    Raises:
        UserError: where webdataset or a shard is missing, one holds no image, or the size of one is not known.
    """
    patterns = list(root) if isinstance(root, list | tuple) and root else [str(root)]
    urls = sorted({url for pattern in patterns for url in _expanded(pattern)})
    counts = {} if sizes is None else _read_sizes(sizes)
    shards: list[Shard] = []
    for url in urls:
        name = url.rpartition("/")[2]
        is_counted = sizes is None and not urlparse(url).scheme
        samples: Any = _count(url, image_keys) if is_counted else counts.get(name)
        setting = f"data.dataset.sizes={sizes or 'null'}: the number of samples in {name}"
        hint = 'URLs are not counted; give a JSON file such as {"00000.tar": 1000}'
        require(setting, samples, "1..100000000", hint=hint)
        shards.append(Shard(url, num_samples(shards), samples))
    return shards


def num_samples(shards: Sequence[Shard]) -> int:
    """The number of samples in shards that follow one another."""
    return shards[-1].first + shards[-1].samples - shards[0].first if shards else 0


def slice_shards(shards: Iterable[Shard], start: int, stop: int) -> Iterator[tuple[Shard, range]]:
    """Where the samples from `start` up to `stop` of all the shards' samples in a row are: the shards, and which in each."""
    for shard in shards:
        if part := range(max(start, 0), min(stop, shard.samples)):
            yield shard, part
        start, stop = start - shard.samples, stop - shard.samples


def read_samples(slices: Iterable[tuple[Shard, range]]) -> Iterator[Sample]:
    """The samples of the slices; those that cannot be read any more come as damaged ones, the first of which says why."""
    for shard, part in slices:
        number, why = part.start, "the shard has fewer samples than were counted"
        try:
            with closing(_grouped_files(shard.url)) as samples:
                for sample in islice(samples, part.start, part.stop):
                    yield Sample(shard.first + number, f"{sample['__key__']} of {shard.url}", sample)
                    number += 1
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            why = _reason(error)
        for lost in range(number, part.stop):
            name = f"sample {lost} of {shard.url}"
            if lost == number:
                yield Sample(shard.first + lost, f"{name} and what follows it", {}, why)
            else:
                yield Sample(shard.first + lost, name, {}, "")


def _expanded(pattern: str) -> list[str]:
    with optional_package("webdataset", "webdataset", needed_by="data=webdataset"):
        from webdataset.shardlists import expand_urls
    for low, high in re.findall(r"\{(\d+)\.\.(\d+)", pattern):
        require(f"the number of shards in data.root={pattern}", abs(int(high) - int(low)) + 1, "1..1000000")
    return [
        shard for url in ([pattern] if os.path.exists(pattern) else expand_urls(pattern)) for shard in _at(url, pattern)
    ]


def _at(url: str, pattern: str) -> list[str]:
    """The shards at a path or URL of an expanded pattern, in no order.

    Raises:
        UserError: for a hidden command, an URL that a shell could read as a command, and a path without shards.
    """
    path, scheme = Path(url), urlparse(url).scheme
    if scheme == "pipe":  # a checkpoint's commands are found by the begin of the pattern
        found = [url] if pattern.startswith("pipe:") else []
    elif scheme:  # webdataset may hand it to a shell
        found = [] if set(url) & set("'\"`$;|&<>\n\\") else [url]
    elif path.is_dir():
        found = [str(shard) for shard in path.glob("*.tar") if shard.is_file()]
    else:
        found = [url] if path.is_file() else [match for match in glob(url) if Path(match).is_file()]
    if not found:
        raise UserError(
            f"data.root must be a folder of *.tar files, a path or pattern such as shards/{{00..99}}.tar, a plain URL, or a command "
            f"that starts with pipe:, got {pattern}, and {url} is none of these"
        )
    return found


def _read_sizes(path: str) -> dict[str, int]:
    try:
        return {str(name): int(samples) for name, samples in json.loads(Path(path).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f'data.dataset.sizes must be a JSON file such as {{"00000.tar": 1000}}, got {path} ({brief(error)})'
        ) from error


def _count(path: str, image_keys: Sequence[str]) -> int:
    """The samples in a shard on the disk, from its headers alone; damage behind the first image is found when it is read."""
    samples, seen, last, damage = 0, set[str](), None, ""
    try:
        with tarfile.open(path, "r:" if path.endswith(".tar") else "r:*", tarinfo=_BoundedTarInfo) as tar:
            for key, ending, _ in _members(tar):
                samples += key != last
                last = key
                seen.add(ending)
    except (OSError, EOFError, tarfile.TarError) as error:
        damage = f" and cannot be read ({_reason(error)})"
    if not seen & {*image_keys}:
        endings = ", ".join(sorted(filter(None, seen))[:8]) or "nothing"
        raise UserError(
            f"the shard {path} must hold images that end in {' or '.join(image_keys)}, got {endings}{damage}: give the ending "
            "by data.dataset.image_key, or leave the shard out"
        )
    return samples


def _reason(error: BaseException) -> str:
    """An error's text in one line, without the open files that webdataset adds to it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error.args[0] if error.args else "")
    return " ".join(text.partition(" @ <")[0].split()) or type(error).__name__


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """The files that webdataset does not pass over, each with the sample that it is part of and its ending.

    Raises:
        ReadError: for a file that declares more bytes than an image has.
    """
    from webdataset.tariterators import base_plus_ext

    for member in tar:
        if member.issparse() or member.size > _FILE:
            raise tarfile.ReadError(f"{member.name} declares {member.size:,} bytes: no image has more than {_FILE:,}")
        key, ending = base_plus_ext(member.name)
        if key is not None and member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
            yield key, ending.lower(), member
        tar.members = []  # type: ignore[attr-defined]  # which it would keep


def _grouped_files(url: str) -> Generator[dict[str, Any], None, None]:
    """The files in a shard, grouped to samples."""
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys

    file = gopen(url)
    try:
        yield from group_by_keys(_files(file, url))
    finally:
        with suppress(OSError):  # a command that is not read to its end fails by that
            file.close()


def _files(file: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
    """The files in a shard, in the form in which webdataset groups them to samples."""
    with tarfile.open(fileobj=file, mode="r|" if url.endswith(".tar") else "r|*", tarinfo=_BoundedTarInfo) as tar:
        for _, _, member in _members(tar):
            held = tar.extractfile(member)
            assert held is not None
            yield {"fname": member.name, "data": held.read(), "__url__": url}
