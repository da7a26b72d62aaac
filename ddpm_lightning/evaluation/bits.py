"""Bits per dimension of a checkpoint, for `python -m ddpm_lightning likelihood` and `evaluate.py`."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.special import ndtr

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import Condition, map_condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.chunks import Chunks
from ddpm_lightning.evaluation.real_images import held_out_of, load_data, test_split_of
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import SeededNoise, from_uint8
from ddpm_lightning.likelihood import (
    VARIANCES,
    BitsPerDim,
    bits_per_dim,
    decodes_from_latent,
    estimate_bits_per_dim,
    ode_bits_per_dim,
)
from ddpm_lightning.plots import draw_bits_by_step
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.runs.loading import data_config_of, denoiser_of, load_checkpoint, run_dir_of
from ddpm_lightning.runs.out_dir import make_out_dir
from ddpm_lightning.runs.process_group import ALONE, ProcessGroup
from ddpm_lightning.runs.trust import check_targets, without_download
from ddpm_lightning.terminal import Activity

__all__ = ["METHODS", "Likelihood", "measure_bits_per_dim"]

BITS_CHUNK = 64
LEVELS = 64  # noise levels per image of the continuous bound, evenly spaced
METHODS = {
    "bound": "variational bound in T steps, one sample of x_t per t",
    "continuous": f"variational bound in continuous time, {LEVELS} samples of t per image",
    "ode": "probability-flow ODE, 50 Runge-Kutta steps, one Hutchinson probe",
}


def measure_bits_per_dim(
    checkpoint: Path,
    *,
    weights: str = "ema",
    num_images: int | None = None,
    variance: str | None = None,
    method: str = "bound",
    split: str = "validation",
) -> Path:
    """Measure bits per dimension on a run's held-out images, and return the folder `<run>/likelihood/` with the results.

    `bits_per_dim.json` holds the terms and the protocol, `by_step.csv` and `.png` the terms of the bound by t.

    Args:
        checkpoint: the checkpoint file.
        weights: "ema" or "raw".
        num_images: the number of images; None for all.
        variance: see `likelihood.bits_per_dim`.
        method: one of `METHODS`.
        split: "validation", or "test" for the dataset's own test split.

    Raises:
        UserError: for an unusable checkpoint or setting, or a run on points or without such images.
    """
    require_one_of("variance", variance, [None, *VARIANCES])
    require_one_of("method", method, [*METHODS])
    require_one_of("split", split, ["validation", "test"])
    require("num_images", num_images, "1..", optional=True)
    with Activity("Loading the checkpoint and the data"):
        content = load_checkpoint(checkpoint)
        denoiser, node = denoiser_of(content, weights=weights), data_config_of(content)
        check_targets(node, "data")
        data = OmegaConf.create(without_download(node))
        held_out = held_out_of(load_data(data if split == "validation" else test_split_of(data, "split")), split)
    if not len(held_out.images):
        raise UserError(
            "the run has no validation images to measure on (data.val_fraction=0, or data.dataset.val_shards=0 of a stream): "
            "use --split test, if the dataset has one"
        )
    run_dir = run_dir_of(checkpoint)
    out, root = run_dir / "likelihood", run_dir / "evaluations"
    for folder in (out, root):
        make_out_dir(folder, run_dir=run_dir)
    likelihood = Likelihood(root, denoiser, held_out, count=num_images, variance=variance, method=method)
    protocol = {
        "images": likelihood.chunks.count,
        "split": split,
        "method": METHODS[method],
        "weights": weights,
        **likelihood.model_used,
        "seed": 0,
    }
    arrays = likelihood.arrays()
    _write_terms(arrays, out, protocol=protocol, checkpoint=str(checkpoint))
    if method == "bound":
        _write_curve(arrays["by_t"].mean(0).tolist(), denoiser.schedule.log_snr[1:], out)
    return out


def _write_terms(arrays: dict[str, Tensor], out: Path, **notes: Any) -> None:
    found = {"total": arrays["total"]} if "total" in arrays else BitsPerDim(**arrays).terms
    terms = {name: float(values.mean()) for name, values in found.items()}
    error = float(found["total"].std() / len(found["total"]) ** 0.5)
    with replace_file(out / "bits_per_dim.json") as file:
        file.write(json.dumps({"bits_per_dim": terms, "standard_error": error, **notes}, indent=2) + "\n")
    for name, value in terms.items():
        print(f"{name:<10} {value:.4f}" + (f" ± {error:.4f}" if name == "total" else "") + " bits/dim")


def _write_curve(curve: list[float], log_snr: Tensor, out: Path) -> None:
    with replace_file(out / "by_step.csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "log_snr", "bits_per_dim"])
        writer.writerows(zip(range(1, len(curve) + 1), log_snr.tolist(), curve, strict=True))
    draw_bits_by_step(out / "by_step.png", curve)


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension of held-out images, cached on disk; the noise of image i depends on i only.

    Args:
        root: the parent folder of the chunks.
        denoiser: the denoiser, in eval mode.
        held_out: the images, uint8, with labels for a conditional model.
        count: the number of images; None for all.
        variance: see `likelihood.bits_per_dim`.
        method: one of `METHODS`.
    """

    root: Path
    denoiser: Denoiser
    held_out: ImageSet
    count: int | None = None
    variance: str | None = None
    method: str = "bound"

    @property
    def variance_used(self) -> str:
        """The reverse variance in use."""
        return self.variance or ("learned" if self.denoiser.learned_variance else "small")

    @property
    def decoder_used(self) -> str:
        """The mean of the decoder p(x_0 | x_1) in use."""
        return "x_1" if decodes_from_latent(self.denoiser.schedule, self.variance) else "x_0 estimate"

    @property
    def model_used(self) -> dict[str, str]:
        """The parts of the bound beside the network; the ODE has none."""
        bound = {"reverse_variance": self.variance_used, "decoder": self.decoder_used}
        return {} if self.method == "ode" else bound

    @cached_property
    def chunks(self) -> Chunks:
        """The bits by image, in a folder for this model and dataset."""
        scale = [torch.tensor(self.denoiser.sigma_data)] if self.denoiser.prediction == "edm" else []
        key = fingerprint(
            *self.denoiser.state_dict().values(), self.denoiser.schedule.alpha_bar, *scale, *self.held_out.tensors
        )
        kind = self.variance_used if self.method == "bound" else f"{self.method}_{self.variance_used}"
        kind += "_x1" if self.decoder_used == "x_1" else ""
        folder = self.root / f"bits_{self.denoiser.prediction}_{kind}_{key}"
        return Chunks(folder, len(self.held_out.images[: self.count]), BITS_CHUNK)

    def compute(self, group: ProcessGroup = ALONE) -> BitsPerDim:
        """The bound on each image."""
        return BitsPerDim(**self.arrays(group))

    def arrays(self, group: ProcessGroup = ALONE) -> dict[str, Tensor]:
        """The fields of a `BitsPerDim`, or "total" of the ODE, computed on the denoiser's device unless cached."""
        each = {"bound": self.denoiser.schedule.num_steps, "continuous": LEVELS, "ode": 1}[self.method]
        total = len(self.chunks.missing(group)) * each
        with Activity("likelihood", total=total, unit="steps") as activity:

            def compute(items: range) -> dict[str, Tensor]:
                part = slice(items.start, items.stop)
                x0 = from_uint8(self.held_out.images[part]).to(self.denoiser.schedule.alpha_bar.device)
                y = None
                if self.denoiser.conditional:
                    y = map_condition(lambda rows: rows[part].to(x0.device), self.held_out.labels)
                found = self._measure(x0, y, SeededNoise(0, items), activity.advance)
                return {name: values.cpu() for name, values in found.items()}

            self.chunks.compute(compute, group)
        return self.chunks.read()

    def _measure(
        self, x0: Tensor, y: Condition | None, noise: SeededNoise, advance: Callable[[], Any]
    ) -> dict[str, Tensor]:
        if self.method == "ode":
            total = ode_bits_per_dim(self.denoiser, x0, y, uniform=ndtr(noise(x0)), randn=noise)
            advance()
            return {"total": total}
        if self.method == "bound":
            parts = [bits_per_dim(self.denoiser, x0, y, variance=self.variance, randn=noise, advance=advance)]
        else:
            uniforms = ((noise.uniform() + i / LEVELS) % 1 for i in range(LEVELS))
            estimate = partial(
                estimate_bits_per_dim, self.denoiser, x0, y, continuous=True, variance=self.variance, randn=noise
            )
            parts = []
            for uniform in uniforms:
                parts.append(estimate(uniform=uniform))
                advance()
        return {name: torch.stack([getattr(part, name) for part in parts]).mean(0) for name in ("prior", "by_t")}
