"""The summary and the final message of a run."""

import os
import platform
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning import __version__, environment
from ddpm_lightning.callbacks import EMA
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.loggers import WandbLogger
from ddpm_lightning.run_folder import by_step, write_summary
from ddpm_lightning.runs.build import Run
from ddpm_lightning.runs.build_callbacks import first
from ddpm_lightning.runs.processes import requeue
from ddpm_lightning.runs.trust import packages_to_trust

__all__ = ["origin_of", "say", "tell", "uninterrupted"]


def tell(run: Run, status: str, signum: int | None = None) -> dict[str, Any]:
    """Report how a run ended to summary.json, SLURM, W&B and the terminal, and return the summary.

    Args:
        run: the run, whose W&B logger is finished.
        status: "finished", "interrupted" or "failed".
        signum: the signal that stopped the run.
    """
    wandb = [logger for logger in run.loggers if isinstance(logger, WandbLogger)]
    with uninterrupted():
        summary = _write(run, status, signum, wandb)
    uploads: list[str | None] = []
    with suppress(KeyboardInterrupt):  # which ends the upload, and not the final message
        uploads += [logger.finish(0 if status == "finished" else 1) for logger in wandb]
    with uninterrupted():
        if status != "failed":
            say(_final_message(run, summary, uploads))
    return summary


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C for the moment that a run needs to say how it ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write(run: Run, status: str, signum: int | None, wandb: Sequence[WandbLogger]) -> dict[str, Any]:
    """Write summary.json, and return it."""
    summary = {
        "status": status,
        "ended": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S+00:00}",
        "steps": run.trainer.global_step,
        "wall_seconds": round(run.record.wall_seconds, 1),
        "parameters": run.parameters,
        "processes": run.trainer.world_size,
        **run.record.metrics(run.trainer),
        "overrides": run.record.overrides,
        "git_commit": _commit(),
        "versions": {
            **{"ddpm_lightning": __version__, "torch": torch.__version__, "lightning": lightning.__version__},
            "python": platform.python_version(),
        },
        "wandb": next((logger.address for logger in wandb if logger.address), None),
    }
    if run.trainer.is_global_zero:
        with suppress(OSError):  # a full disk may be the cause
            write_summary(run.folder, summary)
        if signum == getattr(signal, "SIGUSR1", 0):
            requeue()  # before W&B, which may use up the time left by SLURM
    return summary


def _final_message(run: Run, summary: Mapping[str, Any], uploads: Sequence[str | None]) -> str:
    """The outcome, the paths of the results, and the next command."""
    folder, final = Path(os.path.relpath(run.folder)), summary["final"]
    losses = [f"{key} {final[key]:.4f}" for key in ("train/loss", "val/loss") if key in final]
    how = f"{summary['status'].capitalize()}: {summary['steps']} steps in {summary['wall_seconds']:.0f} s"
    lines = ["", ", ".join([how, *losses, *_speed(final)])]
    checkpoint = folder / "checkpoints" / "last.ckpt"
    figures = [path for name in ("grid", "scatter") for path in by_step(folder / "samples", name, ".png")]
    places = [("checkpoint", checkpoint), ("metrics", folder / "metrics.csv")]
    places += [("samples", path) for path in figures[-1:]]
    lines += [f"  {name:<11} {path}" for name, path in places if path.exists()]
    lines += [f"  {'W&B':<11} {where}" for where in uploads if where]
    trust = environment.trust_argument(packages_to_trust(run.record.config))
    if summary["status"] == "interrupted" and not environment.current().job:  # a sweep says how it resumes as a whole
        resume = ["Resume with:", environment.command("train"), shlex.quote(f"resume={folder}"), trust]
        lines.append(
            " ".join(filter(None, resume))
            + ("" if checkpoint.exists() else " (from the start: no checkpoint was saved)")
        )
    if checkpoint.exists():
        plain = re.fullmatch(r"[\w./-]+", str(checkpoint))
        argument = f"ckpt_path={checkpoint}" if plain else shlex.quote(f'ckpt_path="{checkpoint}"')
        more = [] if first(run.callbacks, EMA) else ["weights=raw"]
        more.append(trust)
        lines.append(" ".join(["Next:", environment.command("sample"), argument, *filter(None, more)]))
    return "\n".join(lines)


def _speed(final: Mapping[str, Any]) -> list[str]:
    """Images per second and MFU of the last logged steps."""
    speed, share = final.get("train/images_per_second"), final.get("train/mfu")
    if not speed:
        return []
    return [f"{speed:,.0f} images/s" + (f" ({share:.0%} of the device's matmul throughput)" if share else "")]


def origin_of(data: ImageDataModule, overrides: list[str]) -> dict[str, Any]:
    """The origin of a run besides its config: its data, the code's commit and the typed overrides."""
    return {"data_fingerprint": data.source.fingerprint, "git_commit": _commit(), "overrides": overrides}


@cache
def _commit() -> str | None:
    """The code's commit, as of the start of the run; None if installed from a wheel, or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


@rank_zero_only
def say(text: str) -> None:
    """Print a message on rank zero."""
    print(text, flush=True)
