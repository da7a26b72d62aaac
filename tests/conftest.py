"""What all layers share: numbers that are the same every time, a run that was trained once, and datasets on the disk."""

import os
import pickle

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import settings
from PIL import Image

from tests.helpers.configs import WHOLE, train_config
from tests.helpers.datasets import quadrants, write_fashion_mnist
from tests.helpers.shards import write

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of all processes that tests start, which share the cores
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: its kernels run on the CPU
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a finished tiny run."""
    from ddpm_lightning import runs

    folder = tmp_path_factory.mktemp("runs") / "outputs" / "tiny"
    runs.train(train_config(folder, tiny=WHOLE))
    return folder


@pytest.fixture
def shards(tmp_path):
    """Five shards for training with 7, 8, 8, 9 and 8 images, and one for validation with 10."""
    folder = tmp_path / "shards"
    folder.mkdir()
    first = 0
    for i, n in enumerate([7, 8, 8, 9, 8, 10]):
        write(folder / f"{i:05d}.tar", range(first, first + n))
        first += n
    return folder


@pytest.fixture
def fashion_mnist(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 28, 28)), np.arange(40) % 10
    write_fashion_mnist(tmp_path, images, labels)
    return tmp_path, images, labels


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Five batches of eight, rows of 3,072 bytes, channel by channel; torchvision's checksums are of the real files."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    labels = list(np.arange(40) % 10)
    for i in range(5):
        part = slice(8 * i, 8 * i + 8)
        batch = {"data": images[part].reshape(8, -1), "labels": [int(n) for n in labels[part]]}
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: True)
    return tmp_path, images, labels


@pytest.fixture
def pictures(tmp_path):
    """Nested folders, odd sizes, every kind of pixel, and a file that ends too soon."""
    a, b = tmp_path / "a" / "deep" / "er", tmp_path / "b"
    a.mkdir(parents=True)
    b.mkdir()
    Image.fromarray(quadrants(37, 53)).save(a / "rgb.png")
    Image.fromarray(quadrants(40, 40, 1)[..., 0]).save(a / "grey.PNG")
    Image.fromarray(quadrants(24, 91)).quantize(8).save(b / "palette.gif")
    rgba = np.concatenate([quadrants(40, 40), np.full((40, 40, 1), 255, np.uint8)], axis=2)
    rgba[:20, :20, 3] = 0  # see through: becomes white
    Image.fromarray(rgba).save(b / "rgba.png")
    Image.fromarray(quadrants(40, 40, 1)[..., 0].astype(np.uint16) * 257).save(b / "sixteen.png")
    whole = (a / "rgb.png").read_bytes()
    (b / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (b / "notes.txt").write_text("no picture")
    return tmp_path
