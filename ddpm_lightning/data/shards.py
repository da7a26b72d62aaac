"""Shards, tar files in the format of WebDataset: how they are found, counted and read."""

import json
import os
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from glob import glob
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from ddpm_lightning.errors import UserError, brief, optional_package
from ddpm_lightning.ranges import require

__all__ = ["Sample", "Shard", "dotted_endings", "find_shards", "num_samples", "read_samples", "slice_shards"]


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
            raise tarfile.ReadError(f"it has a file name or header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


class Shard(NamedTuple):
    """A tar file: its path or URL, the number within the dataset of its first sample, and how many samples it holds.

    endings: where names have dots of their own ("cat.01.png"), the endings before which they are cut; else it is the first dot.
    """

    url: str
    first: int
    samples: int
    endings: tuple[str, ...] = ()


class Sample(NamedTuple):
    """A sample as its shard holds it.

    id: the number within the dataset; files: the contents by ending; damage: why there are none, "" where an earlier
    sample has said so, None of a sample that could be read.
    """

    id: int
    name: str
    files: dict[str, Any]
    damage: str | None = None


def find_shards(
    root: str | Sequence[str], image_keys: Sequence[str], *, label_key: str | None = None, sizes: str | None = None
) -> list[Shard]:
    """The shards of a dataset in the order of their names, each with the number of its samples.

    Args:
        root: a folder of *.tar files, a pattern with * or {00..99}, an URL or "pipe:" command as webdataset takes them, or
            a list of these.
        image_keys: the endings of images, one of which each shard must hold.
        label_key: the ending of labels.
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
        samples: Any = counts.get(name)
        endings: tuple[str, ...] = ()
        if sizes is None and not urlparse(url).scheme:
            samples, endings = _count(url, image_keys, label_key)
        setting = f"data.dataset.sizes={sizes or 'null'}: the number of samples in {name}"
        hint = 'samples behind URLs are not counted; give a JSON file such as {"00000.tar": 1000}'
        require(setting, samples, "1..100000000", hint=hint)
        shards.append(Shard(url, num_samples(shards), samples, endings))
    return shards


def dotted_endings(found: Iterable[str], image_keys: Sequence[str], label_key: str | None) -> tuple[str, ...]:
    """`Shard.endings` of files that end so behind the first dots of their names."""
    found = {*found}
    if found & {*image_keys} or not any(ending.endswith(f".{key}") for ending in found for key in image_keys):
        return ()
    return (*image_keys, *filter(None, [label_key]))


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
        number, why = part.start, "the shard has fewer samples than counted"
        try:
            with closing(_grouped_files(shard, part.start)) as samples:
                for sample in islice(samples, len(part)):
                    yield Sample(shard.first + number, f"{sample['__key__']} of {shard.url}", sample)
                    number += 1
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            why = _reason(error)
        for lost in range(number, part.stop):
            name = f"sample {lost} of {shard.url}"
            if lost == number:
                yield Sample(shard.first + lost, f"{name} and everything after it", {}, why)
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


def _count(path: str, image_keys: Sequence[str], label_key: str | None) -> tuple[int, tuple[str, ...]]:
    """The samples in a shard on the disk, from its headers alone, and its endings; damage behind the first image is found later."""
    names, damage = list[str](), ""
    try:
        with tarfile.open(path, "r:" if path.endswith(".tar") else "r:*", tarinfo=_BoundedTarInfo) as tar:
            names.extend(member.name for member in _members(tar))
    except (OSError, EOFError, tarfile.TarError) as error:
        damage = f" and cannot be read ({_reason(error)})"
    seen = {_cut(name)[1] for name in names}
    endings = dotted_endings(seen, image_keys, label_key)
    if not endings and not seen & {*image_keys}:
        listed = ", ".join(sorted(filter(None, seen))[:8]) or "nothing"
        raise UserError(
            f"the shard {path} must hold images that end in {' or '.join(image_keys)}, got {listed}{damage}: set "
            "data.dataset.image_key to their extension, or remove the shard"
        )
    return sum(1 for _ in groupby(_cut(name, endings)[0] for name in names)), endings


def _reason(error: BaseException) -> str:
    """An error's text in one line, without the open files that webdataset adds to it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error.args[0] if error.args else "")
    return " ".join(text.partition(" @ <")[0].split()) or type(error).__name__


def _cut(name: str, endings: Sequence[str] = ()) -> tuple[str, str]:
    """The sample that a file is part of, and the file's ending; see `Shard`. Hidden files have neither."""
    folder, slash, base = name.rpartition("/")
    if base.startswith(".") or "." not in base:
        return "", ""
    known = [ending for ending in endings if base.lower().endswith(f".{ending}")]
    if not endings:
        stem, _, ending = base.partition(".")
    elif known:
        ending = max(known, key=len)
        stem = base[: -len(ending) - 1]
    else:
        stem, _, ending = base.rpartition(".")
    return folder + slash + stem, ending.lower()


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of samples: those with a name and an ending, and none of WebDataset's own, such as `__index__`.

    Raises:
        ReadError: for a file that declares more bytes than an image has.
    """
    for member in tar:
        if member.issparse() or member.size > _FILE:
            raise tarfile.ReadError(f"{member.name} declares {member.size:,} bytes: no image has more than {_FILE:,}")
        if member.isreg() and all(_cut(member.name)) and not re.match(r"__[^/]*__($|/)", member.name):
            yield member
        tar.members = []  # type: ignore[attr-defined]  # which it would keep


def _grouped_files(shard: Shard, start: int) -> Generator[dict[str, Any], None, None]:
    """The samples in a shard from number `start` on: their files by ending, and their name as "__key__".

    Those before are passed over: of a file on the disk, not even their bytes are read.
    """
    from webdataset.gopen import gopen

    file = gopen(shard.url)
    mode = "r" + (":" if Path(shard.url).is_file() else "|") + ("" if shard.url.endswith(".tar") else "*")
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_BoundedTarInfo) as tar:  # type: ignore[call-overload]
            samples = groupby(_members(tar), lambda member: _cut(member.name, shard.endings)[0])
            for key, members in islice(samples, start, None):
                yield {"__key__": key, **_contents(tar, members, shard)}
    finally:
        with suppress(OSError):  # a command that is not read to its end fails by that
            file.close()


def _contents(tar: tarfile.TarFile, members: Iterable[tarfile.TarInfo], shard: Shard) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for member in members:
        ending, held = _cut(member.name, shard.endings)[1], tar.extractfile(member)
        if ending in files:
            raise tarfile.ReadError(f"two files are named {member.name}")
        assert held is not None
        files[ending] = held.read()
    return files
