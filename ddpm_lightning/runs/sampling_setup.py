"""A checkpoint's model with sampler, guidance, labels and device: what `sample.py` and `evaluate.py` share."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from ddpm_lightning.data.source import Condition
from ddpm_lightning.denoiser import Denoiser, Guided
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import SeededNoise, labels_in_turn, to_uint8
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.run_folder import refuse_pipes
from ddpm_lightning.runs.build import compile_model
from ddpm_lightning.runs.instantiate import build, of_points
from ddpm_lightning.runs.loading import load_model, newest_checkpoint
from ddpm_lightning.runs.process_group import ProcessGroup
from ddpm_lightning.runs.processes import total_memory
from ddpm_lightning.runs.trials import times_of
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["SamplingSetup", "count_evaluations", "make_out_dir", "prepare_sampling"]


@dataclass(frozen=True)
class SamplingSetup:
    """All that an image's pixels depend on, but for the seed and the image's number.

    Args:
        path: the checkpoint.
        guided: its model with guidance, on the device.
        sampler: noise to image.
        labels: used in turn; None for a model without.
        data: the config of the data that the model was trained on, see `load_model`.
        device: where images are sampled.
        steps: sampler steps per image.
    """

    path: Path
    guided: Guided
    sampler: Sampler
    labels: list[int] | None
    data: Mapping[str, Any]
    device: torch.device
    steps: int

    @property
    def denoiser(self) -> Denoiser:
        """The model without guidance."""
        return self.guided.denoiser

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return (self.data["channels"], *self.data["image_size"])

    @property
    def points(self) -> bool:
        """Whether the model samples points in the plane rather than images."""
        return of_points(self.data)

    @property
    def evaluations(self) -> int:
        """Network evaluations per image; one with guidance and one without count as two."""
        scale = None if self.labels is None else self.guided.scale
        return count_evaluations(self.sampler, self.denoiser.schedule, scale)

    def seconds_per_evaluation(self, batch_size: int) -> float:
        """Measured seconds of one network evaluation of one image in a batch of this size."""
        T = self.denoiser.schedule.num_steps
        x, t = torch.zeros(batch_size, *self.shape, device=self.device), torch.tensor(T, device=self.device)
        y = None if self.labels is None else torch.zeros(batch_size, dtype=torch.long, device=self.device)
        with torch.no_grad():
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                float(self.denoiser(x, t, y).sum())
        return (time.perf_counter() - started) / batch_size

    def samples(self, seed: int, indices: Sequence[int], advance: Callable[[], Any]) -> Tensor:
        """Samples with these numbers, on the CPU: uint8 images (B, C, H, W), or float32 points; `advance` is called after each step."""
        noise = SeededNoise(seed, indices)
        x, y = noise.draw(self.shape).to(self.device), labels_in_turn(indices, self.labels)
        y = None if y is None else y.to(self.device)
        for step in self.sampler.trajectory(self.guided, x, y, randn=noise):
            x = step.x
            advance()
        return (x if self.points else to_uint8(x)).cpu()


def prepare_sampling(config: DictConfig, group: ProcessGroup) -> SamplingSetup:
    """Load a checkpoint's model and set up sampler, guidance, labels and device, as the config says.

    Raises:
        UserError: for a checkpoint or a setting that cannot be used.
    """
    require("seed", config.seed, "0..")
    path = newest_checkpoint() if config.ckpt_path is None else Path(str(config.ckpt_path))
    denoiser, data = load_model(path, weights=config.weights)
    _check_memory(config, (data["channels"], *data["image_size"]))
    device = _device(config.device, group.local_rank)
    torch.set_float32_matmul_precision("high")  # as in training, so that its images are sampled again bit by bit
    denoiser = denoiser.to(device)
    if config.compile:
        compile_model(denoiser, device)
    labels, guided = _labels(config, denoiser), Guided(denoiser, config.guidance_scale)
    sampler: Sampler = build("sampler", config.sampler)
    steps = len(times_of(sampler, denoiser)) - 1
    return SamplingSetup(path, guided, sampler, labels, data, device, steps)


def make_out_dir(out: Path, *, run_dir: Path | None = None) -> None:
    """Make the folder for the results, before the work rather than after it.

    Args:
        out: the folder.
        run_dir: the run's folder, for an `out` that the user has not named: no link may lead out of it.

    Raises:
        UserError: for a folder that cannot be made.
    """
    if run_dir is not None:
        if not out.resolve().is_relative_to(run_dir.resolve()):
            raise UserError(
                f"{out} is a link to {out.resolve()}, outside of its run's folder: remove it, or give out_dir=..."
            )
        refuse_pipes(out, and_links_out=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out_dir={out} cannot be made ({error.strerror}): give another folder") from error


def count_evaluations(sampler: Sampler, schedule: NoiseSchedule, scale: float | None = None) -> int:
    """Network evaluations per image with this scale of guidance, None without labels; see `SamplingSetup.evaluations`."""
    x = torch.zeros(1, 1, 1, 1, device=schedule.alpha_bar.device)
    for step in sampler.trajectory(_Nothing(schedule), x):
        count = step.evaluations
    return count * (1 if scale in (None, 0, 1) else 2)


@dataclass
class _Nothing:
    """A denoiser that computes nothing, to count evaluations with."""

    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        return x_t

    def estimate(self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None) -> Any:
        return x_t, x_t


def _check_memory(config: DictConfig, shape: tuple[int, ...]) -> None:
    """Refuse a batch whose images alone, without the network's activations, take a quarter of the memory."""
    count, held = min(config.batch_size, config.num_samples), total_memory()
    if (size := 4 * count * math.prod(shape)) > held / 4:
        raise UserError(
            f"batch_size={config.batch_size}: {count} images of {list(shape)} take {size / 2**30:,.0f} GiB, and this machine has "
            f"{held / 2**30:,.0f}: give a smaller number"
        )


def _labels(config: DictConfig, denoiser: Denoiser) -> list[int] | None:
    """The labels to use in turn: those of the config, or all that the model knows."""
    classes = denoiser.num_classes
    if classes is None:
        require_one_of("labels", config.labels, [None], hint="the model was trained without labels")
        return None
    if config.labels is None:
        return list(range(classes))
    labels = list(config.labels) if isinstance(config.labels, ListConfig) else [config.labels]
    require("the number of labels", len(labels), "1..")
    for label in labels:
        require("labels", label, f"0..{classes - 1}")
    return labels


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
