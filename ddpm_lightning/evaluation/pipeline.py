"""The pipeline of `evaluate.py`: compare a checkpoint's samples with its data, and measure the likelihood of held-out images."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.source import tensors_of
from ddpm_lightning.evaluation import table
from ddpm_lightning.evaluation.bits import Likelihood
from ddpm_lightning.evaluation.chunks import Chunks, digest
from ddpm_lightning.evaluation.features import Extractor, load_extractor
from ddpm_lightning.evaluation.real_images import RealImages, load_real_images
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import from_uint8, save_png
from ddpm_lightning.likelihood import VARIANCES, BitsPerDim
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.run_folder import only_one_run, remove_leftovers
from ddpm_lightning.runs import schema
from ddpm_lightning.runs.loading import run_dir_of
from ddpm_lightning.runs.out_dir import make_out_dir
from ddpm_lightning.runs.process_group import ProcessGroup, join_process_group
from ddpm_lightning.runs.processes import take_gpu
from ddpm_lightning.runs.sampling_setup import SamplingSetup, prepare_sampling
from ddpm_lightning.sheets import contact_sheet
from ddpm_lightning.terminal import Activity

__all__ = ["evaluate"]

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> Path:
    """Compare a checkpoint's samples with its dataset, and return the folder with `evaluation.json` and the figures.

    Samples, features and likelihoods are computed in chunks cached on disk, on all processes started by torchrun or SLURM;
    interrupted evaluations resume with the same results.

    Raises:
        UserError: for an unusable checkpoint, dataset or setting.
    """
    _check(config)
    take_gpu()
    with join_process_group() as group:
        with Activity("Loading the checkpoint and the data"):
            setup = prepare_sampling(config, group)
            real = load_real_images(config, setup)
        extractor = load_extractor(config, real.data, setup.device, group)
        evaluation = Evaluation(config, group, setup, real, extractor)
        evaluation.make_folders()
        with only_one_run(evaluation.out) if group.rank == 0 else nullcontext():
            if group.rank == 0:
                evaluation.clean_up()
                evaluation.print_cost()
            evaluation.sample()
            found = evaluation.measure()
            if group.rank == 0:
                with Activity("Computing the metrics"):
                    evaluation.write(found)
    return evaluation.out


def _check(config: DictConfig) -> None:
    require("num_samples", config.num_samples, f"{table.FEWEST}..100000000")
    for key in ("repeats", "batch_size", "shard_size"):
        require(key, config[key], "1..100000000")
    for key in ("reference_images", "bits_images", "nearest"):
        require(key, config[key], "0..100000000", optional=True)
    require("seed", config.seed, "0..")
    require("data_seed", config.data_seed, "0..", optional=True)
    require_one_of("reference", config.reference, ("train", "validation", "all"))
    require_one_of("bits_split", config.bits_split, ("validation", "test"))
    require_one_of("bits_variance", config.bits_variance, (None, *VARIANCES))
    schema.check_types(config, schema.Evaluation)


@dataclass(frozen=True)
class Measured:
    """The inputs of the metrics; only rank zero has features."""

    sets: Mapping[str, table.Compared]  # real images: "train", "held_out" and "reference"
    samples: Sequence[table.Compared]  # one set per seed
    bits: BitsPerDim | None
    seconds: float  # sampling time, summed over processes


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its parts, folders and steps."""

    config: DictConfig
    group: ProcessGroup
    setup: SamplingSetup
    real: RealImages
    extractor: Extractor

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that the samples depend on, except the seed."""
        denoiser, sampler = self.setup.denoiser, OmegaConf.to_container(self.config.sampler, resolve=True)
        assert isinstance(sampler, dict)
        for key in ("continuous", "times"):
            if not sampler.get(key):
                sampler.pop(key, None)  # as in evaluations of 0.1.0, which are read again
        return {
            "weights": fingerprint(*denoiser.state_dict().values()),
            "schedule": fingerprint(denoiser.schedule.alpha_bar),  # not part of the weights
            "prediction": denoiser.prediction,
            **({"sigma_data": denoiser.sigma_data} if denoiser.prediction == "edm" else {}),
            "learned_variance": denoiser.learned_variance,
            "shape": self.setup.shape,
            "sampler": sampler,
            "labels": self.setup.labels,
            "guidance_scale": self.config.guidance_scale,
            **self.guidance,
        } | self.condition

    @cached_property
    def guidance(self) -> dict[str, Any]:
        """The settings of guidance other than its scale that are in use."""
        guidance, weaker = self.setup.guidance, self.setup.weaker
        return {
            **({} if guidance.interval is None else {"guidance_interval": list(guidance.interval)}),
            **({"guidance_rescale": guidance.rescale} if guidance.rescale else {}),
            **({} if weaker is None else {"autoguidance": fingerprint(*weaker.state_dict().values())}),
        }

    @property
    def condition(self) -> dict[str, str]:
        """Identifies conditions other than labels."""
        y = self.setup.condition
        return {} if y is None or self.setup.labels is not None else {"condition": fingerprint(*tensors_of(y))}

    @property
    def root(self) -> Path:
        """The folder of shared chunks: `evaluations/` in the run folder, or the user's folder."""
        if self.config.out_dir is not None:
            return Path(str(self.config.out_dir))
        return run_dir_of(self.setup.path) / "evaluations"

    @property
    def out(self) -> Path:
        """The results folder."""
        if self.config.out_dir is not None:
            return self.root
        sampler = self.setup.names["sampler"].split()[0]
        return self.root / f"{sampler}_{self.setup.steps}_{digest(self.key)}"

    @property
    def samples(self) -> dict[int, Chunks]:
        """The samples of each seed; the user's folder may also hold those of other models."""
        first, names = self.config.seed, f"samples_{digest(self.key)}_seed"
        return {
            seed: Chunks(self.out / f"{names}{seed}", self.config.num_samples, self.config.shard_size)
            for seed in range(first, first + self.config.repeats)
        }

    @cached_property
    def likelihood(self) -> Likelihood:
        """The likelihood of the first held-out images."""
        count, variance = self.config.bits_images, self.config.bits_variance
        return Likelihood(self.root, self.setup.denoiser, self.real.held_out, count=count, variance=variance)

    def make_folders(self) -> None:
        """Create the results folders; links must not lead out of a run folder."""
        make_out_dir(self.root, run_dir=run_dir_of(self.setup.path) if self.config.out_dir is None else None)
        make_out_dir(self.out)

    def clean_up(self) -> None:
        """Remove incomplete files of a killed process."""
        for folder in (self.out, *(chunks.folder for chunks in self.samples.values()), self.likelihood.chunks.folder):
            remove_leftovers(folder)

    def print_cost(self) -> None:
        """Print the remaining work and the estimated time on this device."""
        images = sum(len(items) for chunks in self.samples.values() for items in chunks.missing())
        bits = sum(map(len, self.likelihood.chunks.missing()))
        if not images + bits:
            print("All samples exist: computing the metrics", flush=True)
            return
        T, world_size = self.setup.denoiser.schedule.num_steps, self.group.world_size
        with Activity("Timing the network"):
            each = self.setup.seconds_per_evaluation(min(self.config.batch_size, 32))
        total = images * self.setup.evaluations + bits * T
        at_once = min(world_size, -(-images // self.config.shard_size) or world_size)
        where = f"{self.setup.device}" + f" x {world_size}" * (world_size > 1)
        seconds = total * each / at_once
        time_needed = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        lines = table.fold(
            f"Computing {images:,} samples ({self.setup.evaluations} network evaluations each) and the likelihood of {bits:,} images "
            f"({T:,} each): {total:,} evaluations, about {time_needed} on {where}"
        )
        print(*lines, sep="\n", flush=True)

    def sample(self) -> None:
        """Sample the missing images."""
        for seed, chunks in self.samples.items():
            batches = sum(-(-len(items) // self.config.batch_size) for items in chunks.missing(self.group))
            work = f"sampling, seed {seed}" if len(self.samples) > 1 else "sampling"
            with Activity(work, total=batches * self.setup.steps, unit="steps") as activity:
                chunks.compute(partial(self._sample_chunk, seed, activity.advance), self.group)

    def _sample_chunk(self, seed: int, advance: Callable[[], Any], items: range) -> dict[str, Tensor]:
        started, size = time.perf_counter(), self.config.batch_size
        batches = [items[first : first + size] for first in range(0, len(items), size)]
        images = torch.cat([self.setup.samples(seed, batch, advance) for batch in batches])
        seconds = torch.full((len(items),), (time.perf_counter() - started) / len(items), dtype=torch.float64)
        return {"images": images, "seconds": seconds}

    def measure(self) -> Measured:
        """Compute the missing likelihoods and features, and read all of them."""
        bits = self.likelihood.compute(self.group) if self.likelihood.chunks.count else None
        real, extractor = self.real, self.extractor
        with Activity("Computing the features"):
            sets = {key: extractor(part.images) for key, part in (("train", real.train), ("held_out", real.held_out))}
            sets["reference"] = sets["train"] if real.reference is real.train else extractor(real.reference.images)
            read = [chunks.read() for chunks in self.samples.values()]
            samples = [extractor(arrays["images"], self.out / "features") for arrays in read]
        return Measured(sets, samples, bits, sum(float(arrays["seconds"].sum()) for arrays in read))

    def metrics(self, found: Measured) -> dict[str, Any]:
        """One row per metric."""
        count, features = self.config.num_samples, found.sets["reference"].features.shape[1]
        if count <= features:
            log.warning(
                "num_samples=%d should exceed the %d features: FID's covariance is singular and its value unreliable",
                count,
                features,
            )
        model, seed = self.extractor.model, self.config.seed
        rows = table.score_rows(model, found.sets, found.samples, seed=seed, reference=self.config.reference)
        rows |= table.memorization_rows(found.sets, found.samples[0])
        if found.bits is not None:
            rows |= table.bits_rows(found.bits, variance=self.likelihood.variance_used)
        return rows

    def protocol(self) -> dict[str, Any]:
        """Everything that the metrics depend on."""
        return {
            "checkpoint": str(self.setup.path),
            "weights": self.config.weights,
            "weights_fingerprint": self.key["weights"],
            "data_seed": self.real.data.seed,
            "sampler": self.key["sampler"],
            "steps": self.setup.steps,
            "network_evaluations_per_image": self.setup.evaluations,
            "labels": self.setup.labels,
            **self.condition,
            "guidance_scale": self.config.guidance_scale,
            **self.guidance,
            "num_samples": self.config.num_samples,
            "seeds": list(self.samples),
            "reference": self.config.reference,
            **({} if self.config.bits_split == "validation" else {"bits_split": self.config.bits_split}),
            "reference_images": len(self.real.reference.images),
            "reference_fingerprint": fingerprint(self.real.reference.images),
            "features": table.model_name(self.extractor.model),
            "features_fingerprint": self.extractor.weights_fingerprint,
            "preprocessing": "samples clipped to [-1, 1] and rounded to uint8; reference as the data module gives it, without flips",
        }

    def write(self, found: Measured) -> None:
        """Write figures and results, and print the results as a table."""
        protocol = self.protocol()
        timing = {
            "images_per_second_of_one_process": self.config.num_samples * len(found.samples) / max(found.seconds, 1e-9),
            "device": str(self.setup.device),
            "processes": self.group.world_size,
        }
        summary = {"metrics": self.metrics(found), "protocol": protocol, "timing": timing}
        images, labels = found.samples[0].images, self.setup.labels
        shown = images[: 64 if labels is None else 8 * len(labels)]
        facts = self.setup.facts(weights=self.config.weights, seed=self.config.seed)
        class_names = self.setup.data.get("class_names") or ()
        grid = contact_sheet(from_uint8(shown), self.setup.condition, class_names=class_names)
        save_png(grid.pixels, self.out / "grid.png", {**facts, **grid.facts})
        if self.config.nearest:
            closest = table.nearest_sheet(found.sets["train"], found.samples[0], self.config.nearest)
            save_png(closest.pixels, self.out / "nearest.png", {**facts, **closest.facts})
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        paths = [self.out / name for name in ("evaluation.json", f"evaluation_{digest(protocol)}.json")]
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            paths.append(Path(HydraConfig.get().runtime.output_dir) / "evaluation.json")  # read by the sweep's summary
        for path in paths:  # the newest, and one per protocol
            with replace_file(path) as file:
                file.write(text)
        print(*table.lines_of(summary, self.out), sep="\n", flush=True)
