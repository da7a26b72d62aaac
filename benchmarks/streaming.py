"""Memory and speed of data loading: a stream of shards, the same images in memory, and torch's own loader.

python benchmarks/streaming.py [--images 50000] [--workers 2] [--rounds 3]

The images are 32×32 JPEGs in shards of 1,000, written to a temporary folder. Each measurement is a new process that loads
the same number of images in batches of 64 from the small and the large dataset, without a network. Memory is the peak
proportional set size of the process and its workers, after the first tenth.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

BATCH, PER_SHARD, SMALL = 64, 1000, 5000


def write(folder: Path, images: int) -> None:
    random = np.random.default_rng(0)
    for first in range(0, images, PER_SHARD):
        with tarfile.open(folder / f"{first // PER_SHARD:05d}.tar", "w") as tar:
            for number in range(first, first + PER_SHARD):
                coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                file = io.BytesIO()
                coarse.resize((32, 32), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
                member = tarfile.TarInfo(f"{number:07d}.jpg")
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)


def memory() -> float:
    """Memory in MiB of this process and its children."""
    below, parents = {os.getpid()}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    found = 0
    for pid in below:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found / 1024


def endless(loader):
    while True:
        yield from loader


def loader(kind: str, folder: str, images: int, workers: int):
    # Not at the top, which workers import too, as in train.py.
    from ddpm_lightning.data.datamodule import ImageDataModule
    from ddpm_lightning.data.loaders import ImageSet
    from ddpm_lightning.data.streams import Stream

    if kind == "stream":
        source = lambda: Stream(folder, 3, image_size=(32, 32), workers=workers)  # noqa: E731
    else:
        held = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
        if kind == "torch":
            data = TensorDataset(held, torch.zeros(images))
            return DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        source = lambda: ImageSet(held, torch.zeros(images))  # noqa: E731
    data = ImageDataModule(source, channels=3, image_size=[32, 32], batch_size=BATCH, flip=True)
    data.setup()
    return data.train_dataloader()


def measure(kind: str, folder: str, images: int, workers: int, taken: int) -> dict[str, float]:
    torch.set_num_threads(1)
    batches, peak = taken // BATCH, 0.0
    row = endless(loader(kind, folder, images, workers))
    started = time.perf_counter()
    next(row)
    start_up = time.perf_counter() - started
    looked, started = 0.0, time.perf_counter()
    for number, _ in enumerate(islice(row, batches)):
        if number > batches // 10 and number % 50 == 0:
            before = time.perf_counter()
            peak = max(peak, memory())
            looked += time.perf_counter() - before
    seconds = time.perf_counter() - started - looked
    return {"images/s": batches * BATCH / seconds, "MiB": peak, "first batch, s": start_up}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, folder, images, workers, taken = arguments.measure
        print(json.dumps(measure(kind, folder, int(images), int(workers), int(taken))))
        return
    with tempfile.TemporaryDirectory() as top:
        folders = {n: Path(top) / str(n) for n in (SMALL, arguments.images)}
        for n, folder in folders.items():
            folder.mkdir()
            write(folder, n)
        cases = [
            ("stream", SMALL, arguments.workers),
            ("stream", arguments.images, arguments.workers),
            ("stream", arguments.images, 0),
            ("memory", arguments.images, 0),
            ("torch", arguments.images, arguments.workers),
        ]
        found: dict[tuple[str, int, int], list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(arguments.rounds):
            for kind, n, workers in cases:
                given = [kind, str(folders[n]), str(n), str(workers), str(arguments.images)]
                command = [sys.executable, __file__, "--measure", *given]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[kind, n, workers].append(json.loads(said.splitlines()[-1]))
    medians = {}
    for case, rounds in found.items():
        medians[case] = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        numbers = ", ".join(f"{key} {value:,.1f}" for key, value in medians[case].items())
        print(f"{case[0]:<7} {case[1]:>7,} images, {case[2]} workers: {numbers}")
    small, large = (medians["stream", n, arguments.workers]["MiB"] for n in folders)
    print(f"memory of {arguments.images:,} images over {SMALL:,}: {large / small - 1:+.1%}")


if __name__ == "__main__":
    main()
