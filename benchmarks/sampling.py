"""Sampling speed of our sampler and network vs. diffusers' pipeline with the same weights, alternating in one run.

python benchmarks/sampling.py [--rounds 5] [--images 32] [--steps 10]

A random U-Net of unet_small's shape at 28×28 is exported to diffusers; both sample with DDIM from the same noise, and their
images are compared before timing.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lightning import DDIM, Denoiser, UNet, schedules, to_diffusers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    import diffusers

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = UNet(1, 1, base_channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=8)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.03)
    denoiser = Denoiser(model, schedules.linear()).eval().to(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(denoiser, Path(folder) / "pipeline", image_size=[28, 28])
        unet = diffusers.DDPMPipeline.from_pretrained(Path(folder) / "pipeline").unet.eval().to(arguments.device)
    scheduler = diffusers.DDIMScheduler(clip_sample=True, timestep_spacing="trailing")
    noise = torch.randn(arguments.images, 1, 28, 28, device=arguments.device)

    def ours() -> Tensor:
        return DDIM(arguments.steps)(denoiser, noise)

    @torch.no_grad()
    def theirs() -> Tensor:
        scheduler.set_timesteps(arguments.steps)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
        return x

    print(f"largest pixel difference: {(ours() - theirs()).abs().max():.1e}")
    runs: dict[str, Callable[[], Tensor]] = {"ddpm_lightning": ours, "diffusers": theirs}
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run().cpu()
            took[name].append(time.perf_counter() - started)
    for name, times in took.items():
        ratios = [other / mine for other, mine in zip(times, took["ddpm_lightning"], strict=True)]
        evaluations = arguments.images * arguments.steps / statistics.median(times)
        print(f"{name:<16}{evaluations:>9.1f} evaluations/s, ours is {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()
