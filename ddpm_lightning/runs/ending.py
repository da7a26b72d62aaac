"""What a run says of itself: where it comes from, and at its end how it went."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.run_folder import by_step

__all__ = ["closing_words", "origin_of"]


def closing_words(run_dir: Path, summary: Mapping[str, Any], wandb: list[str | None], *, averaged: bool) -> str:
    """What is said at the end: how it went, where things lie, and how to go on."""
    folder, final = Path(os.path.relpath(run_dir)), summary["final"]
    losses = [f"{key} {final[key]:.4f}" for key in ("train/loss", "val/loss") if key in final]
    how = f"{summary['status'].capitalize()}: {summary['steps']} steps in {summary['wall_seconds']:.0f} s"
    lines = ["", ", ".join([how, *losses])]
    checkpoint = folder / "checkpoints" / "last.ckpt"
    pictures = [path for name in ("grid", "scatter") for path in by_step(folder / "samples", name, ".png")]
    for name, path in (
        ("checkpoint", checkpoint),
        ("metrics", folder / "metrics.csv"),
        *[("samples", path) for path in pictures[-1:]],
    ):
        if path.exists():
            lines.append(f"  {name:<11} {path}")
    lines += [f"  {'W&B':<11} {where}" for where in wandb if where]
    if checkpoint.exists():
        plain = re.fullmatch(r"[\w./-]+", str(checkpoint))
        argument = f"ckpt_path={checkpoint}" if plain else shlex.quote(f'ckpt_path="{checkpoint}"')
        lines.append(f"Go on with: python sample.py {argument}" + " weights=raw" * (not averaged))
    return "\n".join(lines)


def origin_of(data: ImageDataModule, overrides: list[str]) -> dict[str, Any]:
    """What a run is made of besides its config: its data, the code's commit, and what was typed."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None  # installed from a wheel, or git is not there
    return {"data_fingerprint": data.source.fingerprint, "git_commit": commit, "overrides": overrides}
