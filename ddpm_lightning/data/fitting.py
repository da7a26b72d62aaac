"""Crop and resize images to the size of the data."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageOps

from ddpm_lightning.data.loaders import require_sides
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import is_integer, require_one_of

__all__ = ["RESIZES", "Fit"]

RESIZES = ("bicubic", "bilinear", "box_bicubic")


class Fit(NamedTuple):
    """How images become `size`: cropped to a box, if given, then resized to cover the size and center-cropped.

    "bicubic" and "bilinear" resize once, with antialiasing. "box_bicubic" halves by averaging 2×2 pixels while an image is at
    least twice as large, then resizes bicubically, as Dhariwal & Nichol 2021 and Peebles & Xie 2023 do.
    """

    size: tuple[int, int]  # (width, height)
    resize: str = "bicubic"
    crop: tuple[int, int, int, int] | None = None  # (left, top, width, height)

    @classmethod
    def of(cls, image_size: Sequence[int], resize: str = "bicubic", crop: Sequence[int] | None = None) -> "Fit":
        """The fit for (height, width), after checking the settings.

        Raises:
            UserError: for sizes, a box or a kind of resizing out of range.
        """
        require_sides(image_size)
        require_one_of("data.dataset.resize", resize, RESIZES)
        if crop is not None and not (
            len(crop) == 4 and all(is_integer(n, "0..1000000") for n in crop) and min(crop[2:]) > 0
        ):
            raise UserError(f"data.dataset.crop must be [left, top, width, height] in pixels or null, got {[*crop]}")
        height, width = image_size
        return cls((width, height), resize, None if crop is None else (crop[0], crop[1], crop[2], crop[3]))

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image in this size.

        Raises:
            UserError: for an image smaller than the box.
        """
        if self.crop is not None:
            left, top, width, height = self.crop
            if left + width > image.width or top + height > image.height:
                raise UserError(
                    f"has {image.width}x{image.height} pixels, too few for data.dataset.crop={[*self.crop]}: give a smaller box, or null"
                )
            image = image.crop((left, top, left + width, top + height))
        if self.resize == "box_bicubic":
            return self._halved_first(image)
        bilinear = self.resize == "bilinear"
        return ImageOps.fit(image, self.size, Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC)

    def _halved_first(self, image: Image.Image) -> Image.Image:
        width, height = self.size
        while image.width >= 2 * width and image.height >= 2 * height:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = max(width / image.width, height / image.height)
        covering = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        image = image.resize(covering, Image.Resampling.BICUBIC)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
