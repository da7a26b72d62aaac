"""FID by width of the EMA, from the snapshots of one run with labels, such as the digits.

python train.py callbacks=post_hoc hydra.run.dir=RUN
python benchmarks/ema_width.py RUN [--stds 0.02 0.05 0.1 ...] [--images 1797] [--seeds 0 1] [--out ema_width.png]

Features of the classifier that evaluate.py uses, against all training images; DDIM with 20 steps; the same noise for all
widths. It also prints the FID of the run's own EMA and of its raw weights.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ddpm_lightning import DDIM, load_denoiser
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.metrics.distances import frechet_distance
from ddpm_lightning.metrics.features import cache_folder, classifier, extract
from ddpm_lightning.plots import Curve, draw_curves
from ddpm_lightning.runs import load_checkpoint
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.post_hoc import reconstruct_ema

STDS = [0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25]


def images_of(denoiser: Denoiser, count: int, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Samples from the noise of a seed."""
    batches = torch.arange(count).split(256)
    noise = [SeededNoise(seed, ids.tolist()) for ids in batches]
    return torch.cat([to_uint8(DDIM(20)(denoiser, batch.draw(shape), randn=batch)) for batch in noise])


def with_weights(run: Path, weights: Mapping[str, Tensor]) -> Denoiser:
    """The run's denoiser with averaged weights."""
    denoiser = load_denoiser(run)
    state = {name.removeprefix("denoiser."): value for name, value in weights.items()}
    denoiser.load_state_dict({**denoiser.state_dict(), **state})
    return denoiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stds", type=float, nargs="+", default=STDS)
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("ema_width.png"))
    given = parser.parse_args()

    config = OmegaConf.create(load_checkpoint(given.run)["config"]["data"])
    data: ImageDataModule = build("data", config)
    data.setup()
    features = classifier(partial(data.split, "all"), cache_folder())
    real = extract(features, data.split("train").images)
    shape = (config.channels, *config.image_size)

    def fid(denoiser: Denoiser) -> list[float]:
        samples = (images_of(denoiser, given.images, seed, shape) for seed in given.seeds)
        return [frechet_distance(real, extract(features, images)).value for images in samples]

    found: dict[str, list[float]] = {}
    print(f"{'weights':<10}{'profile':>9}{'FID of each seed':>20}")
    for std in given.stds:
        weights, distance = reconstruct_ema(given.run, std=std)
        found[f"{std:g}"] = fid(with_weights(given.run, weights))
        print(f"{std:<10g}{distance:>9.2%}   ", *(f"{value:8.3f}" for value in found[f"{std:g}"]), flush=True)
    for name in ("ema", "raw"):
        found[name] = fid(load_denoiser(given.run, weights=name))
        print(f"{name:<19}   ", *(f"{value:8.3f}" for value in found[name]), flush=True)

    def mean(name: str) -> float:
        return sum(found[name]) / len(found[name])

    ends = [min(given.stds), max(given.stds)]
    curves = [Curve("reconstructed", 0, given.stds, [mean(f"{std:g}") for std in given.stds])]
    curves[0] = curves[0]._replace(
        low=[min(found[f"{std:g}"]) for std in given.stds], high=[max(found[f"{std:g}"]) for std in given.stds]
    )
    curves += [
        Curve(label, i, ends, [mean(key)] * 2) for i, (key, label) in enumerate((("ema", "EMA"), ("raw", "raw")), 1)
    ]
    given.out.write_bytes(draw_curves(curves, title="FID", x_label="width of the EMA"))


if __name__ == "__main__":
    main()
