"""The real images of an evaluation."""

import copy
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import is_labels, map_condition
from ddpm_lightning.data.values import kind_of
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.table import FEWEST
from ddpm_lightning.ranges import require, require_one_of, shown
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.sampling_setup import SamplingSetup
from ddpm_lightning.runs.trust import check_targets, without_download

__all__ = ["RealImages", "held_out_of", "load_data", "load_real_images", "test_split_of"]


@dataclass(frozen=True)
class RealImages:
    """A dataset and the splits that an evaluation uses, uint8."""

    data: ImageDataModule
    train: ImageSet
    held_out: ImageSet  # see `held_out_of`
    reference: ImageSet  # compared with samples; `train` itself if it is all training images


def load_real_images(config: DictConfig, setup: SamplingSetup) -> RealImages:
    """Load the config's dataset, or the run's own by default.

    Raises:
        UserError: for images that cannot be compared with the model's samples: another size, too few, or other labels.
    """
    data = load_data(_data_config(config, setup))
    train, held_out = data.split("train"), held_out_of(data)
    if config.bits_split == "test" and config.bits_images != 0:
        held_out = held_out_of(load_data(test_split_of(_data_config(config, setup), "bits_split")), "test")
    reference = _some(train if config.reference == "train" else data.split(config.reference), config.reference_images)
    if (found := len(reference.images)) < FEWEST:
        raise UserError(
            f"reference={config.reference} and reference_images={shown(config.reference_images)} must leave at least {FEWEST} images, "
            f"got {found}: raise reference_images{', or choose reference=train' * (config.reference != 'train')}"
        )
    classes = setup.denoiser.num_classes
    if classes is not None and is_labels(held_out.labels) and len(held_out.images):
        largest = int(held_out.labels.max())
        require(
            "the data's largest label",
            largest,
            f"0..{classes - 1}",
            hint="choose the data=... that the model was trained on",
        )
    return RealImages(data, train, held_out, reference)


def _data_config(config: DictConfig, setup: SamplingSetup) -> DictConfig:
    if config.get("data") is not None:
        node = config.data
    elif "_target_" in setup.data:
        check_targets(setup.data, "data")
        held = dict(setup.data) if config.data_root is not None else without_download(setup.data)
        node = OmegaConf.create(held)
    else:
        raise UserError(
            f"ckpt_path={setup.path} does not name its training data: choose data=..., such as data=cifar10"
        )
    if "root" not in node:
        require_one_of("data_root", config.data_root, [None], hint="this dataset has no folder")
    elif config.data_root is not None:
        node.root = str(config.data_root)
    # The split is that of training, not of the samples' seed, which a typed data=... would take.
    node.seed = setup.data.get("seed", 0) if config.data_seed is None else config.data_seed
    channels, *size = setup.shape
    require_one_of("data.channels", node.channels, [channels], hint="as in the model's images")
    require_one_of("data.image_size", list(node.image_size), [size], hint="as in the model's images")
    return node


def load_data(node: DictConfig) -> ImageDataModule:
    """Build and read a dataset.

    Raises:
        UserError: for data other than 8-bit images.
    """
    if (kind := kind_of(node)) != "images":
        only = "images" if kind == "points" else "8-bit images"
        raise UserError(
            f"the model was trained on {kind}, and only {only} can be evaluated: inspect its samples with sample.py"
        )
    data: ImageDataModule = build("data", node)
    data.setup()
    return data


def test_split_of(node: DictConfig, key: str) -> DictConfig:
    """The config of a dataset's own test split.

    Raises:
        UserError: for a dataset without one.
    """
    node = copy.deepcopy(node)
    for place in ("dataset", "dataset.source"):
        for name, value in {"train": False, "split": "test"}.items():
            if name in (OmegaConf.select(node, place) or {}):
                OmegaConf.update(node, f"{place}.{name}", value)
                return node
    raise UserError(f"{key} must be validation, got test: this dataset has no test split of its own")


def held_out_of(data: ImageDataModule, split: str = "validation") -> ImageSet:
    """The held-out images in a fixed random order, so that the first few cover all classes even in a sorted dataset."""
    images, labels, _ = data.split("validation" if split == "validation" else "all")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return ImageSet(images[order], map_condition(lambda rows: rows[order], labels))


def _some(images: ImageSet, count: int | None) -> ImageSet:
    """The images, or a fixed random subset."""
    if not count or count >= len(images.images):
        return images
    chosen = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return ImageSet(images.images[chosen], map_condition(lambda rows: rows[chosen], images.labels))
