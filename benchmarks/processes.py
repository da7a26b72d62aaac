"""Processes vs. threads: images per second of 2 processes with 1 thread and of 1 process with 2, and losses of 1, 2 and 4 processes.

python benchmarks/processes.py [--rounds 3] [--steps 60] [--loss-steps 300]

Throughput: unet_small at 28×28 with a global batch of 64, alternating; the images per second are those of a run's last log
line, without validation and figures. Losses: a shortened default digits run with a global batch of 64.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUIET = [
    "logger=none",
    "callbacks.sample_grid=null",
    "callbacks.trajectory=null",
    "callbacks.checkpoint=null",
    "trainer.accelerator=cpu",
]


def run(processes: int, threads: int, *overrides: str) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"hydra.run.dir={folder}/run", f"trainer.devices={processes}", f"data.batch_size={64 // processes}"]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(ROOT / "train.py"), *QUIET, *options, *overrides]
        subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        with (Path(folder) / "run" / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def throughput(processes: int, threads: int, steps: int) -> float:
    small = ["model=unet_small", "data.image_size=[28,28]", f"trainer.max_steps={steps}", "data.val_fraction=0"]
    rows = run(processes, threads, *small, f"trainer.log_every_n_steps={steps // 2}", "callbacks.best_checkpoint=null")
    return float(rows[-1]["train/images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--loss-steps", type=int, default=300)
    arguments = parser.parse_args()
    ratios = []
    for _ in range(arguments.rounds):
        one, two = throughput(1, 2, arguments.steps), throughput(2, 1, arguments.steps)
        ratios.append(two / one)
        print(f"1 process x 2 threads: {one:.1f} images/s, 2 x 1: {two:.1f}, ratio {two / one:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")
    steps = arguments.loss_steps
    for processes in (1, 2, 4):
        for seed in (0, 1):
            options = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", f"seed={seed}"]
            rows = run(processes, 1, *options, f"trainer.log_every_n_steps={steps // 3}")
            train = [f"{float(row['train/loss']):.4f}" for row in rows if row["train/loss"]]
            val = [f"{float(row['val/loss']):.4f}" for row in rows if row["val/loss"]]
            print(
                f"{processes} process(es), seed {seed}: train/loss {' '.join(train)}, val/loss {' '.join(val)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
