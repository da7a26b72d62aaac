"""The loggers that a config names, W&B's with its run's id, name and tags."""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from ddpm_lightning.files import replace_file
from ddpm_lightning.loggers import WandbLogger
from ddpm_lightning.run_folder import SWEEP
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.roles import WANDB

__all__ = ["build_loggers", "keep_wandb_id", "sweep_name"]

WANDB_ID = "wandb/run_id"  # in a run folder
TAGGED = ("experiment", "data", "model", "schedule", "loss")  # groups that runs are told apart by in W&B


def build_loggers(nodes: DictConfig, run_dir: Path, *, tagged: bool = True) -> list[Logger]:
    """The loggers; W&B's with what was chosen as tags.

    Args:
        nodes: the config's `logger`.
        run_dir: the run's folder.
        tagged: whether the config groups that were chosen become tags.
    """
    loggers: list[Logger] = []
    for name in map(str, nodes):
        node = nodes[name]
        ours: dict[str, Any] = {}
        if node._target_ in WANDB:
            in_a_sweep = (run_dir.parent / SWEEP).exists()
            ours = {
                "_target_": WANDB[0],
                "id": _wandb_id(run_dir),
                "name": node.name or "_".join(run_dir.parts[-2:]),
                "group": node.group or (sweep_name(run_dir) if in_a_sweep else None),
                "tags": [*node.tags, *(_choices() if tagged else [])],
            }
        loggers.append(build(f"logger.{name}", node, **ours))
    return loggers


def sweep_name(run_dir: Path) -> str:
    """The name of a sweep, which W&B groups its runs by, from one of its jobs' folders: the last two parts of the sweep's own."""
    return "_".join(run_dir.parts[-3:-1])


def _wandb_id(run_dir: Path) -> str | None:
    """The W&B run's id: the one that the run folder keeps, or a new one; None on other ranks than the first."""
    with suppress(OSError):
        return (run_dir / WANDB_ID).read_text()
    return secrets.token_hex(4) if rank_zero_only.rank == 0 else None


@rank_zero_only
def keep_wandb_id(run_dir: Path, loggers: Sequence[Logger]) -> None:
    """Keep the W&B run's id in the run's folder, so that a resumed run is the same one; where it cannot be written, it is not kept."""
    file = run_dir / WANDB_ID
    for id in [logger.version for logger in loggers if isinstance(logger, WandbLogger) and logger.version]:
        with suppress(OSError):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with replace_file(file) as new:
                    new.write(id)


def _choices() -> list[str]:
    """What was chosen of the groups that runs are told apart by, as tags of at most 64 characters, which is W&B's limit."""
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    return [f"{group}={chosen[group]}"[:64] for group in TAGGED if chosen.get(group) is not None]
