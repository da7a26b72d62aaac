"""The edits of `sample.py edit=...` as a job: image to image, inversion and interpolation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ddpm_lightning.data.source import in_turn
from ddpm_lightning.editing import from_image, inverse_times, invert, late_times, slerp
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.ranges import require
from ddpm_lightning.runs.inputs import read_inputs
from ddpm_lightning.runs.sampling_setup import SamplingSetup
from ddpm_lightning.samplers import Step

__all__ = ["Edit", "ImageToImage", "Interpolate", "Invert", "Items", "Job"]


class Items(NamedTuple):
    """A batch of results: their rows, their positions in the row, and their noise."""

    rows: Tensor
    columns: Tensor
    noise: SeededNoise


@dataclass(frozen=True)
class Job:
    """An edit that is ready to run.

    Args:
        names: of the rows: input images, or the first one of each pair.
        results: per row.
        steps: Steps per batch.
        sample: yields the Steps of a batch, the last one with the results.
        shown: what the figure shows before the results, by title: images (N, C, H, W) in [−1, 1].
        shows_noise: whether x at t = T is shown, and saved.
        steps_once: further Steps of the first batch.
    """

    names: Sequence[str]
    results: int
    steps: int
    sample: Callable[[Items], Iterator[Step]]
    shown: Mapping[str, Tensor]
    shows_noise: bool = False
    steps_once: int = 0


class Edit(ABC):
    """An edit of images.

    Args:
        input: an image file or a folder of images.
        results: results per image.
    """

    def __init__(self, input: str | Sequence[str] | None = None, *, results: int = 4):
        require("results", results, "1..1000")
        self.input = input
        self.results = results

    @abstractmethod
    def prepare(self, setup: SamplingSetup, seed: int) -> Job:
        """Read and check the input.

        Raises:
            UserError: for input that cannot be used.
        """


class ImageToImage(Edit):
    """Adds noise to images, and samples from there.

    Args:
        input: an image file or a folder of images.
        results: results per image.
        strength: from 0, which changes nothing, to 1, which starts from noise.
    """

    def __init__(self, input: str | Sequence[str] | None = None, *, results: int = 4, strength: float = 0.5):
        super().__init__(input, results=results)
        require("strength", strength, "[0, 1]")
        self.strength = strength

    def prepare(self, setup: SamplingSetup, seed: int) -> Job:
        inputs = read_inputs(self.input, setup)
        steps = len(late_times(setup.sampler, setup.denoiser, self.strength)) - 1

        def sample(items: Items) -> Iterator[Step]:
            x0, y = (
                inputs.images[items.rows].to(setup.device),
                in_turn(setup.condition, items.rows.tolist(), setup.device),
            )
            yield Step(0, x0, x0, 0)
            yield from from_image(setup.sampler, setup.guided, x0, y, strength=self.strength, randn=items.noise)

        return Job(inputs.names, self.results, steps + 1, sample, {"input": inputs.images})


class Invert(Edit):
    """The noise of images, and the images that it makes again.

    Args:
        input: an image file or a folder of images.
    """

    def __init__(self, input: str | Sequence[str] | None = None):
        super().__init__(input, results=1)

    def prepare(self, setup: SamplingSetup, seed: int) -> Job:
        times = inverse_times(setup.sampler, setup.denoiser)
        inputs = read_inputs(self.input, setup)

        def sample(items: Items) -> Iterator[Step]:
            x0, y = (
                inputs.images[items.rows].to(setup.device),
                in_turn(setup.condition, items.rows.tolist(), setup.device),
            )
            for step in invert(setup.sampler, setup.guided, x0, y):
                yield step
            yield from setup.sampler.trajectory(setup.guided, step.x, y)

        return Job(inputs.names, 1, 2 * len(times), sample, {"input": inputs.images}, shows_noise=True)


class Interpolate(Edit):
    """Images between images, by interpolating their noise.

    Args:
        input: image files or a folder of images, which are inverted; None for seeded noise.
        results: images from each end to the next, both included.
        ends: number of seeded noises, without input.
    """

    def __init__(self, input: str | Sequence[str] | None = None, *, results: int = 8, ends: int = 2):
        require("results", results, "2..1000")
        require("ends", ends, "2..1000")
        super().__init__(input, results=results)
        self.ends = ends

    def prepare(self, setup: SamplingSetup, seed: int) -> Job:
        steps, once = len(inverse_times(setup.sampler, setup.denoiser)), 0
        if self.input is None:
            names: Sequence[str] = [f"noise{i}" for i in range(self.ends)]
            shown: dict[str, Tensor] = {}
            noises = [SeededNoise(seed, range(self.ends)).draw(setup.shape)]
        else:
            inputs = read_inputs(self.input, setup)
            names, noises, once = inputs.names, [], steps
            shown = {"from": inputs.images[:-1], "to": inputs.images[1:]}
        require("the number of images in edit.input", len(names), "2..")

        def sample(items: Items) -> Iterator[Step]:
            if not noises:
                y = in_turn(setup.condition, range(len(names)), setup.device)
                for step in invert(setup.sampler, setup.guided, inputs.images.to(setup.device), y):
                    yield step
                noises.append(step.x.cpu())
            share = items.columns / (self.results - 1)
            x = slerp(noises[0][items.rows], noises[0][items.rows + 1], share).to(setup.device)
            nearer = items.rows + (share > 0.5)
            y = in_turn(setup.condition, nearer.tolist(), setup.device)
            yield from setup.sampler.trajectory(setup.guided, x, y)

        return Job(names[:-1], self.results, steps, sample, shown, steps_once=once)
