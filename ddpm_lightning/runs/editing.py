"""What `sample.py edit=...` does."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import SeededNoise, as_pictures, save_image, save_png
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.runs.edits import Edit, Items, Job
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.names import weights_in_words
from ddpm_lightning.runs.out_dir import claim_out_dir, replace_files
from ddpm_lightning.runs.process_group import ProcessGroup
from ddpm_lightning.runs.sampling_setup import SamplingSetup
from ddpm_lightning.sheets import Picture, sheet, shortened
from ddpm_lightning.terminal import Activity

__all__ = ["edit_images"]

_FILES = re.compile(r"\d{3,}_.*_\d{3,}\.(png|tiff)|edit\.png|noise\.npy")
_ROWS, _COLUMNS = 16, 12  # of the figure
_LONGEST = 20  # letters of a name there
_RESULTS = 1 << 20  # result j of row i has the noise of image i·2²⁰ + j


def edit_images(config: DictConfig, setup: SamplingSetup, group: ProcessGroup) -> Path:
    """Edit images, write the results and one figure, and return their folder.

    Result j of input image i depends on the seed, i and j only, whatever the batch size and the device. Processes edit
    the batches in turn, and rank zero writes all files.

    Raises:
        UserError: for a setting or input that cannot be used.
    """
    _check(config, setup)
    parts = {"method": build("edit.method", config.edit.method)} if "method" in config.edit else {}
    edit: Edit = build("edit", config.edit, **parts)
    job = edit.prepare(setup, config.seed)
    out = claim_out_dir(config, setup.path, group, kind="edits", files=_FILES)
    results, noise = _run(job, config, setup, group)
    if group.rank == 0:
        with Activity("Writing the results"), replace_files(out, _FILES) as folder:
            facts = setup.facts(weights=config.weights, seed=config.seed)
            _write(folder, job, results, noise, setup, facts)
        made = f"{len(results):,} edited image{'s' * (len(results) > 1)}"
        print(f"Saved {made} to {out} ({weights_in_words(config.weights)} of {setup.path})")
    return out


def _check(config: DictConfig, setup: SamplingSetup) -> None:
    require_one_of("format", config.format, ["grid"], hint="edits are written as image files and one figure")
    if setup.denoiser.num_classes is not None and config.labels is None and config.guidance_scale != 0:
        raise UserError(
            "labels must name the label of each input image in turn, got null: give labels=[3], or guidance_scale=0 to edit "
            "without labels"
        )
    if setup.denoiser.has_null and config.condition is None and config.guidance_scale != 0:
        raise UserError(
            "condition must be a .npy or .npz file with a row for each input image, got null: give condition=FILE, or "
            "guidance_scale=0 to edit without a condition"
        )


def _run(job: Job, config: DictConfig, setup: SamplingSetup, group: ProcessGroup) -> tuple[Tensor, Tensor | None]:
    """All results in order, and their noise where the job shows it, on rank zero."""
    batches = torch.arange(len(job.names) * job.results).split(config.batch_size)
    collected: list[Tensor] = []
    total = len(batches) * job.steps + job.steps_once
    with Activity("editing", total=total, unit="steps") as activity:
        for first in range(0, len(batches), group.world_size):
            mine = None
            if first + group.rank < len(batches):
                mine = _batch(job, batches[first + group.rank], config.seed, setup, activity.advance)
            found = group.gather(mine)
            activity.advance(job.steps * (len(found) - 1))
            collected += found
    if not collected:
        return torch.empty(0), None
    together = torch.cat(collected, dim=1)
    return together[0], together[1] if job.shows_noise else None


def _batch(job: Job, numbers: Tensor, seed: int, setup: SamplingSetup, advance: Callable[[], Any]) -> Tensor:
    """The results of a batch, and below them x at t = T, (2, B, C, H, W) on the CPU."""
    rows, columns = numbers // job.results, numbers % job.results
    noise = SeededNoise(seed, (rows * _RESULTS + columns).tolist())
    top = torch.empty(0)
    for step in job.sample(Items(rows, columns, noise)):
        advance()
        if step.t == setup.denoiser.schedule.num_steps:
            top = step.x
    return torch.stack([step.x, top if job.shows_noise else step.x]).cpu()


def _write(
    out: Path, job: Job, results: Tensor, noise: Tensor | None, setup: SamplingSetup, facts: Mapping[str, str]
) -> None:
    values = setup.values
    ending = "tiff" if values.is_float else "png"
    for number, image in enumerate(values.array(values.denormalize(results))):
        row, column = divmod(number, job.results)
        name = f"{row:03d}_{job.names[row]}_{column:03d}.{ending}"
        save_image(image, out / name, {**facts, "input": job.names[row], "result": str(column)})
    if noise is not None:
        with replace_file(out / "noise.npy", "wb") as file:
            np.save(file, noise.numpy())
    picture = _figure(job, results, noise)
    save_png(picture.pixels, out / "edit.png", {**facts, **picture.facts})


def _figure(job: Job, results: Tensor, noise: Tensor | None) -> Picture:
    """A row for each input: what it is, what is known of it, and its results."""
    given = {**job.shown, **({} if noise is None else {"noise": noise / 3})}
    shown = min(job.results, _COLUMNS - len(given))
    made = results.unflatten(0, (-1, job.results))[:_ROWS, :shown]
    columns = [*(images[:_ROWS] for images in given.values()), *made.unbind(1)]
    heads = [*given, *(f"result {column}" for column in range(shown))]
    pictures = as_pictures(torch.stack(columns, dim=1).flatten(0, 1))
    names = [shortened(name, _LONGEST) for name in job.names[:_ROWS]]
    return sheet(pictures, columns=len(columns), names=names, heads=heads, column_breaks=[len(given)])
