"""What `evaluate.py` does."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.bits import BITS_CHUNK, bits_folder, bits_in_chunks, held_out_of
from ddpm_lightning.evaluation.chunks import compute_chunks, missing_chunks, read_chunks
from ddpm_lightning.evaluation.reference import check_sets, data_of, reference_of
from ddpm_lightning.evaluation.table import (
    FEWEST,
    Compared,
    bits_rows,
    memorisation_rows,
    model_name,
    print_table,
    save_nearest,
    score_rows,
)
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import grid, rows_by_label, save_png
from ddpm_lightning.metrics.features import cache_folder, extract
from ddpm_lightning.ranges import is_integer
from ddpm_lightning.run_folder import only_one_run, remove_leftovers
from ddpm_lightning.runs.drawing import Drawing, make_out_dir, prepare
from ddpm_lightning.runs.instantiate import build, check_positive
from ddpm_lightning.runs.loading import run_dir_of
from ddpm_lightning.runs.process_group import Ranks, ranks
from ddpm_lightning.runs.processes import take_gpu

__all__ = ["evaluate"]

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> Path:
    """Compare a checkpoint's samples with its data set, and return the folder that holds `evaluation.json` and the pictures.

    Samples, features and likelihoods are computed in shards that stay on the disk, on all the processes that torchrun or
    SLURM started; an evaluation that was interrupted goes on where it stopped, and ends with the same numbers.

    Raises:
        UserError: where the checkpoint, the data or a setting will not do.
    """
    for key in ("num_samples", "repeats", "batch_size", "shard_size"):
        check_positive(key, config[key])
    for key in ("reference_images", "bits_images", "nearest"):
        if config[key] is not None and not is_integer(config[key], "[0, 1e8]"):
            raise UserError(f"{key}={config[key]} will not do: give a whole number, 0 or more")
    if config.num_samples < FEWEST:
        raise UserError(f"num_samples={config.num_samples} are too few to compare anything by: give {FEWEST} or more")
    if config.reference not in ("train", "validation", "all"):
        raise UserError(f"reference={config.reference} is unknown: choose train, validation or all")
    take_gpu()
    with ranks() as mine:
        return _evaluate(config, mine)


def _evaluate(config: DictConfig, mine: Ranks) -> Path:
    drawing = prepare(config, mine)
    if drawing.points:
        raise UserError(
            f"ckpt_path={drawing.path} draws points, and these metrics are of images: look at sample.py's scatter.png"
        )
    data = data_of(config, drawing)
    train, held_out = data.split("train"), held_out_of(data)
    reference = reference_of(
        train if config.reference == "train" else data.split(config.reference), config.reference_images
    )
    check_sets(config, drawing, reference, held_out)
    cache = cache_folder(config.cache_dir)
    if mine.rank:
        mine.wait()  # what rank zero downloads or trains is there for the others
    model = _features_of(config, data, cache, drawing.device)
    if mine.rank == 0:
        mine.wait()
    images_key = {
        "weights": fingerprint(*drawing.denoiser.state_dict().values()),
        "schedule": fingerprint(drawing.denoiser.schedule.alpha_bar),  # no part of the weights
        "prediction": drawing.denoiser.prediction,
        "learned_variance": drawing.denoiser.learned_variance,
        "shape": drawing.shape,
        "sampler": OmegaConf.to_container(config.sampler, resolve=True),
        "labels": drawing.labels,
        "guidance_scale": config.guidance_scale,
    }
    digest = _digest(images_key)
    beside = run_dir_of(drawing.path) / "evaluations"
    name = f"{type(drawing.sampler).__name__.lower()}_{drawing.steps}_{digest}"
    out = beside / name if config.out_dir is None else Path(str(config.out_dir))
    if config.out_dir is None:
        make_out_dir(beside, run_dir=run_dir_of(drawing.path))
    make_out_dir(out, run_dir=run_dir_of(drawing.path) if config.out_dir is None else None)
    seeds = range(config.seed, config.seed + config.repeats)
    # By what they depend on, since a folder of the user's may hold those of another model.
    samples = {seed: out / f"samples_{digest}_seed{seed}" for seed in seeds}
    bits_in = bits_folder(beside if config.out_dir is None else out, drawing.denoiser, held_out)
    bits_set = ImageSet(held_out.images[: config.bits_images], held_out.labels[: config.bits_images])
    with only_one_run(out) if mine.rank == 0 else nullcontext():
        if mine.rank == 0:
            for folder in (out, *samples.values(), bits_in):
                remove_leftovers(folder)
            _say_cost(config, drawing, samples, (bits_in, len(bits_set.images)), mine)
        for seed, folder in samples.items():
            _draw(config, drawing, seed, folder, mine)
        bits = bits_in_chunks(drawing.denoiser, bits_set, bits_in, mine=mine) if len(bits_set.images) else None

        net = f"{model_name(model)} {fingerprint(*model.state_dict().values())}"
        features = partial(_with_features, model, net=net, config=config, mine=mine)
        sets = {
            key: features(part.images, cache / "features") for key, part in (("train", train), ("held_out", held_out))
        }
        sets["reference"] = sets["train"] if reference is train else features(reference.images, cache / "features")
        drawn, seconds = [], 0.0
        for folder in samples.values():
            shards = read_chunks(folder, config.num_samples, config.shard_size)
            drawn.append(features(shards["images"], out / "features"))
            seconds += float(shards["seconds"].sum())
        if mine.rank == 0:
            key = {"weights_fingerprint": images_key["weights"], "data_seed": data.seed}
            _report(config, drawing, model, sets, drawn, bits, key=key, seconds=seconds, out=out, mine=mine)
    return out


def _report(
    config: DictConfig,
    drawing: Drawing,
    model: nn.Module,
    sets: Mapping[str, Compared],
    drawn: list[Compared],
    bits: Any,
    *,
    key: Mapping[str, Any],
    seconds: float,
    out: Path,
    mine: Ranks,
) -> None:
    real, n = sets["reference"], config.num_samples
    if n <= real.features.shape[1]:
        log.warning(
            "num_samples=%d are no more than the %d features: the covariance of FID is singular, and its value says little",
            n,
            real.features.shape[1],
        )
    rows = score_rows(model, sets, drawn, seed=config.seed, reference=config.reference)
    rows |= memorisation_rows(sets, drawn[0])
    if bits is not None:
        rows |= bits_rows(bits, variance="learned" if drawing.denoiser.learned_variance else "small")
    summary = {
        "metrics": rows,
        "protocol": {
            "checkpoint": str(drawing.path),
            "weights": config.weights,
            **key,
            "sampler": OmegaConf.to_container(config.sampler, resolve=True),
            "steps": drawing.steps,
            "network_evaluations_per_image": drawing.evaluations,
            "labels": drawing.labels,
            "guidance_scale": config.guidance_scale,
            "num_samples": n,
            "seeds": list(range(config.seed, config.seed + config.repeats)),
            "reference": config.reference,
            "reference_images": len(real.features),
            "reference_fingerprint": fingerprint(real.images),
            "features": model_name(model),
            "features_fingerprint": fingerprint(*model.state_dict().values()),
            "preprocessing": "samples clipped to [-1, 1] and rounded to uint8; reference as the data module gives it, without flips",
        },
        "timing": {
            "images_per_second_of_one_process": n * len(drawn) / max(seconds, 1e-9),
            "device": str(drawing.device),
            "processes": mine.world_size,
        },
    }
    first, labels = drawn[0].images[:64], drawing.labels
    save_png(
        grid(first) if labels is None else rows_by_label(drawn[0].images[: 8 * len(labels)], len(labels)),
        out / "grid.png",
    )
    if config.nearest:
        save_nearest(sets["train"], drawn[0], config.nearest, out / "nearest.png")
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    kept = f"evaluation_{_digest(summary['protocol'])}.json"  # the newest, and one for each protocol
    for path in (out / "evaluation.json", out / kept, *(folder / "evaluation.json" for folder in _job_folder())):
        with replace_file(path) as file:
            file.write(text)
    print_table(summary, out)


def _draw(config: DictConfig, drawing: Drawing, seed: int, folder: Path, mine: Ranks) -> None:
    left = missing_chunks(folder, config.num_samples, config.shard_size, mine)
    batches = sum(-(-len(items) // config.batch_size) for items in left)
    silent = None if mine.rank == 0 else True
    with tqdm(
        total=batches * drawing.steps, unit="step", desc=f"sampling, seed {seed}", disable=silent, dynamic_ncols=True
    ) as progress:

        def compute(items: range) -> dict[str, Tensor]:
            started = time.perf_counter()
            images = torch.cat(
                [
                    drawing.samples(seed, items[first : first + config.batch_size], progress.update)
                    for first in range(0, len(items), config.batch_size)
                ]
            )
            seconds = torch.full((len(items),), (time.perf_counter() - started) / len(items), dtype=torch.float64)
            return {"images": images, "seconds": seconds}

        compute_chunks(folder, config.num_samples, config.shard_size, compute, mine)


def _with_features(
    model: nn.Module, images: Tensor, folder: Path, *, net: str, config: DictConfig, mine: Ranks
) -> Compared:
    """The images' features, computed where the folder lacks them, by images and network."""
    if not len(images):
        return Compared(images, torch.empty(0, 1))
    folder = folder / f"{fingerprint(images)}_{_digest(net)}"
    size = 5_000

    def compute(items: range) -> dict[str, Tensor]:
        part = images[items.start : items.stop]
        return {"features": extract(model, part, batch_size=config.batch_size, progress=mine.rank == 0)}

    compute_chunks(folder, len(images), size, compute, mine)
    return Compared(images, read_chunks(folder, len(images), size)["features"] if mine.rank == 0 else torch.empty(0, 1))


def _features_of(config: DictConfig, data: ImageDataModule, cache: Path, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a network without weights is the same on all ranks
        model: nn.Module = build("features", config.features)(partial(data.split, "all"), cache, device=device)
    return model.to(device).eval()


def _say_cost(
    config: DictConfig, drawing: Drawing, samples: Mapping[int, Path], likelihoods: tuple[Path, int], mine: Ranks
) -> None:
    """What is left to compute, and about how long that takes on this device."""
    left = [missing_chunks(folder, config.num_samples, config.shard_size) for folder in samples.values()]
    images = sum(len(items) for shards in left for items in shards)
    bits = sum(map(len, missing_chunks(*likelihoods, BITS_CHUNK)))
    if not images + bits:
        print("All samples are there: only the metrics are left", flush=True)
        return
    T, each = drawing.denoiser.schedule.num_steps, drawing.seconds_per_evaluation(min(config.batch_size, 32))
    total = images * drawing.evaluations + bits * T
    at_once = min(mine.world_size, -(-images // config.shard_size) or mine.world_size)
    minutes = total * each / at_once / 60
    where = f"{drawing.device}" + f" x {mine.world_size}" * (mine.world_size > 1)
    print(
        f"To do: {images:,} samples of {drawing.evaluations} network evaluations, and the likelihood of {bits:,} images with {T}: "
        f"{total:,} in all, about {minutes:.0f} min on {where}",
        flush=True,
    )


def _job_folder() -> list[Path]:
    """The folder of this job of a sweep, which the study at its end is made of."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return [Path(HydraConfig.get().runtime.output_dir)]
    return []


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
