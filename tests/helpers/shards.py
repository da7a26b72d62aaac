"""Shards of small pictures."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image

from ddpm_lightning.data.source import Form, Share
from ddpm_lightning.data.streams import Stream


def picture(number, size=(8, 8)):
    file = io.BytesIO()
    pixels = np.full(size, number, np.uint8)
    pixels[0] = np.linspace(0, 255, size[1])  # shows whether it is mirrored
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write(path, numbers, *, broken=(), label=lambda number: number % 3, ending="png"):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            image = picture(number)
            files = {ending: image[: len(image) // 2] if number in broken else image}
            if label is not None:
                files["cls"] = str(label(number)).encode()
            for name, data in files.items():
                member = tarfile.TarInfo(f"{number:05d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def stream(root, **options):
    return Stream(str(root), 1, **{"image_size": (8, 8), "workers": 0, "buffer": 4, **options})


def loader(root, *, rank=0, world_size=1, batch_size=5, seed=0, flip=False, **options):
    found = stream(root, **options).prepared(Form(1, (8, 8), seed=seed, flip=flip))
    return found.train_loader(Share(batch_size, rank, world_size), torch.device("cpu"))


def endless(source):
    while True:
        yield from source


SHORT = ["data=webdataset", "data.channels=1", "data.image_size=[8,8]", "data.batch_size=5", "data.dataset.buffer=4"]
