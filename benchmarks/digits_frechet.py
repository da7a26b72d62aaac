"""Fréchet distance of samplers by number of steps, on one digits checkpoint, in pixel space.

python benchmarks/digits_frechet.py CHECKPOINT [--steps 10 20 50] [--samplers ddim heun ...] [--images 1797]

64 dimensions, pixels in [0, 1], means and covariances of all 1,797 real digits and of as many samples from seed 0,
as in FID (Heusel et al. 2017, Eq. 6). Two halves of the real digits are 0.07 apart.
"""

import argparse
import time

import numpy as np
import torch
from hydra import compose, initialize
from hydra.utils import instantiate
from sklearn.datasets import load_digits

from ddpm_lightning import load_denoiser
from ddpm_lightning.images import SeededNoise, to_uint8


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """|μ_1 − μ_2|² + tr(C_1 + C_2 − 2 (C_1 C_2)^½) of two sets of vectors."""
    (mean_1, cov_1), (mean_2, cov_2) = ((a.mean(0), np.cov(a, rowvar=False)) for a in (one, other))
    roots = np.sqrt(np.linalg.eigvals(cov_1 @ cov_2).real.clip(0)).sum()
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2) - 2 * roots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument(
        "--samplers", nargs="+", default=["ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun"]
    )
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--overrides", nargs="*", default=[])
    arguments = parser.parse_args()

    denoiser = load_denoiser(arguments.checkpoint)
    real = load_digits().data / 16
    print(f"{'sampler':<14}{'steps':>6}{'evaluations':>13}{'Fréchet':>9}{'seconds':>9}")
    with initialize("../conf", version_base="1.3"):
        for name in arguments.samplers:
            for steps in arguments.steps:
                overrides = [f"sampler={name}", f"sampler.num_steps={steps}", *arguments.overrides]
                sampler = instantiate(compose("sample", overrides).sampler)
                started, images = time.perf_counter(), []
                for ids in torch.arange(arguments.images).split(256):
                    noise = SeededNoise(0, ids.tolist())
                    for step in sampler.trajectory(denoiser, noise.draw((1, 8, 8)), randn=noise):
                        last = step
                    images.append(to_uint8(last.x))
                distance = frechet(torch.cat(images).flatten(1).numpy() / 255, real)
                seconds = time.perf_counter() - started
                print(f"{name:<14}{steps:>6}{last.evaluations:>13}{distance:>9.4f}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
