"""A checkpoint's model with sampler, guidance, labels and device: what `sample.py` and `evaluate.py` share."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from ddpm_lightning import viewer
from ddpm_lightning.data.conditions import load_condition
from ddpm_lightning.data.source import Condition, in_turn, map_condition
from ddpm_lightning.data.values import Values, kind_of, values_of
from ddpm_lightning.denoiser import Denoiser, Guidance, Guided
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.runs.compiling import COMPILE, compile_blocks, is_compiled, uses_graphs
from ddpm_lightning.runs.graphs import graph_evaluations
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.learned_times import learned_settings
from ddpm_lightning.runs.loading import load_model, newest_checkpoint, run_dir_of
from ddpm_lightning.runs.names import names_of
from ddpm_lightning.runs.process_group import ProcessGroup
from ddpm_lightning.runs.processes import total_memory
from ddpm_lightning.runs.trials import refusal, times_of
from ddpm_lightning.samplers import Sampler, Step
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["SamplingSetup", "count_evaluations", "prepare_sampling"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingSetup:
    """All that an image's pixels depend on, but for the seed and the image's number.

    Args:
        path: the checkpoint.
        guided: its model with guidance, on the device.
        guidance: the settings of guidance.
        weaker: the model to be guided away from, if any.
        sampler: noise to image.
        labels: used in turn; None for a model without.
        condition: rows that are used in turn, the labels or another condition; None for a model without.
        data: the config of the data that the model was trained on, see `load_model`.
        device: where images are sampled.
        names: the sampler's and the schedule's names in conf/.
        times: the timesteps, first to last.
    """

    path: Path
    guided: Guided
    guidance: Guidance
    weaker: Denoiser | None
    sampler: Sampler
    labels: list[int] | None
    condition: Condition | None
    data: Mapping[str, Any]
    device: torch.device
    names: Mapping[str, str]
    times: Sequence[float]

    @property
    def steps(self) -> int:
        """Sampler steps per image."""
        return len(self.times) - 1

    @property
    def denoiser(self) -> Denoiser:
        """The model without guidance."""
        return self.guided.denoiser

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, (C, ...) of other data."""
        return (self.data["channels"], *self.data["image_size"])

    @property
    def kind(self) -> str:
        """What the model samples: "points" in the plane, 8-bit "images" or other "arrays"."""
        return kind_of(self.data)

    @property
    def values(self) -> Values:
        """The type and range of the data's values, which samples are given in."""
        return values_of(self.data)

    @property
    def evaluations(self) -> int:
        """Network evaluations per image; one with guidance and one without count as two."""
        used = self.condition is not None or self.weaker is not None
        return count_evaluations(self.sampler, self.denoiser.schedule, self.guidance if used else None)

    def seconds_per_evaluation(self, batch_size: int) -> float:
        """Measured seconds of one network evaluation of one image in a batch of this size."""
        T = self.denoiser.schedule.num_steps
        x, t = torch.zeros(batch_size, *self.shape, device=self.device), torch.tensor(T, device=self.device)
        y = in_turn(self.condition, range(batch_size), self.device)
        with torch.no_grad():
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                float(self.denoiser(x, t, y).sum())
        return (time.perf_counter() - started) / batch_size

    def samples(self, seed: int, indices: Sequence[int], advance: Callable[[], Any]) -> Tensor:
        """Samples with these numbers (B, C, ...), on the CPU, as the data are stored, such as uint8; `advance` is called after each step."""
        last = deque(self.trajectory(seed, indices, advance), maxlen=1)[0]
        return self.values.denormalize(last.x).cpu()

    def trajectory(self, seed: int, indices: Sequence[int], advance: Callable[[], Any]) -> Iterator[Step]:
        """The way there: each x_t beside its estimate of x_0, see `viewer.beside_estimates`."""
        noise = SeededNoise(seed, indices)
        x, y = noise.draw(self.shape).to(self.device), in_turn(self.condition, indices, self.device)

        def steps() -> Iterator[Step]:
            for step in self.sampler.trajectory(self.guided, x, y, randn=noise):
                advance()
                yield step

        return viewer.beside_estimates(self.times[0], x, steps())

    def facts(self, *, weights: str, seed: int) -> dict[str, str]:
        """How images are sampled, by name, for a page or the metadata of a file."""
        facts = {"checkpoint": str(self.path), "weights": weights}
        return facts | viewer.facts_of(
            self.sampler, self.steps, self.denoiser, seed=seed, guidance=self.guidance, names=self.names
        )


def prepare_sampling(config: DictConfig, group: ProcessGroup) -> SamplingSetup:
    """Load a checkpoint's model and set up sampler, guidance, labels and device, as the config says.

    Raises:
        UserError: for a checkpoint or a setting that cannot be used.
    """
    path = newest_checkpoint() if config.ckpt_path is None else Path(str(config.ckpt_path))
    denoiser, data, schedule = load_model(path, weights=config.weights)
    _check_memory(config, (data["channels"], *data["image_size"]))
    device = _device(config.device, group.local_rank)
    torch.set_float32_matmul_precision("high")  # as in training, so that its images are sampled again bit by bit
    denoiser = denoiser.to(device)
    require_one_of("compile", config.compile, COMPILE)
    if uses_graphs(config.compile, device):
        graph_evaluations(denoiser.model, strangers=config.compile == "graphs")
    if is_compiled(config.compile):
        compile_blocks(denoiser.model, device)
    labels = _labels(config, denoiser, data.get("class_names") or ())
    guidance = Guidance(config.guidance_scale, config.guidance_interval, config.guidance_rescale)
    weaker = _weaker(config, device)
    extra = [name for name in ("guidance_interval", "guidance_rescale", "autoguidance") if config[name]]
    if guidance.scale == 1 and extra and group.rank == 0:
        log.warning("%s has no effect with guidance_scale=1", " and ".join(extra))
    guided = guidance.of(denoiser, weaker)
    condition = torch.tensor(labels) if labels is not None else _condition(config, denoiser, path, data)
    if config.sampler.get("times") == "learned":
        config.sampler.update(learned_settings(path, denoiser, config.sampler, weights=config.weights))
    sampler: Sampler = build("sampler", config.sampler)
    names = names_of(sampler=config.sampler, schedule=schedule)
    times = times_of(sampler, denoiser)
    return SamplingSetup(path, guided, guidance, weaker, sampler, labels, condition, data, device, names, times)


def _weaker(config: DictConfig, device: torch.device) -> Denoiser | None:
    """The weaker model of autoguidance."""
    if config.autoguidance is None:
        return None
    return load_model(Path(str(config.autoguidance)), weights=config.weights, key="autoguidance")[0].to(device)


def count_evaluations(sampler: Sampler, schedule: NoiseSchedule, guidance: Guidance | None = None) -> int:
    """Network evaluations per image with this guidance, None without a condition; see `SamplingSetup.evaluations`."""
    counter = _Nothing(schedule, guidance)
    sampler(counter, torch.zeros(1, 1, 1, 1, device=schedule.alpha_bar.device))
    return counter.evaluations


@dataclass
class _Nothing:
    """A denoiser that computes nothing, to count evaluations with."""

    schedule: NoiseSchedule
    guidance: Guidance | None
    evaluations: int = 0

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        self.evaluations += 1 if self.guidance is None else self.guidance.evaluations(self.schedule, t)
        return x_t

    def estimate(self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None) -> Any:
        return self(x_t, t, y), x_t


def _check_memory(config: DictConfig, shape: tuple[int, ...]) -> None:
    """Refuse a batch whose images alone, without the network's activations, take a quarter of the memory."""
    count, held = min(config.batch_size, config.num_samples), total_memory()
    if (size := 4 * count * math.prod(shape)) > held / 4:
        raise UserError(
            f"batch_size={config.batch_size}: {count} images of {list(shape)} take {size / 2**30:,.0f} GiB, but this machine has "
            f"{held / 2**30:,.0f} GiB: use a smaller batch_size"
        )


def _labels(config: DictConfig, denoiser: Denoiser, names: Sequence[str]) -> list[int] | None:
    """The labels to use in turn: those of the config, by number or by name, or all that the model knows."""
    classes = denoiser.num_classes
    if classes is None:
        require_one_of("labels", config.labels, [None], hint="the model was trained without labels")
        return None
    require_one_of(
        "condition", config.condition, [None], hint="the model was trained with labels, so choose labels=[...]"
    )
    if config.labels is None:
        return list(range(classes))
    labels = list(config.labels) if isinstance(config.labels, ListConfig) else [config.labels]
    if not labels:
        raise UserError("labels must be a list of at least one label, or null for all, got []")
    labels = [names.index(label) if label in names else label for label in labels]
    for index, label in enumerate(labels):
        if isinstance(label, str) and names:
            require_one_of(f"labels[{index}]", label, [*names, f"an integer below {classes}"])
        require(f"labels[{index}]", label, f"0..{classes - 1}")
    return labels


def _condition(config: DictConfig, denoiser: Denoiser, checkpoint: Path, data: Mapping[str, Any]) -> Condition | None:
    """The conditions of a model that has others than labels: those of the config's file, or else of the run's own figures."""
    path = config.condition
    if path is None and denoiser.has_null:
        path = next((run_dir_of(checkpoint) / "samples").glob("condition.np[yz]"), None)
        if path is None:
            raise UserError(
                "condition must be a .npy or .npz file with a row for each sample, got null: the model was trained with conditions"
            )
    if path is None:
        return None
    condition = load_condition(str(path))
    shape = (data["channels"], *data["image_size"])
    if words := refusal(denoiser, shape, map_condition(lambda rows: rows[:1], condition)):
        if not denoiser.has_null:
            raise UserError(f"condition must be null, got {path}: the model was trained without conditions")
        raise UserError(f"condition={path} does not fit the model: {words}")
    return condition


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
        raise UserError(f"device={name} is not available on this machine: choose from auto, {choices}") from error
