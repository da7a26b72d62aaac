"""The edits of `sample.py edit=...` that restore images: inpainting, super-resolution and deblurring."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lightning.data.source import in_turn
from ddpm_lightning.editing import Blur, Downsample, Mask, Measurement, Operator, Restoration
from ddpm_lightning.errors import UserError, below
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.ranges import require
from ddpm_lightning.runs.edits import Edit, Items, Job
from ddpm_lightning.runs.inputs import Inputs, read_inputs, read_masks
from ddpm_lightning.runs.sampling_setup import SamplingSetup
from ddpm_lightning.runs.trials import times_of
from ddpm_lightning.samplers import Step
from ddpm_lightning.seeds import derive

__all__ = ["Deblur", "Inpaint", "SuperResolution"]


class _Restore(Edit):
    """Samples images of which a measurement is known.

    Args:
        method: how.
        input: an image file or a folder of images.
        results: results per image.
        noise: standard deviation of the measurement's noise.
    """

    def __init__(
        self,
        method: Restoration,
        input: str | Sequence[str] | None = None,
        *,
        results: int = 4,
        noise: float = 0.0,
    ):
        super().__init__(input, results=results)
        require("noise", noise, "[0, inf)")
        if method.exact and noise > 0:
            raise UserError(
                f"noise must be 0 for edit/method=repaint, got {noise}: choose another method for noisy images"
            )
        self.method = method
        self.noise = noise

    def _job(
        self,
        setup: SamplingSetup,
        inputs: Inputs,
        known: Tensor,
        shown: Mapping[str, Tensor],
        operator_of: Callable[[Tensor], Operator],
    ) -> Job:
        """The job of restoring `known`, with the operator of some rows."""

        def sample(items: Items) -> Iterator[Step]:
            x, y = (
                items.noise.draw(setup.shape).to(setup.device),
                in_turn(setup.condition, items.rows.tolist(), setup.device),
            )
            given = known[items.rows].to(setup.device)
            measurement = Measurement(given, operator_of(items.rows), self.noise)
            for step in self.method.trajectory(setup.sampler, setup.guided, x, measurement, y, randn=items.noise):
                ends_exactly = step.t == 0 and self.noise == 0
                yield replace(step, x=measurement.operator.agree(step.x, given)) if ends_exactly else step

        steps = len(self.method.path(times_of(setup.sampler, setup.denoiser))) - 1
        return Job(inputs.names, self.results, steps, sample, shown)


class Inpaint(_Restore):
    """Fills in a part of images, the white part of a mask or a box.

    Args:
        method: how.
        input: an image file or a folder of images.
        results: results per image.
        mask: an image file, or a folder with one per image, of the same name.
        box: [top, left, height, width].
        noise: standard deviation of the noise in the known part.
    """

    def __init__(
        self,
        method: Restoration,
        input: str | Sequence[str] | None = None,
        *,
        results: int = 4,
        mask: str | None = None,
        box: Sequence[int] | None = None,
        noise: float = 0.0,
    ):
        super().__init__(method, input, results=results, noise=noise)
        if (mask is None) == (box is None):
            raise UserError(
                f"edit.mask or edit.box must be set, but not both, got edit.mask={mask or 'null'}, edit.box={[*box] if box else 'null'}: "
                "give edit.mask=FILE, white where the image is filled in, or edit.box=[top,left,height,width]"
            )
        self.mask = mask
        self.box = box

    def prepare(self, setup: SamplingSetup, seed: int) -> Job:
        fill = None if self.mask else self._box(setup.shape[1:])
        inputs = read_inputs(self.input, setup)
        fill = (
            read_masks(str(self.mask), inputs, setup) if fill is None else fill.expand(len(inputs.images), -1, -1, -1)
        )
        known = torch.where(fill, 0.0, inputs.images)
        return self._job(setup, inputs, known, {"input": inputs.images, "known": known}, lambda rows: Mask(~fill[rows]))

    def _box(self, sides: Sequence[int]) -> Tensor:
        """The mask (1, 1, H, W) of the box."""
        box = [*(self.box or ())]
        height, width = sides
        if len(box) != 4 or not (0 <= box[0] < box[0] + box[2] <= height and 0 <= box[1] < box[1] + box[3] <= width):
            raise UserError(f"edit.box must be [top, left, height, width] within {height} x {width} pixels, got {box}")
        fill = torch.zeros(1, 1, height, width, dtype=torch.bool)
        fill[..., box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
        return fill


class _Degraded(_Restore):
    """Images of which a smaller or blurred version is known.

    Args:
        method: how.
        input: an image file or a folder of images.
        results: results per image.
        degrade: whether the input is still to be reduced or blurred.
        noise: standard deviation of the noise in the known images.
    """

    def __init__(
        self,
        method: Restoration,
        input: str | Sequence[str] | None = None,
        *,
        results: int = 4,
        degrade: bool = False,
        noise: float = 0.0,
    ):
        super().__init__(method, input, results=results, noise=noise)
        self.degrade = degrade

    @abstractmethod
    def operator(self, sides: Sequence[int]) -> Operator:
        """A, for images with these sides."""

    def prepare(self, setup: SamplingSetup, seed: int) -> Job:
        sides = setup.shape[1:]
        with below("edit"):
            operator = self.operator(sides)
        blank = torch.zeros(1, *setup.shape)
        inputs = read_inputs(self.input, setup, None if self.degrade else operator.forward(blank).shape[2:])
        known, shown = inputs.images, {}
        if self.degrade:
            noise = SeededNoise(derive(seed, "measurement"), range(len(known)))
            shown, known = {"input": known}, operator.forward(known)
            known = known + self.noise * noise(known)
        shown["known"] = F.interpolate(known, size=[*sides], mode="nearest")
        return self._job(setup, inputs, known, shown, lambda rows: operator)


class SuperResolution(_Degraded):
    """Enlarges images: samples images whose blocks of pixels have these averages.

    Args:
        method: how.
        input: an image file or a folder of images.
        results: results per image.
        factor: of each side.
        degrade: whether the input is still to be reduced.
        noise: standard deviation of the noise in the small images.
    """

    def __init__(
        self,
        method: Restoration,
        input: str | Sequence[str] | None = None,
        *,
        results: int = 4,
        factor: int = 2,
        degrade: bool = False,
        noise: float = 0.0,
    ):
        super().__init__(method, input, results=results, degrade=degrade, noise=noise)
        self.factor = factor

    def operator(self, sides: Sequence[int]) -> Operator:
        return Downsample(self.factor, sides)


class Deblur(_Degraded):
    """Sharpens images that a Gaussian has blurred.

    Args:
        method: how.
        input: an image file or a folder of images.
        results: results per image.
        std: standard deviation of the Gaussian, in pixels.
        degrade: whether the input is still to be blurred.
        noise: standard deviation of the noise in the blurred images.
    """

    def __init__(
        self,
        method: Restoration,
        input: str | Sequence[str] | None = None,
        *,
        results: int = 4,
        std: float = 1.0,
        degrade: bool = False,
        noise: float = 0.02,
    ):
        super().__init__(method, input, results=results, degrade=degrade, noise=noise)
        self.std = std

    def operator(self, sides: Sequence[int]) -> Operator:
        return Blur(self.std, sides)
