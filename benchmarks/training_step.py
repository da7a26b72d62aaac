"""Training step time (forward, backward, Adam) of our U-Net and peers at the same shape, alternating in one run.

python benchmarks/training_step.py [--shape small cifar10] [--rounds 5] [--device cpu] [--precision fp32]

Each network runs in a separate process, set up as in its own project: ours keeps freed memory, like train.py, and uses
fused Adam. Each round times them in turn, so that other load affects all of them; prints medians over the rounds and the
spread of the ratios. FLOP are counted by `torch.utils.flop_counter` and compared with a large float32 matmul, timed in the
same rounds. denoising-diffusion-pytorch has no network of exactly these shapes: the closest one has linear attention at
the levels without attention here. Requires `pip install -e ".[test,benchmarks]"`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.models import UNet
from ddpm_lightning.runs.processes import keep_freed_memory

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


def work(pipe: Connection, name: str, shape_name: str, arguments: argparse.Namespace) -> None:
    """Time one network in its own process: receives a number of steps, and sends seconds per step."""
    device, shape = torch.device(arguments.device), SHAPES[shape_name]
    if name.startswith("ddpm_lightning") or arguments.same_memory:
        keep_freed_memory()  # as train.py does
    torch.manual_seed(0)
    model = NETWORKS[name](shape)
    if name.endswith("compiled"):
        model.compile()
    # Each with its own project's Adam: ours is fused, theirs is not.
    run = steps_of(model, shape, device, arguments.precision, fused=name.startswith("ddpm_lightning"))
    seconds(run, 3, device)
    flops = 0
    if not name.endswith("compiled"):
        with FlopCounterMode(display=False) as counter:
            run()
        flops = counter.get_total_flops()
    pipe.send((sum(p.numel() for p in model.parameters()), flops))
    while steps := pipe.recv():
        pipe.send(seconds(run, steps, device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each network in a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="also time our compiled network")
    parser.add_argument("--same-memory", action="store_true", help="let the peers keep freed memory, too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    matrices = torch.randn(2, 2048, 2048, device=device)
    names = [name for name in NETWORKS if arguments.compile or not name.endswith("compiled")]
    context = get_context("spawn")

    for shape_name in arguments.shape:
        batch = SHAPES[shape_name]["batch"]
        pipes: dict[str, Connection] = {}
        for name in names:
            pipes[name], theirs = context.Pipe()
            context.Process(target=work, args=(theirs, name, shape_name, arguments), daemon=True).start()
        sizes = {name: pipe.recv() for name, pipe in pipes.items()}
        took: dict[str, list[float]] = {name: [] for name in names}
        matmul = []
        for _ in range(arguments.rounds):
            for name, pipe in pipes.items():
                pipe.send(arguments.steps)
                took[name].append(pipe.recv())
            matmul.append(2 * 2048**3 / seconds(lambda: matrices[0] @ matrices[1], 5, device))
        for pipe in pipes.values():
            pipe.send(0)
        peak = statistics.median(matmul)
        mine = took["ddpm_lightning"]
        print(
            f"\n{shape_name}: {SHAPES[shape_name]['image']}, batch {batch}, {arguments.precision}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        print(f"{'network':<30}{'parameters':>12}{'ms/step':>10}{'images/s':>10}{'ours is':>9}{'from-to':>14}")
        for name, times in took.items():
            median = statistics.median(times)
            ratios = [other / own for other, own in zip(times, mine, strict=True)]
            print(
                f"{name:<30}{sizes[name][0]:>12,}{median * 1e3:>10.1f}{batch / median:>10.1f}"
                f"{statistics.median(ratios):>8.2f}x{f'{min(ratios):.2f}-{max(ratios):.2f}':>14}"
            )
        for name in ("ddpm_lightning", "diffusers"):
            achieved = sizes[name][1] / statistics.median(took[name])
            print(
                f"{name}: {sizes[name][1] / 1e9:.1f} GFLOP a step, {achieved / 1e9:.0f} GFLOP/s, {achieved / peak:.0%} of "
                f"a large matmul's {peak / 1e9:.0f}"
            )
        plain = sizes["diffusers"][1] / statistics.median(mine)
        print(f"with diffusers' FLOP for the same function, ours is at {plain / 1e9:.0f} GFLOP/s")


NETWORKS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "ddpm_lightning": ours,
    "diffusers": Diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    "ddpm_lightning, compiled": ours,
}


if __name__ == "__main__":
    main()
