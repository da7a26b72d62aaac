"""Resident memory of a long run, after 200 and 2,000 steps and grids.

python benchmarks/memory.py [--steps 2000] [--grid-every 10]

A tiny network on the digits, with a grid every 10 steps, a checkpoint every 50 and validation every 100; the run's process
reports its memory, as counted by Linux.
"""

import argparse
import tempfile
from typing import Any

from hydra import compose, initialize
from lightning.pytorch import Callback

from ddpm_lightning.runs import build, train


def resident() -> float:
    """Resident memory in MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


class Watch(Callback):
    """Records the memory every 200 steps."""

    seen: dict[int, float] = {}  # noqa: RUF012

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step % 200 == 0:
            self.seen[trainer.global_step] = resident()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--grid-every", type=int, default=10)
    arguments = parser.parse_args()
    built = build.build_callbacks

    def with_watch(*arguments: Any) -> Any:
        return [*built(*arguments), Watch()]

    build.build_callbacks = with_watch
    with tempfile.TemporaryDirectory() as folder, initialize("../conf", version_base="1.3"):
        overrides = [
            "model.base_channels=16",
            "model.norm_groups=4",
            "sampler.num_steps=5",
            "logger=none",
            f"trainer.max_steps={arguments.steps}",
            "trainer.val_check_interval=100",
            "callbacks.checkpoint.every_n_train_steps=50",
            f"callbacks.sample_grid.every_n_steps={arguments.grid_every}",
            f"run_dir={folder}/run",
        ]
        train(compose("train", overrides))
    first = Watch.seen[200]
    for step, mib in Watch.seen.items():
        print(f"step {step:>5}: {mib:7.1f} MiB, {mib / first - 1:+.1%}")


if __name__ == "__main__":
    main()
