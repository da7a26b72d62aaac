"""The overhead of Lightning, default callbacks and logger per training step, compared with a bare loop.

python benchmarks/lightning_overhead.py [--shape small] [--rounds 5] [--steps 60] [--trainer auto]

Shape "small" is unet_small at 28×28, batch 64; "dispatch" has about 300 tensors of eight channels at 8×8, batch 8, so that
Python calls dominate. Both train on the resized digits. Each round times both in turn, in separate processes: the bare
loop uses the same loader and optimizer steps, with clipping and EMA. A run is timed between its first and last log line,
without the figures, checkpoints and validation every 500 steps.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize

from ddpm_lightning.runs.build import build_module
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.processes import keep_freed_memory

SHAPES = {
    "small": ["model=unet_small", "data.image_size=[28,28]"],
    "dispatch": ["model=unet_small", "model.base_channels=8", "model.num_res_blocks=3", "data.batch_size=8"],
}


def bare(steps: int, shape: str) -> float:
    """Seconds per step of a bare loop with the module."""
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    with initialize("../conf", version_base="1.3"):
        config = compose("train", [*SHAPES[shape], "run_dir=unused"])
    module, data = build_module(config), build("data", config.data)
    data.setup()
    loader, optimizers = data.train_dataloader(), module.configure_optimizers()
    optimizer, lr_scheduler = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    module.train()
    parameters = [*module.parameters()]
    weights = [p.detach() for p in parameters]
    averages = [w.clone() for w in weights]
    done, started = 0, 0.0
    while True:
        for batch in loader:
            if done == steps // 3:
                started = time.perf_counter()
            loss = module.training_step(data.on_after_batch_transfer(batch, 0), 0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            lr_scheduler.step()
            torch._foreach_lerp_(averages, weights, 0.001)
            done += 1
            if done == steps:
                return (time.perf_counter() - started) / (steps - steps // 3)


def whole(steps: int, trainer: str, shape: str) -> float:
    """Seconds per step of train.py, between two log lines."""
    third = steps // 3
    with tempfile.TemporaryDirectory() as folder:
        options = [
            *SHAPES[shape],
            f"trainer={trainer}",
            f"trainer.max_steps={steps}",
            f"trainer.log_every_n_steps={third}",
            "trainer.val_check_interval=100000",
            "callbacks.checkpoint.every_n_train_steps=100000",
            "callbacks.best_checkpoint=null",
            "callbacks.sample_grid=null",
            "callbacks.raw_grid=null",
            "callbacks.trajectory=null",
            "logger=none",
            f"hydra.run.dir={folder}",
        ]
        script = Path(__file__).parent.parent / "train.py"
        subprocess.run([sys.executable, script, *options], check=True, stdout=subprocess.DEVNULL)
        with (Path(folder) / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        stamps = [float(row["train/wall_seconds"]) for row in rows if int(row["step"]) >= third]
    return (stamps[-1] - stamps[0]) / (int(rows[-1]["step"]) - third)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES], default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--trainer", default="auto")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(bare(arguments.steps, arguments.shape))
        return
    ratios = []
    for _ in range(arguments.rounds):
        command = [sys.executable, __file__, "--bare", "--steps", str(arguments.steps), "--shape", arguments.shape]
        alone = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        run = whole(arguments.steps, arguments.trainer, arguments.shape)
        ratios.append(run / alone)
        print(f"bare {alone * 1e3:.1f} ms/step, train.py {run * 1e3:.1f} ms/step: {run / alone - 1:+.1%}", flush=True)
    print(f"median {statistics.median(ratios) - 1:+.1%}")


if __name__ == "__main__":
    main()
