"""What `python -m ddpm_lightning likelihood` does: a checkpoint's bits per dimension, term by term."""

import csv
import json
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.chunks import compute_chunks, missing_chunks, read_chunks
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import SeededNoise, from_uint8
from ddpm_lightning.likelihood import VARIANCES, BitsPerDim, bits_per_dim
from ddpm_lightning.plots import draw_bits_by_step
from ddpm_lightning.runs.drawing import make_out_dir
from ddpm_lightning.runs.instantiate import build, check_positive, of_points
from ddpm_lightning.runs.loading import data_config_of, denoiser_of, load_checkpoint, run_dir_of
from ddpm_lightning.runs.process_group import Ranks
from ddpm_lightning.runs.trust import check_targets, without_download

__all__ = ["bits_folder", "bits_in_chunks", "measure_bits_per_dim"]

BITS_CHUNK = 64


def measure_bits_per_dim(
    checkpoint: Path, *, weights: str = "ema", num_images: int | None = None, variance: str | None = None
) -> Path:
    """The whole variational bound on a run's validation images, to `<run>/likelihood/`, and that folder.

    `bits_per_dim.json` holds the terms and the protocol, `by_step.csv` and `.png` what each step t costs. Image i's noise
    depends on i only.

    Args:
        checkpoint: the file.
        weights: "ema" or "raw".
        num_images: how many of the validation images; None for all.
        variance: see `likelihood.bits_per_dim`.

    Raises:
        UserError: where the checkpoint or a setting will not do, or the run held no images out, or learned points.
    """
    if variance is not None and variance not in VARIANCES:
        raise UserError(f"variance={variance} is unknown: choose one of {', '.join(VARIANCES)}")
    if num_images is not None:
        check_positive("num_images", num_images)
    held = load_checkpoint(checkpoint)
    node = data_config_of(held)
    if of_points(node):
        raise UserError(
            f"ckpt_path={checkpoint} is of points: bits per dimension are of images on the grid of 256 values"
        )
    denoiser = denoiser_of(held, weights=weights)
    check_targets(node, "data")
    data: ImageDataModule = build("data", OmegaConf.create(without_download(node)))
    data.setup()
    held_out = held_out_of(data)
    if not len(held_out.images):
        raise UserError(
            "the run held no images out (data.val_fraction=0, or data.dataset.val_shards=0 of a stream): there is nothing to measure on"
        )
    images = ImageSet(held_out.images[:num_images], held_out.labels[:num_images])
    run_dir = run_dir_of(checkpoint)
    out = run_dir / "likelihood"
    for folder in (out, run_dir / "evaluations"):
        make_out_dir(folder, run_dir=run_dir)
    folder = bits_folder(run_dir / "evaluations", denoiser, held_out, variance=variance)
    bits = bits_in_chunks(denoiser, images, folder, variance=variance)
    used = variance or ("learned" if denoiser.learned_variance else "small")
    terms = {name: float(getattr(bits, name).mean()) for name in ("prior", "diffusion", "decoder", "total")}
    error = float(bits.total.std() / len(images.images) ** 0.5)
    protocol = {
        "images": len(images.images),
        "split": "validation",
        "weights": weights,
        "reverse_variance": used,
        "seed": 0,
    }

    summary = {"bits_per_dim": terms, "standard_error": error, "protocol": protocol, "checkpoint": str(checkpoint)}
    with replace_file(out / "bits_per_dim.json") as file:
        file.write(json.dumps(summary, indent=2) + "\n")
    curve = bits.by_t.mean(0).tolist()
    with replace_file(out / "by_step.csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "log_snr", "bits_per_dim"])
        writer.writerows(zip(range(1, len(curve) + 1), denoiser.schedule.log_snr[1:].tolist(), curve, strict=True))
    draw_bits_by_step(out / "by_step.png", curve)
    for name, value in terms.items():
        print(f"{name:<10} {value:.4f}" + (f" ± {error:.4f}" if name == "total" else "") + " bits/dim")
    return out


def held_out_of(data: ImageDataModule) -> ImageSet:
    """The validation images in an order drawn once and for all, so that the first few are of all kinds; sets are often ordered by class."""
    images, labels = data.split("validation")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return ImageSet(images[order], labels[order])


def bits_folder(beside: Path, denoiser: Denoiser, held_out: ImageSet, *, variance: str | None = None) -> Path:
    """Where the bounds of these held-out images are kept, shard by shard."""
    what = fingerprint(*denoiser.state_dict().values(), denoiser.schedule.alpha_bar, *held_out)
    used = variance or ("learned" if denoiser.learned_variance else "small")
    return beside / f"bits_{denoiser.prediction}_{used}_{what}"


def bits_in_chunks(
    denoiser: Denoiser, images: ImageSet, folder: Path, *, variance: str | None = None, mine: Ranks | None = None
) -> BitsPerDim:
    """The whole bound of each image, on the denoiser's device, computed where the folder lacks it; image i's noise depends on i only.

    Args:
        denoiser: in evaluation mode.
        images: as bytes; with labels where the model wants them.
        folder: of the shards.
        variance: see `likelihood.bits_per_dim`.
        mine: this rank, which takes its turn of the shards.
    """
    mine, count = mine or Ranks(), len(images.images)
    left = len(missing_chunks(folder, count, BITS_CHUNK, mine))
    silent = None if mine.rank == 0 else True
    with tqdm(total=left, desc="likelihood", unit="shard", disable=silent, dynamic_ncols=True) as progress:

        def compute(items: range) -> dict[str, Tensor]:
            part = slice(items.start, items.stop)
            x0 = from_uint8(images.images[part]).to(denoiser.schedule.alpha_bar.device)
            y = None if denoiser.num_classes is None else images.labels[part].to(x0.device)
            bits = bits_per_dim(denoiser, x0, y, variance=variance, randn=SeededNoise(0, items))
            progress.update()
            return {"prior": bits.prior.cpu(), "by_t": bits.by_t.cpu()}

        compute_chunks(folder, count, BITS_CHUNK, compute, mine)
    return BitsPerDim(**read_chunks(folder, count, BITS_CHUNK))
