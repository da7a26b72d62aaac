"""Bits per dimension of a checkpoint, for `python -m ddpm_lightning likelihood` and `evaluate.py`."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import map_condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.chunks import Chunks
from ddpm_lightning.evaluation.real_images import held_out_of, load_data
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import SeededNoise, from_uint8
from ddpm_lightning.likelihood import VARIANCES, BitsPerDim, bits_per_dim
from ddpm_lightning.plots import draw_bits_by_step
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.runs.loading import data_config_of, denoiser_of, load_checkpoint, run_dir_of
from ddpm_lightning.runs.process_group import ALONE, ProcessGroup
from ddpm_lightning.runs.sampling_setup import make_out_dir
from ddpm_lightning.runs.trust import check_targets, without_download

__all__ = ["Likelihood", "measure_bits_per_dim"]

BITS_CHUNK = 64


def measure_bits_per_dim(
    checkpoint: Path, *, weights: str = "ema", num_images: int | None = None, variance: str | None = None
) -> Path:
    """Measure the variational bound on a run's validation images, and return the folder `<run>/likelihood/` with the results.

    `bits_per_dim.json` holds the terms and the protocol, `by_step.csv` and `.png` the bound's terms by t.

    Args:
        checkpoint: the checkpoint file.
        weights: "ema" or "raw".
        num_images: the number of validation images; None for all.
        variance: see `likelihood.bits_per_dim`.

    Raises:
        UserError: for an unusable checkpoint or setting, or a run on points or without validation images.
    """
    require_one_of("variance", variance, [None, *VARIANCES])
    require("num_images", num_images, "1..", optional=True)
    content = load_checkpoint(checkpoint)
    denoiser, node = denoiser_of(content, weights=weights), data_config_of(content)
    check_targets(node, "data")
    held_out = held_out_of(load_data(OmegaConf.create(without_download(node))))
    if not len(held_out.images):
        raise UserError(
            "the run has no validation images to measure on (data.val_fraction=0, or data.dataset.val_shards=0 of a stream)"
        )
    run_dir = run_dir_of(checkpoint)
    out, root = run_dir / "likelihood", run_dir / "evaluations"
    for folder in (out, root):
        make_out_dir(folder, run_dir=run_dir)
    likelihood = Likelihood(root, denoiser, held_out, count=num_images, variance=variance)
    protocol = {
        "images": likelihood.chunks.count,
        "split": "validation",
        "weights": weights,
        "reverse_variance": likelihood.variance_used,
        "seed": 0,
    }
    _write(likelihood.compute(), denoiser.schedule.log_snr[1:], out, protocol=protocol, checkpoint=str(checkpoint))
    return out


def _write(bits: BitsPerDim, log_snr: Tensor, out: Path, **notes: Any) -> None:
    terms = {name: float(getattr(bits, name).mean()) for name in ("prior", "diffusion", "decoder", "total")}
    error = float(bits.total.std() / len(bits.total) ** 0.5)
    with replace_file(out / "bits_per_dim.json") as file:
        file.write(json.dumps({"bits_per_dim": terms, "standard_error": error, **notes}, indent=2) + "\n")
    curve = bits.by_t.mean(0).tolist()
    with replace_file(out / "by_step.csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "log_snr", "bits_per_dim"])
        writer.writerows(zip(range(1, len(curve) + 1), log_snr.tolist(), curve, strict=True))
    draw_bits_by_step(out / "by_step.png", curve)
    for name, value in terms.items():
        print(f"{name:<10} {value:.4f}" + (f" ± {error:.4f}" if name == "total" else "") + " bits/dim")


@dataclass(frozen=True)
class Likelihood:
    """The variational bound on held-out images, cached on disk; the noise of image i depends on i only.

    Args:
        root: the parent folder of the chunks.
        denoiser: the denoiser, in eval mode.
        held_out: the images, uint8, with labels for a conditional model.
        count: the number of images; None for all.
        variance: see `likelihood.bits_per_dim`.
    """

    root: Path
    denoiser: Denoiser
    held_out: ImageSet
    count: int | None = None
    variance: str | None = None

    @property
    def variance_used(self) -> str:
        """The reverse variance in use."""
        return self.variance or ("learned" if self.denoiser.learned_variance else "small")

    @cached_property
    def chunks(self) -> Chunks:
        """The bounds by image, in a folder for this model and dataset."""
        key = fingerprint(
            *self.denoiser.state_dict().values(), self.denoiser.schedule.alpha_bar, *self.held_out.tensors
        )
        folder = self.root / f"bits_{self.denoiser.prediction}_{self.variance_used}_{key}"
        return Chunks(folder, len(self.held_out.images[: self.count]), BITS_CHUNK)

    def compute(self, group: ProcessGroup = ALONE) -> BitsPerDim:
        """The bound on each image, computed on the denoiser's device unless cached."""
        with group.progress("likelihood", len(self.chunks.missing(group)), "chunk") as progress:

            def compute(items: range) -> dict[str, Tensor]:
                part = slice(items.start, items.stop)
                x0 = from_uint8(self.held_out.images[part]).to(self.denoiser.schedule.alpha_bar.device)
                y = None
                if self.denoiser.conditional:
                    y = map_condition(lambda rows: rows[part].to(x0.device), self.held_out.labels)
                bits = bits_per_dim(self.denoiser, x0, y, variance=self.variance, randn=SeededNoise(0, items))
                progress.update()
                return {"prior": bits.prior.cpu(), "by_t": bits.by_t.cpu()}

            self.chunks.compute(compute, group)
        return BitsPerDim(**self.chunks.read())
