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

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import is_integer

__all__ = ["Record", "Shard", "find_shards", "read_records", "stretch", "total"]


_FILE = 2**28  # bytes of a sample's file; what is larger is no picture
_SHARDS = 1_000_000
_HEADER = 2**20  # bytes of a name, or of other words about a file


class Member(tarfile.TarInfo):
    """A file in a tar file, whose size is looked at before it is read: a few bytes can declare more than a memory holds."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0:
            raise tarfile.ReadError(f"it declares {self.size:,} bytes")
        words = self.type in (*_WORDS, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if words and self.size > _HEADER:
            raise tarfile.ReadError(f"it has a name, or words about a file, of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


_WORDS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Shard(NamedTuple):
    """A tar file: its path or URL, the number within the set of its first sample, and how many it holds."""

    url: str
    first: int
    samples: int


class Record(NamedTuple):
    """A sample as it lies in its shard: the number within the set, its name, and its files by their endings, or why there are none."""

    id: int
    name: str
    files: dict[str, Any]
    damage: str | None = None


class Piece(NamedTuple):
    """The samples of a shard from `start` up to `stop`."""

    shard: Shard
    start: int
    stop: int


def find_shards(root: str | Sequence[str], image_keys: Sequence[str], *, sizes: str | None = None) -> list[Shard]:
    """The shards of a set in the order of their names, each with the number of its samples.

    Args:
        root: a folder of *.tar files, a pattern with * or {00..99}, an URL or "pipe:" command as webdataset takes them, or
            a list of these.
        image_keys: the endings of images, one of which each shard must hold.
        sizes: a JSON file with the number of samples in each shard, by file name; None: the headers are counted.

    Raises:
        UserError: where webdataset or a shard is missing, one holds no image, or the size of one is not known.
    """
    urls = sorted(
        {url for pattern in (root if isinstance(root, list | tuple) else [str(root)]) for url in _expanded(pattern)}
    )
    if not urls:
        raise UserError(
            f"data.root={root} holds no shards: give a folder of *.tar files, or a pattern such as shards/{{00..99}}.tar"
        )
    counts = None if sizes is None else _sizes(sizes)
    shards: list[Shard] = []
    for url in urls:
        samples = _count(url, image_keys) if counts is None else counts.get(_name(url))
        if samples is None:
            raise UserError(f"data.dataset.sizes={sizes} does not give the number of samples in {_name(url)}: add it")
        shards.append(Shard(url, total(shards), samples))
    return shards


def total(shards: Sequence[Shard]) -> int:
    """The number of samples in shards that follow one another."""
    return shards[-1].first + shards[-1].samples - shards[0].first if shards else 0


def stretch(shards: Iterable[Shard], start: int, stop: int) -> Iterator[Piece]:
    """The pieces that make up the samples from `start` up to `stop` of the row of all the shards' samples."""
    for shard in shards:
        if max(start, 0) < min(stop, shard.samples):
            yield Piece(shard, max(start, 0), min(stop, shard.samples))
        start, stop = start - shard.samples, stop - shard.samples


def read_records(pieces: Iterable[Piece]) -> Iterator[Record]:
    """The samples of the pieces; those that cannot be read any more come as damaged ones, the first of which says why."""
    for shard, start, stop in pieces:
        number, why = start, "the shard has fewer samples than were counted"
        try:
            with closing(_samples(shard.url)) as samples:
                for sample in islice(samples, start, stop):
                    yield Record(shard.first + number, f"{sample['__key__']} of {shard.url}", sample)
                    number += 1
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            why = _reason(error)
        for lost in range(number, stop):
            said = f"and what follows it ({why})" if lost == number else ""
            yield Record(shard.first + lost, f"sample {lost} of {shard.url}", {}, said)


def _expanded(pattern: str) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise UserError(
            "data=webdataset needs the package webdataset: pip install 'ddpm_lightning[webdataset]'"
        ) from error
    for low, high in re.findall(r"\{(\d+)\.\.(\d+)", pattern):
        if abs(int(high) - int(low)) > _SHARDS:
            raise UserError(f"data.root={pattern} stands for more than {_SHARDS:,} shards: give a shorter range")
    found: list[str] = []
    for url in [pattern] if os.path.exists(pattern) else expand_urls(pattern):
        path, scheme = Path(url), urlparse(url).scheme
        if scheme == "pipe" and not pattern.startswith("pipe:"):  # a checkpoint's commands are told by that
            raise UserError(f"data.root={pattern} hides a command: let it start with pipe:")
        if scheme:
            if scheme != "pipe" and set(url) & set("'\"`$;|&<>\n\\"):  # webdataset may hand it to a shell
                raise UserError(f"data.root={pattern} is no plain URL: leave quotes and the like out of it")
            found.append(url)
        elif path.is_dir():
            found += [str(shard) for shard in path.glob("*.tar") if shard.is_file()]
        elif path.is_file():
            found.append(url)
        elif matches := [match for match in glob(url) if Path(match).is_file()]:
            found += matches
        else:
            raise UserError(f"data.root={pattern}: there is no shard {url}; give the path of those that there are")
    return found


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _sizes(path: str) -> dict[str, int]:
    try:
        sizes = {str(name): int(samples) for name, samples in json.loads(Path(path).read_text()).items()}
        if not all(is_integer(samples, "[1, 1e8]") for samples in sizes.values()):
            raise ValueError("a shard has from 1 to 1e8 samples")
        return sizes
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f'data.dataset.sizes={path} will not do ({reason}): give a JSON file such as {{"00000.tar": 1000}}'
        ) from error


def _count(url: str, image_keys: Sequence[str]) -> int:
    """The samples in a shard on the disk, from its headers alone."""
    if urlparse(url).scheme:
        raise UserError(
            f"data.dataset.sizes is not given, and {url} would have to be read as a whole to count its samples: give a "
            'JSON file such as {"00000.tar": 1000}'
        )
    samples, seen, last = 0, set(), None
    try:
        with tarfile.open(url, "r:" if url.endswith(".tar") else "r:*", tarinfo=Member) as tar:
            for member in tar:
                _check_size(member)
                key, ending = _key_of(member)
                samples += key is not None and key != last
                last = last if key is None else key
                seen |= {ending}
    except (OSError, EOFError, tarfile.TarError) as error:
        if not samples:
            raise UserError(
                f"data.root: the shard {url} cannot be read ({_reason(error)}): leave it out, or mend it"
            ) from error
    if not seen & {*image_keys}:
        others = ", ".join(sorted(ending for ending in seen if ending)[:8]) or "nothing"
        raise UserError(
            f"data.dataset.image_key={';'.join(image_keys)}: the shard {url} holds no such sample, but {others}; give the "
            "ending of its images"
        )
    return samples


def _reason(error: BaseException) -> str:
    """An error's text in one line, without the open files that webdataset adds to it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error.args[0] if error.args else "")
    return " ".join(text.partition(" @ <")[0].split()) or type(error).__name__


def _key_of(member: tarfile.TarInfo) -> tuple[str | None, str | None]:
    """What webdataset groups a file by, and its ending; None for what it passes over."""
    from webdataset.tariterators import base_plus_ext

    if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):
        return None, None
    key, ending = base_plus_ext(member.name)
    return key, ending and ending.lower()


def _check_size(member: tarfile.TarInfo) -> None:
    """Refuse a file that declares more than a picture's has."""
    if member.issparse() or member.size > _FILE:
        raise tarfile.ReadError(f"{member.name} declares {member.size:,} bytes: no picture has more than {_FILE:,}")


def _samples(url: str) -> Generator[dict[str, Any], None, None]:
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
    with tarfile.open(fileobj=file, mode="r|" if url.endswith(".tar") else "r|*", tarinfo=Member) as tar:
        for member in tar:
            if _key_of(member)[0] is not None:
                _check_size(member)
                held = tar.extractfile(member)
                assert held is not None
                yield {"fname": member.name, "data": held.read(), "__url__": url}
            tar.members = []  # type: ignore[attr-defined]  # which it would keep
