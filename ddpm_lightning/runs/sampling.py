"""What `sample.py` does."""

from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.denoiser import Denoiser, Guided
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import SeededNoise, grid, labels_in_turn, rows_by_label, save_png, to_uint8
from ddpm_lightning.runs.build import build, check_whole, compile_model, of_points, times_of
from ddpm_lightning.runs.checkpoint import load_model, newest_checkpoint, run_dir_of
from ddpm_lightning.runs.ranks import Ranks, ranks
from ddpm_lightning.samplers import Sampler

__all__ = ["sample"]


def sample(config: DictConfig) -> Path:
    """Draw images, or points, from a checkpoint, and return the folder that they were written to.

    Image i's noise depends on the seed and on i only, whatever the batch size and the device. The processes that torchrun
    or SLURM started draw the batches in turn, and rank zero writes them all.

    Raises:
        UserError: where the checkpoint or a setting will not do.
    """
    check_whole("num_samples", config.num_samples)
    check_whole("batch_size", config.batch_size)
    if not isinstance(config.seed, int) or isinstance(config.seed, bool) or config.seed < 0:
        raise UserError(f"seed={config.seed} is no seed: give a whole number, 0 or more")
    if config.format not in ("grid", "png", "npz"):
        raise UserError(f"format={config.format} is unknown: choose grid, png or npz")
    with ranks() as mine:
        return _sample(config, mine)


def _sample(config: DictConfig, mine: Ranks) -> Path:
    path = newest_checkpoint() if config.ckpt_path is None else Path(str(config.ckpt_path))
    denoiser, data = load_model(path, weights=config.weights)
    points = of_points(data)
    if points and config.format == "png":
        raise UserError("format=png is for images, and the model draws points: choose grid or npz")
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
    shape = (data["channels"], *data["image_size"])

    beside = run_dir_of(path) / f"samples_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    out = beside if config.out_dir is None else Path(str(config.out_dir))
    try:
        if mine.rank == 0:
            out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        raise UserError(f"out_dir={out} cannot be made ({error.strerror}): give another folder") from error

    images, drawn_labels = [], labels_in_turn(range(config.num_samples), labels)
    batches = torch.arange(config.num_samples).split(config.batch_size)
    silent = None if mine.rank == 0 else True
    with tqdm(total=len(batches) * steps, unit="step", desc="sampling", disable=silent, dynamic_ncols=True) as progress:
        for number, indices in enumerate(batches):
            owner, drawn = number % mine.world_size, None
            if owner == mine.rank:
                noise = SeededNoise(config.seed, indices.tolist())
                x = noise.draw(shape).to(device)
                y = None if drawn_labels is None else drawn_labels[indices].to(device)
                for step in sampler.trajectory(guided, x, y, randn=noise):
                    x = step.x
                    progress.update()
                drawn = (x if points else to_uint8(x)).cpu()
            dtype = torch.float32 if points else torch.uint8
            drawn = mine.to_zero(drawn, owner, shape=(len(indices), *shape), dtype=dtype)
            if drawn is not None:
                images.append(drawn)
                progress.update(steps * (owner != 0))
    if mine.rank:
        return out

    if points:
        _write_points(torch.cat(images), drawn_labels, out, config.format)
    else:
        _write(torch.cat(images), drawn_labels, labels, out, config.format)
    print(
        f"{config.num_samples} {'points' if points else 'images'} from the {config.weights} weights of {path}, {steps} steps each: {out}"
    )
    return out


def _labels(config: DictConfig, denoiser: Denoiser) -> list[int] | None:
    """The labels to draw in turn: those asked for, or all that the model knows."""
    classes, asked = denoiser.num_classes, config.labels
    if asked is None:
        return None if classes is None else list(range(classes))
    if classes is None:
        raise UserError(f"labels={asked}: the model was trained without labels; leave labels at null")
    wanted = list(asked) if isinstance(asked, ListConfig) else [asked]
    if not wanted or any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < classes for n in wanted):
        raise UserError(f"labels={asked} will not do: give a list of the model's labels, from 0 to {classes - 1}")
    return wanted


def _guided(config: DictConfig, denoiser: Denoiser) -> Guided:
    scale = config.guidance_scale
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 <= scale < float("inf"):
        raise UserError(f"guidance_scale={scale} will not do: give a number, 0 or more")
    try:
        return Guided(denoiser, scale)
    except ValueError as error:
        raise UserError(str(error)) from error


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


def _device(name: str, local_rank: int) -> torch.device:
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, there in here.items() if there]
    if name == "auto":
        name = usable[0]
    if name == "cuda" and here["cuda"]:
        return torch.device("cuda", local_rank)
    try:
        return torch.empty(0, device=str(name)).device
    except (RuntimeError, AssertionError) as error:
        choices = ", ".join(usable)
        raise UserError(f"device={name} is not on this machine: choose from auto, {choices}") from error
