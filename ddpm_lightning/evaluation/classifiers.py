"""What `python -m ddpm_lightning features` does: the classifier whose features `evaluate.py` compares by, trained beforehand."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.errors import UserError
from ddpm_lightning.metrics.features import Classifier, cache_folder
from ddpm_lightning.runs.instantiate import build

__all__ = ["train_classifier"]

CONF = Path(__file__).parents[2] / "conf"


def train_classifier(overrides: Sequence[str]) -> str:
    """Train the classifier of a data set, or find it in the cache, and return its name, which says how well it reads.

    Args:
        overrides: of `evaluate.py`'s config, as `data=fashion_mnist`.

    Raises:
        UserError: where there is no data set, or one without labels.
    """
    if not CONF.is_dir():
        raise UserError(f"{CONF} does not exist: install with `pip install -e .` from the project's folder")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", list(overrides))
    if config.get("data") is None:
        raise UserError("data= is not given: choose a set with labels, as in data=fashion_mnist")
    data: ImageDataModule = build("data", config.data)
    data.setup()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = partial(data.split, "all")
    classifier: Classifier = build("features", config.features)(whole, cache_folder(config.cache_dir), device=device)
    return classifier.name
