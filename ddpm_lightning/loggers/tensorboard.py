"""TensorBoard with images and animations."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning.images import open_image

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's TensorBoard logger with `log_image` for uint8 arrays (H, W, C) and `log_video` for GIF files.

    Args:
        save_dir: the run folder.
        name: the subfolder.
        version: the subfolder within `name`; empty for none.
        settings: further arguments of Lightning's logger.
    """

    def __init__(self, save_dir: str | Path, name: str | None = None, version: int | str | None = "", **settings: Any):
        super().__init__(save_dir, name, version, **settings)

    @rank_zero_only
    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None, **kwargs: Any) -> None:
        for i, image in enumerate(images):
            self.experiment.add_image(key if i == 0 else f"{key}_{i}", image, step, dataformats="HWC")

    @rank_zero_only
    def log_video(self, key: str, videos: list[str], step: int | None = None, **kwargs: Any) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for i, path in enumerate(videos):
            with open_image(Path(path)) as picture:
                width, height = picture.size
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=Path(path).read_bytes()
            )
            summary = Summary(value=[Summary.Value(tag=key if i == 0 else f"{key}_{i}", image=image)])
            self.experiment._get_file_writer().add_summary(summary, step)  # as a GIF, which the browser plays
