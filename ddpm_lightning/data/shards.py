"""Find, count and read shards: tar files in WebDataset format."""

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


_FILE = 2**28  # maximum bytes of a file in a sample
_HEADER = 2**20  # maximum bytes of a tar header
_WORDS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _BoundedTarInfo(tarfile.TarInfo):
    """A tar member whose declared size is checked before it is read, since it may exceed the memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0:
            raise tarfile.ReadError(f"it declares {self.size:,} bytes")
        if self.type in _WORDS and self.size > _HEADER:
            raise tarfile.ReadError(f"it has a file name or header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


class Shard(NamedTuple):
    """A tar file: its path or URL, the dataset index of its first sample, and its number of samples.

    endings: file extensions, for names with further dots ("cat.01.png"); if empty, names are split at the first dot.
    """

    url: str
    first: int
    samples: int
    endings: tuple[str, ...] = ()


class Sample(NamedTuple):
    """A sample as stored in its shard.

    id: the index in the dataset; files: the contents by extension; damage: why the sample is unreadable, "" if an earlier
    sample reported it, None for a readable sample.
    """

    id: int
    name: str
    files: dict[str, Any]
    damage: str | None = None


def find_shards(
    root: str | Sequence[str], image_keys: Sequence[str], *, label_key: str | None = None, sizes: str | None = None
) -> list[Shard]:
    """Find the shards of a dataset, in order of their names, and count their samples.

    Args:
        root: a folder of *.tar files, a pattern with * or {00..99}, a URL or a webdataset "pipe:" command, or a list of these.
        image_keys: the extensions of images, one of which each shard must hold.
        label_key: the extension of labels.
        sizes: a JSON file with the number of samples in each shard, by file name; None counts the tar headers.

    Raises:
        UserError: if webdataset or a shard is missing, a shard holds no image, or its size is unknown.
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
    """`Shard.endings` for files whose extensions follow further dots."""
    found = {*found}
    if found & {*image_keys} or not any(ending.endswith(f".{key}") for ending in found for key in image_keys):
        return ()
    return (*image_keys, *filter(None, [label_key]))


def num_samples(shards: Sequence[Shard]) -> int:
    """The total number of samples in consecutive shards."""
    return shards[-1].first + shards[-1].samples - shards[0].first if shards else 0


def slice_shards(shards: Iterable[Shard], start: int, stop: int) -> Iterator[tuple[Shard, range]]:
    """The shards, and the range in each, that hold samples `start` to `stop` of their concatenation."""
    for shard in shards:
        if part := range(max(start, 0), min(stop, shard.samples)):
            yield shard, part
        start, stop = start - shard.samples, stop - shard.samples


def read_samples(slices: Iterable[tuple[Shard, range]]) -> Iterator[Sample]:
    """The samples of the slices; unreadable ones are marked as damaged, the first with the reason."""
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
    """The shards at a path or URL of an expanded pattern, unordered.

    Raises:
        UserError: for a hidden command, a URL that a shell could read as a command, or a path without shards.
    """
    path, scheme = Path(url), urlparse(url).scheme
    if scheme == "pipe":  # a checkpoint's commands are recognized by the pattern's prefix
        found = [url] if pattern.startswith("pipe:") else []
    elif scheme:  # webdataset may pass it to a shell
        found = [] if set(url) & set("'\"`$;|&<>\n\\") else [url]
    elif path.is_dir():
        found = [str(shard) for shard in path.glob("*.tar") if shard.is_file()]
    else:
        found = [url] if path.is_file() else [match for match in glob(url) if Path(match).is_file()]
    if not found:
        raise UserError(
            f"data.root must be a folder of *.tar files, a path or pattern such as shards/{{00..99}}.tar, a plain URL, or a command "
            f"that starts with pipe:, got {pattern}{', which holds no *.tar files' if path.is_dir() else ''}"
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
    """Count the samples of a local shard from its headers, and find its extensions; damage after the first image is found later."""
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
            f"the shard {path} must hold images that end in one of {', '.join(image_keys)}, got {listed}{damage}: set "
            "data.dataset.image_key to their extension, or remove the shard"
        )
    return sum(1 for _ in groupby(_cut(name, endings)[0] for name in names)), endings


def _reason(error: BaseException) -> str:
    """An error's text in one line, without the open files that webdataset appends."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error.args[0] if error.args else "")
    return " ".join(text.partition(" @ <")[0].split()) or type(error).__name__


def _cut(name: str, endings: Sequence[str] = ()) -> tuple[str, str]:
    """Split a file name into sample name and extension, see `Shard`; both are empty for hidden files."""
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
    """The members that belong to samples, without WebDataset's own files such as `__index__`.

    Raises:
        ReadError: for a member that declares more bytes than an image can have.
    """
    for member in tar:
        if member.issparse() or member.size > _FILE:
            raise tarfile.ReadError(f"{member.name} declares {member.size:,} bytes: no image has more than {_FILE:,}")
        if member.isreg() and all(_cut(member.name)) and not re.match(r"__[^/]*__($|/)", member.name):
            yield member
        tar.members = []  # type: ignore[attr-defined]  # otherwise kept in memory


def _grouped_files(shard: Shard, start: int) -> Generator[dict[str, Any], None, None]:
    """The samples of a shard from index `start`: their files by extension, and their name as "__key__".

    Earlier samples are skipped; in a local file, their bytes are not read.
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
        with suppress(OSError):  # a command whose output is not read to the end fails
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
