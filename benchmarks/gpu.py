"""Training and sampling speed on one device; gpu.sh runs all parts.

python benchmarks/gpu.py step --network ours --how graphs --shape unet_35m --precision bf16
python benchmarks/gpu.py run --shape unet_1m
python benchmarks/gpu.py sample --shape unet_35m
python benchmarks/gpu.py resume
python benchmarks/gpu.py fashion --data folder

A step is forward, backward, clipping, AdamW and EMA, with batches on the device. MFU is the network's FLOP/s, counting three
times the forward pass, over the FLOP/s of an 8192×8192 bfloat16 matrix product on the device. With --tiny, shapes are small
enough for tests on a CPU within minutes.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ddpm_lightning import DDIM, DDPM, Denoiser, DiT, Guided, Loss, UNet, schedules
from ddpm_lightning.models.cost import matmul_speed, training_flops
from ddpm_lightning.runs.compiling import compile_blocks
from ddpm_lightning.runs.graphs import graph_evaluations, graph_training

ROOT = Path(__file__).parent.parent
SMALL = {"num_res_blocks": 1, "norm_groups": 8, "attention_levels": (1,)}
SHAPES: dict[str, dict[str, Any]] = {
    "unet_1m": {
        "image": (1, 28, 28),
        "batch": 256,
        "model": {"base_channels": 32, "channel_multipliers": (1, 2, 2), **SMALL},
    },
    "unet_35m": {"image": (3, 32, 32), "batch": 128, "model": {}},
    "unet_256": {
        "image": (3, 256, 256),
        "batch": 8,
        "model": {"channel_multipliers": (1, 1, 2, 2, 4, 4), "attention_levels": (4,)},
    },
    "dit_s": {"image": (3, 32, 32), "batch": 128, "model": {}},
}
TINY = {
    "image": (1, 8, 8),
    "batch": 2,
    "model": {"base_channels": 8, "channel_multipliers": (1, 2), "norm_groups": 4, "num_res_blocks": 1},
}


def network(name: str, kind: str, shape: dict[str, Any]) -> nn.Module:
    """Our network, or a peer's with the arguments (x, t, y)."""
    channels = shape["image"][0]
    if kind == "ours":
        if name == "dit_s":
            small = {"hidden_size": 16, "depth": 1, "num_heads": 2} if shape["batch"] == 2 else {}
            return DiT(channels, channels, **small)
        return UNet(channels, channels, **shape["model"])
    given = {
        "base_channels": 128,
        "channel_multipliers": (1, 2, 2, 2),
        "num_res_blocks": 2,
        "norm_groups": 32,
        **shape["model"],
    }
    theirs = {
        "image": shape["image"],
        "base": given["base_channels"],
        "mult": given["channel_multipliers"],
        "blocks": given["num_res_blocks"],
        "groups": given["norm_groups"],
    }
    if kind == "diffusers":
        from training_step import Diffusers

        return _Called(Diffusers(theirs))
    from training_step import denoising_diffusion_pytorch

    return _Called(denoising_diffusion_pytorch(theirs))


class _Called(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(x, t)


def seconds_of(run: Callable[[], object], device: torch.device, least: float) -> tuple[float, float]:
    """Wall and host seconds per call, measured over at least `least` seconds."""
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        run()
    sync()
    count, host, started = 0, 0.0, time.perf_counter()
    while time.perf_counter() - started < least:
        before = time.perf_counter()
        run()
        host += time.perf_counter() - before
        count += 1
        if count % 20 == 0:
            sync()
    sync()
    return (time.perf_counter() - started) / count, host / count


def step(a: argparse.Namespace) -> None:
    """One line: milliseconds of a training step, images per second, MFU, memory, and the time to the first step."""
    device, shape, began = torch.device(a.device), TINY if a.tiny else SHAPES[a.shape], time.perf_counter()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    net = network(a.shape, a.network, shape).to(device)
    if a.how == "compile":
        compile_blocks(net, device)
    module = DDPM(Denoiser(net, schedules.linear()), Loss(), torch.optim.AdamW).to(device).train()
    if a.how == "graphs":  # falls back to no graph on a CPU
        graph_training(module, Trainer(accelerator=device.type, devices=1, logger=False, enable_checkpointing=False))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    weights = [p.detach() for p in module.parameters()]
    averages = [w.clone() for w in weights]
    x0 = torch.rand(shape["batch"], *shape["image"], device=device) * 2 - 1
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=a.precision == "bf16")

    def run() -> None:
        with autocast:
            loss = module.training_step(x0, 0)["loss"]
        module.optimizer_zero_grad(0, 0, optimizer)
        module.backward(loss)
        module.configure_gradient_clipping(optimizer, 1.0, "norm")
        optimizer.step()
        torch._foreach_lerp_(averages, weights, 0.001)

    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - began
    wall, host = seconds_of(run, device, a.seconds)
    flops = training_flops(net, shape["image"]) * shape["batch"]
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    print(
        f"{a.shape:<10}{a.network:<28}{a.how:<9}{a.precision:<6}{wall * 1e3:9.2f} ms{host * 1e3:9.2f} host{shape['batch'] / wall:10.0f} images/s"
        f"{flops / wall / matmul_speed(device):8.1%} MFU{memory:7.2f} GiB{first:8.1f} s to the first step",
        flush=True,
    )


def train(folder: Path, a: argparse.Namespace, *overrides: str) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    tiny = ["model.base_channels=8", "model.norm_groups=4", "data.batch_size=16"] if a.tiny else []
    where = "gpu" if a.device.startswith("cuda") else "cpu"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"run_dir={folder}",
        f"hydra.run.dir={folder}",
        "logger=none",
        f"trainer={where}",
    ]
    subprocess.run([*command, *tiny, *overrides], check=True, stdout=subprocess.DEVNULL)
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(a: argparse.Namespace) -> None:
    """Training step speed through train.py, with all callbacks."""
    batch, steps = (16, 40) if a.tiny else (SHAPES[a.shape]["batch"], 300)
    model = {"unet_1m": "unet_small", "unet_35m": "unet_ddpm", "dit_s": "dit_s"}.get(a.shape, "unet_ddpm_256")
    channels, height, width = SHAPES[a.shape]["image"]
    size = "[8,8]" if a.tiny else f"[{height},{width}]"
    for how in ("false", "auto"):
        with tempfile.TemporaryDirectory() as folder:
            rows = train(
                Path(folder) / "run", a, *([] if a.tiny else [f"model={model}"]), f"data.channels={1 if a.tiny else channels}",
                f"data.image_size={size}", f"data.batch_size={batch}", f"trainer.max_steps={steps}",
                f"trainer.log_every_n_steps={steps // 4}", f"compile={how}",
            )  # fmt: skip
        last = [row for row in rows if row["train/loss"]][-1]
        speed, mfu, host = (float(last[f"train/{name}"]) for name in ("images_per_second", "mfu", "host_share"))
        print(
            f"{a.shape:<10}train.py compile={how:<6}{batch / speed * 1e3:9.2f} ms{speed:10.0f} images/s{mfu:8.1%} MFU, host busy {host:.0%}",
            flush=True,
        )


def sample(a: argparse.Namespace) -> None:
    """Network evaluations per second when sampling."""
    device, shape = torch.device(a.device), TINY if a.tiny else SHAPES[a.shape]
    torch.set_float32_matmul_precision("high")
    sampler = DDIM(10)
    for kind, how in (("ours", "eager"), ("ours", "graphs"), ("diffusers", "eager")):
        for batch in (2,) if a.tiny else (64, 512):
            torch.manual_seed(0)
            net = network(a.shape, kind, shape).to(device).eval()
            if how == "graphs" and device.type == "cuda":
                graph_evaluations(net)
            denoiser = Guided(Denoiser(net, schedules.linear()).to(device), 1.0)
            x = torch.randn(batch, *shape["image"], device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                wall, _ = seconds_of(lambda x=x, denoiser=denoiser: sampler(denoiser, x), device, a.seconds)
            print(
                f"{a.shape:<10}sampling {kind:<12}{how:<8}batch {batch:<5}{10 * batch / wall:12.0f} evaluations/s",
                flush=True,
            )


def resume(a: argparse.Namespace) -> None:
    """Compare a resumed run with an uninterrupted one: weights and EMA must be bit-identical."""
    quick = [
        "trainer.deterministic=true",
        "callbacks.checkpoint.every_n_train_steps=20",
        "trainer.val_check_interval=20",
        "compile=auto",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        os.environ.update(environment)
        train(folder / "whole", a, *quick, "trainer.max_steps=40")
        train(folder / "parts", a, *quick, "trainer.max_steps=20")
        command = [sys.executable, str(ROOT / "train.py"), f"resume={folder / 'parts'}", "trainer.max_steps=40"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        whole, parts = (
            torch.load(folder / part / "checkpoints" / "last.ckpt", weights_only=True) for part in ("whole", "parts")
        )
    for key in ("state_dict", "ema_state_dict"):
        same = all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
        print(f"resumed {key}: {'bit-identical' if same else 'NOT EQUAL'}", flush=True)


def fashion(a: argparse.Namespace) -> None:
    """Train on Fashion-MNIST for some minutes, sample, and measure FID with the fixed classifier."""
    with tempfile.TemporaryDirectory() as name:
        folder, minutes = Path(name) / "run", 0.1 if a.tiny else a.minutes
        started = time.perf_counter()
        limit = f"+trainer.max_time=00:00:{int(minutes):02d}:{int(minutes * 60) % 60:02d}"
        figures = ["callbacks.sample_grid.every_n_steps=null", "callbacks.raw_grid=null", "callbacks.trajectory=null"]
        given = ["experiment=fashion_mnist", f"data.root={a.data}", "trainer.max_steps=10000000"]
        train(folder, a, *given, limit, *figures)
        trained = time.perf_counter() - started
        count = 20 if a.tiny else 10000
        options = [f"ckpt_path={folder}", f"num_samples={count}", "bits_images=0", "nearest=0", "sampler=dpmpp_2m_sde"]
        device = f"device={a.device.split(':')[0]}"
        command = [sys.executable, str(ROOT / "evaluate.py"), *options, "sampler.num_steps=20", device]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(next((folder / "evaluations").glob("*/evaluation.json")).read_text())
        print(
            f"Fashion-MNIST: {trained:.0f} s of training, FID {found['metrics']['fid']['value']:.2f} of {count} samples",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"step": step, "run": run, "sample": sample, "resume": resume, "fashion": fashion}
    parser.add_argument("part", choices=[*parts])
    parser.add_argument("--network", default="ours", choices=["ours", "diffusers", "denoising_diffusion_pytorch"])
    parser.add_argument("--how", default="graphs", choices=["eager", "compile", "graphs"])
    parser.add_argument("--shape", default="unet_35m", choices=[*SHAPES])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "tf32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per measurement")
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes of training on Fashion-MNIST")
    parser.add_argument("--data", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
