"""The images that `evaluate.py` compares samples with."""

import torch
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.table import FEWEST
from ddpm_lightning.runs.drawing import Drawing
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.trust import check_targets, without_download

__all__ = ["check_sets", "data_of", "reference_of"]


def data_of(config: DictConfig, drawing: Drawing) -> ImageDataModule:
    """The data set that was chosen, or the run's own."""
    if config.get("data") is not None:
        node = config.data
    elif "_target_" in drawing.data:
        check_targets(drawing.data, "data")
        held = dict(drawing.data) if config.data_root is not None else without_download(drawing.data)
        node = OmegaConf.create(held)
    else:
        raise UserError(
            f"ckpt_path={drawing.path} does not say what it was trained on: choose data=..., as in data=cifar10"
        )
    if config.data_root is not None:
        if "root" not in node:
            raise UserError(f"data_root={config.data_root}: this data set has no folder; leave data_root at null")
        node.root = str(config.data_root)
    # Not the samples' seed, which a typed data=... would take: the split is that of the training.
    node.seed = drawing.data.get("seed", 0) if config.data_seed is None else config.data_seed
    shape = (node.channels, *node.image_size)
    if shape != drawing.shape:
        raise UserError(
            f"data.channels={node.channels}, data.image_size={list(node.image_size)}: the model draws images of "
            f"{drawing.shape[0]} channels and {list(drawing.shape[1:])}; give these"
        )
    data: ImageDataModule = build("data", node)
    data.setup()
    return data


def reference_of(images: ImageSet, count: int | None) -> ImageSet:
    """These images, or as many of them as were asked for, drawn once and for all."""
    if not count or count >= len(images.images):
        return images
    chosen = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return ImageSet(images.images[chosen], images.labels[chosen])


def check_sets(config: DictConfig, drawing: Drawing, reference: ImageSet, held_out: ImageSet) -> None:
    """Refuse, before anything is drawn, what cannot be compared.

    Raises:
        UserError: for too few images, or labels that the model does not know.
    """
    if len(reference.images) < FEWEST:
        raise UserError(
            f"reference={config.reference}, reference_images={config.reference_images}: {len(reference.images)} images are too few "
            f"to compare anything with: give {FEWEST} or more, or reference=train"
        )
    classes = drawing.denoiser.num_classes
    if classes is not None and len(held_out.labels) and int(held_out.labels.max()) >= classes:
        raise UserError(
            f"the data's labels go up to {int(held_out.labels.max())}, and the model knows {classes}: choose the data=... that it "
            "was trained on"
        )
