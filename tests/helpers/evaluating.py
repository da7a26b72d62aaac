"""Evaluations of a tiny run."""

import json
import shutil

from PIL import Image

SMALL = (
    "num_samples=60",
    "sampler.num_steps=3",
    "bits_images=2",
    "shard_size=20",
    "batch_size=16",
    "features.num_steps=5",
    "device=cpu",
)


def copy_of(tiny_run, folder):
    """A copy of the tiny run, for evaluations of its own."""
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("evaluations"))
    return folder


def size_of(path):
    with Image.open(path) as image:
        return image.size


def read(folder):
    """The JSON, without timings."""
    return {
        key: value for key, value in json.loads((folder / "evaluation.json").read_text()).items() if key != "timing"
    }
