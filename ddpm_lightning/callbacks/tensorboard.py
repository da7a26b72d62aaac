"""TensorBoard that takes images as the other loggers do."""

from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's logger, with `log_image` for arrays (H, W, C) of uint8."""

    @rank_zero_only
    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None, **kwargs: Any) -> None:
        for i, image in enumerate(images):
            self.experiment.add_image(key if i == 0 else f"{key}_{i}", image, step, dataformats="HWC")
