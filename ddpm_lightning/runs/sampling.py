"""What `sample.py` does."""

import os
import re
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.errors import UserError
from ddpm_lightning.images import grid, labels_in_turn, rows_by_label, save_png
from ddpm_lightning.runs.drawing import make_out_dir, prepare
from ddpm_lightning.runs.instantiate import check_positive
from ddpm_lightning.runs.loading import run_dir_of
from ddpm_lightning.runs.process_group import Ranks, ranks

__all__ = ["sample"]


def sample(config: DictConfig) -> Path:
    """Draw images, or points, from a checkpoint, and return the folder that they were written to.

    Image i's noise depends on the seed and on i only, whatever the batch size and the device. The processes that torchrun
    or SLURM started draw the batches in turn, and rank zero writes them all.

    Raises:
        UserError: where the checkpoint or a setting will not do.
    """
    check_positive("num_samples", config.num_samples)
    check_positive("batch_size", config.batch_size)
    if not isinstance(config.overwrite, bool):
        raise UserError(f"overwrite={config.overwrite} is neither true nor false: give one of them")
    if config.format not in ("grid", "png", "npz"):
        raise UserError(f"format={config.format} is unknown: choose grid, png or npz")
    with ranks() as mine:
        return _sample(config, mine)


def _sample(config: DictConfig, mine: Ranks) -> Path:
    drawing = prepare(config, mine)
    if drawing.points and config.format == "png":
        raise UserError("format=png is for images, and the model draws points: choose grid or npz")
    beside = run_dir_of(drawing.path) / f"samples_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    out = beside if config.out_dir is None else Path(str(config.out_dir))
    if mine.rank == 0:
        _refuse_used(out, overwrite=config.overwrite)
        make_out_dir(out, run_dir=run_dir_of(drawing.path) if config.out_dir is None else None)

    images, drawn_labels = [], labels_in_turn(range(config.num_samples), drawing.labels)
    batches = torch.arange(config.num_samples).split(config.batch_size)
    silent = None if mine.rank == 0 else True
    with tqdm(
        total=len(batches) * drawing.steps, unit="step", desc="sampling", disable=silent, dynamic_ncols=True
    ) as progress:
        for number, indices in enumerate(batches):
            owner, drawn = number % mine.world_size, None
            if owner == mine.rank:
                drawn = drawing.samples(config.seed, indices.tolist(), progress.update)
            dtype = torch.float32 if drawing.points else torch.uint8
            drawn = mine.to_zero(drawn, owner, shape=(len(indices), *drawing.shape), dtype=dtype)
            if drawn is not None:
                images.append(drawn)
                progress.update(drawing.steps * (owner != 0))
    if mine.rank:
        return out

    with tempfile.TemporaryDirectory(prefix=".", dir=out) as name:  # all of it or nothing
        if drawing.points:
            _write_points(torch.cat(images), drawn_labels, Path(name), config.format)
        else:
            _write(torch.cat(images), drawn_labels, drawing.labels, Path(name), config.format)
        for path in _ours(out):
            path.unlink()
        for path in Path(name).iterdir():
            os.replace(path, out / path.name)
    print(
        f"{config.num_samples} {'points' if drawing.points else 'images'} from the {config.weights} weights of {drawing.path}, "
        f"{drawing.steps} steps each: {out}"
    )
    return out


def _ours(out: Path) -> list[Path]:
    """What an earlier sampling has put into a folder."""
    names = re.compile(r"\d{5,}\.png|grid\.png|scatter\.png|labels\.csv|samples\.npz", re.ASCII)
    return [path for path in out.glob("*") if names.fullmatch(path.name)]


def _refuse_used(out: Path, *, overwrite: bool) -> None:
    if (found := _ours(out)) and not overwrite:
        raise UserError(
            f"out_dir={out} holds samples already, such as {found[0].name}: give another folder, or overwrite=true to put these in "
            "their place"
        )


def _write(images: Tensor, drawn: Tensor | None, labels: list[int] | None, out: Path, form: str) -> None:
    if form == "grid":
        save_png(grid(images) if labels is None else rows_by_label(images, len(labels)), out / "grid.png")
    elif form == "png":
        for i, image in enumerate(images):
            save_png(image, out / f"{i:05d}.png")
        if drawn is not None:
            rows = [f"{i:05d}.png,{label}" for i, label in enumerate(drawn.tolist())]
            (out / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    else:
        _save_arrays(out, drawn, images=images.permute(0, 2, 3, 1))


def _write_points(points: Tensor, drawn: Tensor | None, out: Path, form: str) -> None:
    if form == "grid":
        from ddpm_lightning.plots import Panel, draw_points  # and with it matplotlib

        save_png(draw_points([[Panel(f"{len(points):,} generated points", points, drawn)]]), out / "scatter.png")
    else:
        _save_arrays(out, drawn, points=points.flatten(1))


def _save_arrays(out: Path, drawn: Tensor | None, **samples: Tensor) -> None:
    arrays = samples if drawn is None else {**samples, "labels": drawn}
    np.savez_compressed(out / "samples.npz", **{name: array.numpy() for name, array in arrays.items()})  # type: ignore[arg-type]
