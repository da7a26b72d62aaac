"""A checkpoint's model made ready to draw, which `sample.py` and `evaluate.py` share."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from ddpm_lightning.denoiser import Denoiser, Guided
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import SeededNoise, labels_in_turn, to_uint8
from ddpm_lightning.ranges import is_integer, within
from ddpm_lightning.run_folder import refuse_links_out
from ddpm_lightning.runs.build import compile_model
from ddpm_lightning.runs.instantiate import build, of_points
from ddpm_lightning.runs.loading import load_model, newest_checkpoint
from ddpm_lightning.runs.process_group import Ranks
from ddpm_lightning.runs.trials import times_of
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["Drawing", "count_evaluations", "make_out_dir", "prepare"]


@dataclass(frozen=True)
class Drawing:
    """All that an image's pixels depend on, but for the seed and the image's number.

    Args:
        path: the checkpoint.
        denoiser: its model, on the device.
        guided: the same with guidance.
        sampler: noise to image.
        labels: drawn in turn; None for a model without.
        data: the config of the data that the model was trained on, see `load_model`.
        device: where it is drawn.
        steps: sampler steps per image.
    """

    path: Path
    denoiser: Denoiser
    guided: Guided
    sampler: Sampler
    labels: list[int] | None
    data: Mapping[str, Any]
    device: torch.device
    steps: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return (self.data["channels"], *self.data["image_size"])

    @property
    def evaluations(self) -> int:
        """Network evaluations per image; one with guidance and one without count as two."""
        scale = None if self.labels is None else self.guided.scale
        return count_evaluations(self.sampler, self.denoiser.schedule, scale, device=self.device)

    def seconds_per_evaluation(self, batch_size: int) -> float:
        """What one network evaluation of one image of such a batch takes, measured."""
        T = self.denoiser.schedule.num_steps
        x, t = torch.zeros(batch_size, *self.shape, device=self.device), torch.tensor(T, device=self.device)
        y = None if self.labels is None else torch.zeros(batch_size, dtype=torch.long, device=self.device)
        with torch.no_grad():
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                float(self.denoiser(x, t, y).sum())
        return (time.perf_counter() - started) / batch_size

    @property
    def points(self) -> bool:
        """Whether the model draws points in the plane, and not images."""
        return of_points(self.data)

    def samples(self, seed: int, indices: Sequence[int], advance: Callable[[], Any]) -> Tensor:
        """Those with these numbers, on the CPU: uint8 images (B, C, H, W), or float32 points; `advance` is called after each step."""
        noise = SeededNoise(seed, indices)
        x, y = noise.draw(self.shape).to(self.device), labels_in_turn(indices, self.labels)
        y = None if y is None else y.to(self.device)
        for step in self.sampler.trajectory(self.guided, x, y, randn=noise):
            x = step.x
            advance()
        return (x if self.points else to_uint8(x)).cpu()


def prepare(config: DictConfig, mine: Ranks) -> Drawing:
    """Checkpoint, sampler, guidance, labels and device, as the config says.

    Raises:
        UserError: where the checkpoint or a setting will not do.
    """
    if not is_integer(config.seed, "[0, inf)"):
        raise UserError(f"seed={config.seed} is no seed: give a whole number, 0 or more")
    path = newest_checkpoint() if config.ckpt_path is None else Path(str(config.ckpt_path))
    denoiser, data = load_model(path, weights=config.weights)
    _check_memory(config, (data["channels"], *data["image_size"]))
    device = _device(config.device, mine.local_rank)
    torch.set_float32_matmul_precision("high")  # as in training, so that its pictures are drawn again to the bit
    denoiser = denoiser.to(device)
    if config.compile:
        compile_model(denoiser, device)
    labels, guided = _labels(config, denoiser), _guided(config, denoiser)
    sampler: Sampler = build("sampler", config.sampler)
    try:
        sampler.check(learned_variance=denoiser.learned_variance)
    except ValueError as error:
        raise UserError(f"sampler: {error}") from error
    steps = len(times_of(sampler, denoiser.schedule)) - 1
    return Drawing(path, denoiser, guided, sampler, labels, data, device, steps)


def make_out_dir(out: Path, *, run_dir: Path | None = None) -> None:
    """Make the folder that the results go to, before the work and not after it.

    Args:
        out: the folder.
        run_dir: the run's, where it was not the user who named the folder: no link may lead out of it.

    Raises:
        UserError: where it cannot be made.
    """
    if run_dir is not None:
        if not out.resolve().is_relative_to(run_dir.resolve()):
            raise UserError(
                f"{out} is a link to {out.resolve()}, outside of its run's folder: remove it, or give out_dir=..."
            )
        refuse_links_out(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out_dir={out} cannot be made ({error.strerror}): give another folder") from error


def count_evaluations(
    sampler: Sampler, schedule: NoiseSchedule, scale: float | None = None, *, device: torch.device | None = None
) -> int:
    """Network evaluations per image, see `Drawing.evaluations`.

    Args:
        sampler: noise to image.
        schedule: on the device.
        scale: of guidance; None without labels.
        device: where it is counted; None for the CPU.
    """
    for step in sampler.trajectory(_Nothing(schedule), torch.zeros(1, 1, 1, 1, device=device)):
        count = step.evaluations
    return count * (1 if scale in (None, 0, 1) else 2)


class _Nothing:
    """A denoiser that computes nothing, to count evaluations with."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x_t

    def estimate(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, *, u: Tensor | None = None) -> Any:
        return x_t, x_t


def _check_memory(config: DictConfig, shape: tuple[int, ...]) -> None:
    """Refuse a batch of which the images alone, without what the network computes of them, take a quarter of the memory."""
    count, held = min(config.batch_size, config.num_samples), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (size := 4 * count * math.prod(shape)) > held / 4:
        raise UserError(
            f"batch_size={config.batch_size}: {count} images of {list(shape)} take {size / 2**30:,.0f} GiB, and this machine has "
            f"{held / 2**30:,.0f}: give a smaller number"
        )


def _labels(config: DictConfig, denoiser: Denoiser) -> list[int] | None:
    """The labels to draw in turn: those asked for, or all that the model knows."""
    classes, asked = denoiser.num_classes, config.labels
    if asked is None:
        return None if classes is None else list(range(classes))
    if classes is None:
        raise UserError(f"labels={asked}: the model was trained without labels; leave labels at null")
    wanted = list(asked) if isinstance(asked, ListConfig) else [asked]
    if not wanted or any(not is_integer(n, "[0, inf)") or n >= classes for n in wanted):
        raise UserError(f"labels={asked} will not do: give a list of the model's labels, from 0 to {classes - 1}")
    return wanted


def _guided(config: DictConfig, denoiser: Denoiser) -> Guided:
    scale = config.guidance_scale
    if not within(scale, "[0, inf)"):
        raise UserError(f"guidance_scale={scale} will not do: give a number, 0 or more")
    try:
        return Guided(denoiser, scale)
    except ValueError as error:
        raise UserError(str(error)) from error


def _device(name: str, local_rank: int) -> torch.device:
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, there in here.items() if there]
    if name == "auto":
        name = usable[0]
    if name == "cuda" and here["cuda"]:
        return torch.device("cuda", local_rank % torch.cuda.device_count())  # SLURM may show each task one GPU
    try:
        return torch.empty(0, device=str(name)).device
    except (RuntimeError, AssertionError) as error:
        choices = ", ".join(usable)
        raise UserError(f"device={name} is not on this machine: choose from auto, {choices}") from error
