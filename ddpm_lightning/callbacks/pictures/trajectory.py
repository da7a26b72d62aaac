"""The way from noise to image, as a strip, an animation and a page to step through."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ddpm_lightning import viewer
from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.data.source import is_labels
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import as_pictures, save_gif
from ddpm_lightning.ranges import require
from ddpm_lightning.samplers import Step
from ddpm_lightning.sheets import Picture, sheet

__all__ = ["Trajectory"]

_X_T, _ESTIMATE = "xₜ", "x̂₀(xₜ)"
_CELL = 80  # pixels of an image in the animation, at most


class Trajectory(Pictures):
    """For each sample two rows: x_t from x_T to x_0, and below each x_t the estimate of x_0 that is made from it.

    The same as an animation, x_t on the left and the estimate on the right, goes to `<folder>/trajectory_<step>.gif` and as
    `samples/trajectory_animation` to every logger that takes videos. For images, training ends with a page to step through,
    `<folder>/reverse_process_<step>.html`.

    Args:
        num_columns: points on the way that are shown, the first and the last included; the others are those of `Pictures`.
        num_frames: pictures of the animation, likewise; None for no animation.
        viewer_frames: timesteps on the page, likewise; None for no page. Large images have fewer, see `viewer.choose_frames`.
    """

    name = "trajectory"
    doing = "sampling a trajectory"

    def __init__(
        self,
        *args: Any,
        num_columns: int = 10,
        num_frames: int | None = 26,
        viewer_frames: int | None = 60,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        require("num_columns", num_columns, "2..1000")
        require("num_frames", num_frames, "2..1000", optional=True)
        require("viewer_frames", viewer_frames, "2..1000", optional=True)
        self.num_columns = num_columns
        self.num_frames = num_frames
        self.viewer_frames = viewer_frames
        self._page: _Page | None = None

    def draw(self, pl_module: Any) -> Picture:
        steps = list(self.steps(pl_module))
        if pl_module.trainer.is_global_zero:
            if self.num_frames is not None:
                self._animate(pl_module, [steps[i] for i in viewer.evenly(len(steps), self.num_frames)])
            if self.viewer_frames is not None and viewer.is_viewable(self.shape):
                self._page = self._view(pl_module, steps, self.viewer_frames)
        shown = [steps[i] for i in viewer.evenly(len(steps), self.num_columns)]
        cells = torch.stack([torch.stack([step.x, step.x0], dim=1) for step in shown], dim=2)
        return sheet(
            as_pictures(cells.flatten(0, 2)),
            columns=len(shown),
            names=[text for name in self._names(pl_module) for text in (f"{name}   {_X_T}", _ESTIMATE)],
            heads=[f"t = {step.t:.7g}" for step in shown],
            row_breaks=range(2, 2 * self.num_samples, 2),
        )

    def _names(self, pl_module: Any) -> list[str]:
        """One name for each sample: its label, or else its number."""
        labels = self.captions(pl_module)
        return [labels[i % len(labels)] if labels else f"sample {i}" for i in range(self.num_samples)]

    def _animate(self, pl_module: Any, shown: list[Step]) -> None:
        trainer, names = pl_module.trainer, self._names(pl_module)
        path = self.folder / f"{self.name}_{trainer.global_step:07d}.gif"
        save_gif([_frame(step, names) for step in shown], path)
        for logger in trainer.loggers:
            if log_video := getattr(logger, "log_video", None):
                log_video(f"samples/{self.name}_animation", [str(path)], step=trainer.global_step)

    def _view(self, pl_module: Any, steps: Sequence[Step], most: int) -> "_Page":
        count = min(self.num_samples, viewer.most_images(self.shape))
        times, schedule = [step.t for step in steps], pl_module.denoiser.schedule
        frames = viewer.choose_frames(times, schedule, num_images=count, shape=self.shape, most=most)
        shown = (Step(step.t, step.x[:count], step.x0[:count], step.evaluations) for step in steps)
        return _Page(pl_module.trainer.global_step, viewer.pixels_of(shown, frames), frames, self.facts(pl_module))

    def finish(self, trainer: Trainer) -> None:
        if (page := self._page) is None:
            return
        labels = self.condition.tolist() if isinstance(self.condition, Tensor) and is_labels(self.condition) else None
        captions = viewer.captions_of(len(page.pixels), labels)
        text = viewer.render(page.pixels, page.frames, facts=page.facts, captions=captions)
        self.folder.mkdir(parents=True, exist_ok=True)
        prefix = "raw_" if self.weights == "raw" else ""
        with replace_file(self.folder / f"{prefix}reverse_process_{page.step:07d}.html") as file:
            file.write(text)


class _Page(NamedTuple):
    """What a page is written of, and the optimizer step that it shows."""

    step: int
    pixels: Tensor
    frames: Sequence[viewer.Frame]
    facts: Mapping[str, str]


def _frame(step: Step, names: Sequence[str]) -> Tensor:
    """A frame of the animation."""
    pairs = torch.stack([step.x, step.x0], dim=1).flatten(0, 1)
    return sheet(
        as_pictures(pairs), columns=2, names=names, heads=[_X_T, _ESTIMATE], title=f"t = {step.t:.7g}", cell=_CELL
    ).pixels
