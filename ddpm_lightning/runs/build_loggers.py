"""Build the config's loggers, W&B's with its run ID, name and tags."""

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

WANDB_ID = "wandb/run_id"  # in the run folder
TAGGED = ("experiment", "data", "model", "schedule", "loss")  # config groups that become tags in W&B


def build_loggers(nodes: DictConfig, run_dir: Path, *, tagged: bool = True) -> list[Logger]:
    """Build the loggers; W&B's with the selected config groups as tags.

    Args:
        nodes: the config's `logger`.
        run_dir: the run folder.
        tagged: whether to tag the run with its selected config groups.
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
    """A sweep's name and W&B group, from the folder of one of its jobs: the last two parts of the sweep's path."""
    return "_".join(run_dir.parts[-3:-1])


def _wandb_id(run_dir: Path) -> str | None:
    """The W&B run ID saved in the run folder, or a new one; None on ranks other than zero."""
    with suppress(OSError):
        return (run_dir / WANDB_ID).read_text()
    return secrets.token_hex(4) if rank_zero_only.rank == 0 else None


@rank_zero_only
def keep_wandb_id(run_dir: Path, loggers: Sequence[Logger]) -> None:
    """Save the W&B run ID in the run folder, if possible, so that a resumed run continues the same W&B run."""
    file = run_dir / WANDB_ID
    for id in [logger.version for logger in loggers if isinstance(logger, WandbLogger) and logger.version]:
        with suppress(OSError):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with replace_file(file) as new:
                    new.write(id)


def _choices() -> list[str]:
    """The selected config groups as tags, cut at W&B's limit of 64 characters."""
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    return [f"{group}={chosen[group]}"[:64] for group in TAGGED if chosen.get(group) is not None]
