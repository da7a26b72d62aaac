"""Features of images, cached on disk, and `python -m ddpm_lightning features`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from ddpm_lightning import CONF_DIR
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.chunks import Chunks, digest
from ddpm_lightning.evaluation.real_images import load_data
from ddpm_lightning.evaluation.table import Compared, model_name
from ddpm_lightning.metrics.features import cache_folder, extract
from ddpm_lightning.records.yaml import quoted
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.process_group import ALONE, ProcessGroup

__all__ = ["Extractor", "load_extractor", "train_classifier"]

FEATURES_CHUNK = 5_000


@dataclass(frozen=True)
class Extractor:
    """A network that maps uint8 images (N, C, H, W) to features (N, D)."""

    model: nn.Module
    cache: Path  # the folder of cached features
    batch_size: int
    group: ProcessGroup

    @cached_property
    def weights_fingerprint(self) -> str:
        """The fingerprint of the weights."""
        return fingerprint(*self.model.state_dict().values())

    def __call__(self, images: Tensor, folder: Path | None = None) -> Compared:
        """Images with their features, computed unless cached in the folder; only rank zero has features."""
        nothing = Compared(images, torch.empty(0, 1))
        if not len(images):
            return nothing
        name = f"{fingerprint(images)}_{digest(f'{model_name(self.model)} {self.weights_fingerprint}')}"
        chunks = Chunks((folder or self.cache) / name, len(images), FEATURES_CHUNK)

        def compute(items: range) -> dict[str, Tensor]:
            part = images[items.start : items.stop]
            return {"features": extract(self.model, part, batch_size=self.batch_size)}

        chunks.compute(compute, self.group)
        return Compared(images, chunks.read()["features"]) if self.group.rank == 0 else nothing


def load_extractor(config: DictConfig, data: ImageDataModule, device: torch.device, group: ProcessGroup) -> Extractor:
    """Build the network of the config's `features`."""
    cache = cache_folder(config.cache_dir)
    if group.rank > 0:
        group.wait()  # until rank zero has downloaded or trained it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same on all ranks
        model: nn.Module = build("features", config.features)(partial(data.split, "all"), cache, device=device)
    if group.rank == 0:
        group.wait()
    return Extractor(model.to(device).eval(), cache / "features", config.batch_size, group)


def train_classifier(overrides: Sequence[str], *, config_dir: Path | None = None) -> str:
    """Train the classifier of a dataset, unless cached, and return its name, which includes its accuracy.

    Args:
        overrides: overrides of `evaluate.py`'s config, such as `data=fashion_mnist`.
        config_dir: a folder with your own configs, such as data/mine.yaml.

    Raises:
        UserError: for a missing folder or dataset, or a dataset without labels.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir must be a folder with your own configs, got {config_dir}")
    own = [] if config_dir is None else [f"hydra.searchpath=[{quoted(config_dir.absolute())}]"]
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        config = compose("evaluate", [*own, *overrides])
    if config.get("data") is None:
        raise UserError("data=... is required: choose a dataset with labels, such as data=fashion_mnist")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model_name(load_extractor(config, load_data(config.data), device, ALONE).model)
