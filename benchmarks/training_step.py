"""One training step (forward, backward, Adam) of our U-Net and of its peers' at the same shape, alternating in one run.

python benchmarks/training_step.py [--shape small cifar10] [--rounds 5] [--device cpu] [--precision fp32]

Each round times every network in turn, so that whatever else the machine does meets all of them; medians over the rounds are
printed, with the spread of the ratios. FLOP are counted by `torch.utils.flop_counter` on our network, and the share is that
of a large float32 matmul, timed in the same rounds. denoising-diffusion-pytorch has no network of exactly these shapes: its
own is the nearest, with linear attention at the levels that have none here. Needs `pip install -e ".[test,benchmarks]"`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.models import UNet

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"image": (1, 28, 28), "batch": 64, "base": 32, "mult": (1, 2, 2), "blocks": 1, "groups": 8},
    "cifar10": {"image": (3, 32, 32), "batch": 16, "base": 128, "mult": (1, 2, 2, 2), "blocks": 2, "groups": 32},
}


class Diffusers(nn.Module):
    """UNet2DModel with the arguments (x, t)."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        from diffusers import UNet2DModel

        widths = [shape["base"] * m for m in shape["mult"]]
        attention = [i == 1 for i in range(len(widths))]
        self.net = UNet2DModel(
            sample_size=shape["image"][-1],
            in_channels=shape["image"][0],
            out_channels=shape["image"][0],
            layers_per_block=shape["blocks"],
            block_out_channels=widths,
            down_block_types=["AttnDownBlock2D" if here else "DownBlock2D" for here in attention],
            up_block_types=["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)],
            norm_num_groups=shape["groups"],
            attention_head_dim=None,
            dropout=0.1,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t).sample


def ours(shape: dict[str, Any]) -> nn.Module:
    channels = shape["image"][0]
    return UNet(
        channels,
        channels,
        base_channels=shape["base"],
        channel_multipliers=shape["mult"],
        num_res_blocks=shape["blocks"],
        norm_groups=shape["groups"],
        dropout=0.1,
    )


def denoising_diffusion_pytorch(shape: dict[str, Any]) -> nn.Module:
    from denoising_diffusion_pytorch import Unet

    attention = tuple(i == 1 for i in range(len(shape["mult"])))
    return Unet(
        shape["base"],
        channels=shape["image"][0],
        dim_mults=shape["mult"],
        dropout=0.1,
        full_attn=attention,
        attn_heads=1,
        attn_dim_head=2 * shape["base"],
        flash_attn=True,
    )


def steps_of(
    model: nn.Module, shape: dict[str, Any], device: torch.device, precision: str, fused: bool
) -> Callable[[], None]:
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)
    x = torch.randn(shape["batch"], *shape["image"], device=device)
    noise = torch.randn_like(x)
    t = torch.randint(0, 1000, (shape["batch"],), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def step() -> None:
        with autocast:
            loss = (model(x, t).float() - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each network in a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="ours compiled, beside ours")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    matrices = torch.randn(2, 2048, 2048, device=device)

    for name in arguments.shape:
        shape = SHAPES[name]
        networks = {
            "ddpm_lightning": ours(shape),
            "diffusers": Diffusers(shape),
            "denoising-diffusion-pytorch": denoising_diffusion_pytorch(shape),
        }
        if arguments.compile:
            networks["ddpm_lightning, compiled"] = ours(shape)
            networks["ddpm_lightning, compiled"].compile()
        # Each with the Adam that its own project trains with: ours is the fused one, theirs the plain one.
        runs = {
            key: steps_of(model, shape, device, arguments.precision, fused=key.startswith("ddpm_l"))
            for key, model in networks.items()
        }
        with FlopCounterMode(display=False) as counter:
            runs["ddpm_lightning"]()
        flop = counter.get_total_flops()
        for run in runs.values():
            seconds(run, 2, device)
        took: dict[str, list[float]] = {key: [] for key in runs}
        matmul = []
        for _ in range(arguments.rounds):
            for key, run in runs.items():
                took[key].append(seconds(run, arguments.steps, device))
            matmul.append(2 * 2048**3 / seconds(lambda: matrices[0] @ matrices[1], 5, device))
        peak = statistics.median(matmul)
        print(
            f"\n{name}: {shape['image']}, batch {shape['batch']}, {arguments.precision}, {flop / 1e9:.1f} GFLOP a step of ours,"
        )
        print(f"matmul {peak / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"{'network':<30}{'parameters':>12}{'ms/step':>10}{'images/s':>10}{'ours is':>9}{'from-to':>14}")
        for key, times in took.items():
            median = statistics.median(times)
            ratios = [other / mine for other, mine in zip(times, took["ddpm_lightning"], strict=True)]
            count = sum(p.numel() for p in networks[key].parameters())
            print(
                f"{key:<30}{count:>12,}{median * 1e3:>10.1f}{shape['batch'] / median:>10.1f}"
                f"{statistics.median(ratios):>8.2f}x{f'{min(ratios):.2f}-{max(ratios):.2f}':>14}"
            )
        achieved = flop / statistics.median(took["ddpm_lightning"])
        print(f"ours: {achieved / 1e9:.0f} GFLOP/s, {achieved / peak:.0%} of the matmul")


if __name__ == "__main__":
    main()
