"""What `python -m ddpm_lightning likelihood` does: a checkpoint's bits per dimension, term by term."""

import csv
import json
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import SeededNoise, from_uint8
from ddpm_lightning.likelihood import VARIANCES, BitsPerDim, bits_per_dim
from ddpm_lightning.plots import draw_bits_by_step
from ddpm_lightning.runs.build import build, check_whole
from ddpm_lightning.runs.checkpoint import check_targets, denoiser_of, load_checkpoint, run_dir_of

__all__ = ["measure_bits_per_dim"]

BATCH_SIZE = 256


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
        UserError: where the checkpoint or a setting will not do, or the run held no images out.
    """
    if variance is not None and variance not in VARIANCES:
        raise UserError(f"variance={variance} is unknown: choose one of {', '.join(VARIANCES)}")
    if num_images is not None:
        check_whole("num_images", num_images)
    held = load_checkpoint(checkpoint)
    denoiser = denoiser_of(held, weights=weights)
    check_targets(held["config"]["data"], whole_run=True)
    data: ImageDataModule = build("data", OmegaConf.create(held["config"]["data"]))
    data.setup()
    batches = list(data.val_dataloader())
    if not batches:
        raise UserError(
            "the run held no images out (data.val_fraction=0, or data.dataset.val_shards=0 of a stream): there is nothing to measure on"
        )
    x0 = from_uint8(torch.cat([batch.x0 for batch in batches]))[:num_images]
    labels = [batch.y for batch in batches if batch.y is not None]
    parts = []
    for ids in tqdm(torch.arange(len(x0)).split(BATCH_SIZE), desc="likelihood", unit="batch", disable=None):
        y = torch.cat(labels)[ids] if labels else None
        parts.append(bits_per_dim(denoiser, x0[ids], y, variance=variance, randn=SeededNoise(0, ids.tolist())))
    bits = BitsPerDim(torch.cat([part.prior for part in parts]), torch.cat([part.by_t for part in parts]))
    used = variance or ("learned" if denoiser.learned_variance else "small")
    terms = {name: float(getattr(bits, name).mean()) for name in ("prior", "diffusion", "decoder", "total")}
    error = float(bits.total.std() / len(x0) ** 0.5)
    protocol = {"images": len(x0), "split": "validation", "weights": weights, "reverse_variance": used, "seed": 0}

    out = run_dir_of(checkpoint) / "likelihood"
    out.mkdir(parents=True, exist_ok=True)
    summary = {"bits_per_dim": terms, "standard_error": error, "protocol": protocol, "checkpoint": str(checkpoint)}
    (out / "bits_per_dim.json").write_text(json.dumps(summary, indent=2) + "\n")
    curve = bits.by_t.mean(0).tolist()
    with (out / "by_step.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "log_snr", "bits_per_dim"])
        writer.writerows(zip(range(1, len(curve) + 1), denoiser.schedule.log_snr[1:].tolist(), curve, strict=True))
    draw_bits_by_step(out / "by_step.png", curve)
    for name, value in terms.items():
        print(f"{name:<10} {value:.4f}" + (f" ± {error:.4f}" if name == "total" else "") + " bits/dim")
    return out
