"""The checkpoint and config that a run resumes from."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.module import DDPM
from ddpm_lightning.records.yaml import Vocabulary, read_record
from ddpm_lightning.run_folder import checkpoints_in, refuse_pipes
from ddpm_lightning.runs.changes import (
    as_replayed,
    change,
    differing_values,
    moved,
    plain,
    refuse_changes,
    without_handed,
)
from ddpm_lightning.runs.loading import averages_of, differing, load_checkpoint
from ddpm_lightning.runs.soundness import is_state_of, lacking
from ddpm_lightning.runs.trust import check_targets

__all__ = ["ResumePoint", "first_intact", "newest_point", "refuse_another", "resume"]

log = logging.getLogger(__name__)


class ResumePoint(NamedTuple):
    """Where a run resumes from: its config, its overrides, and its checkpoint, None if none was saved.

    `typed` holds the dotted keys typed when resuming.
    """

    config: dict[str, Any]
    overrides: Sequence[str]
    path: Path | None = None
    checkpoint: Mapping[str, Any] = {}
    typed: Collection[str] = ()

    @property
    def rows(self) -> int:
        """The number of rows in metrics.csv at the checkpoint."""
        return self.checkpoint.get("metrics_rows", 0)

    def check(self, module: DDPM, fingerprint: str) -> None:
        """Refuse to resume with a different network or different data.

        Raises:
            UserError: naming the differing weights, or the fingerprints of the data.
        """
        if not self.checkpoint:
            return
        wrong = differing(module.state_dict(), self.checkpoint["state_dict"])
        for average in averages_of(self.checkpoint).values():
            averaged = {name: parameter for name, parameter in module.named_parameters() if name in average}
            wrong = wrong or differing(averaged, average)
        if wrong:
            raise UserError(
                f"resume: {self.path} holds a different network: {wrong}; leave model, data and schedule unchanged"
            )
        if not is_state_of(module, self.checkpoint["optimizer_states"]):
            raise UserError(
                f"resume: the optimizer state in {self.path} belongs to another network or is damaged: start a new run"
            )
        before = self.checkpoint.get("data_fingerprint")
        if before is not None and before != fingerprint:
            raise UserError(
                f"data: the images or labels differ from those that the run was trained on (fingerprint {before}, now {fingerprint}): "
                f"set data.root=... to their folder, or start a new run with init_from={self.path}"
            )


def resume(config: DictConfig, folder: Path | None) -> tuple[DictConfig, ResumePoint | None]:
    """The config of the run in a folder, and its newest intact checkpoint; without a folder the config unchanged, and None.

    The config is the checkpoint's, changed by the overrides typed now: by their difference in the config composed today.
    Values that were not typed come from the folder, and are checked as untrusted.

    Raises:
        UserError: if no checkpoint can be read, its config names untrusted classes, or a change is invalid.
    """
    if folder is None:
        return config, None
    folder = folder.resolve()
    refuse_pipes(folder, and_links_out=True)
    point = newest_point(folder)
    held = moved(point.config, str(point.config.get("run_dir")), str(folder))
    typed: set[str] = set()
    if HydraConfig.initialized():
        options = GlobalHydra.instance().config_loader().get_group_options
        groups = {group: options(group) for group in HydraConfig.get().runtime.choices}
        vocabulary = Vocabulary(groups, [str(key) for key in config])
        replayed = vocabulary.replayable(point.overrides)
        before, now = as_replayed(plain(compose("train", replayed)), held, replayed), plain(config)
        refuse_changes(before, now, folder)
        held = without_handed({**{key: value for key, value in now.items() if key not in held}, **held})
        typed = {*change(held, before, now)}
    check_targets(held, "run", typed=typed, folder=folder)
    config = OmegaConf.create({**held, "resume": None, "run_dir": str(folder)})
    return config, point._replace(typed=typed)


def newest_point(folder: Path, *, warn: bool = True) -> ResumePoint:
    """The resume point of the newest intact checkpoint in a run folder, or of the folder's records if none was saved.

    Args:
        folder: the run folder.
        warn: whether to warn of damaged checkpoints.

    Raises:
        UserError: if the folder is not a run folder, or none of its checkpoints can be read.
    """
    if not (folder / "config.yaml").exists():
        raise UserError(f"resume must be a run folder of train.py, got {folder}, which has no config.yaml")
    found = checkpoints_in(folder / "checkpoints")
    if (point := first_intact(found, warn=warn)) is not None:
        return point
    if found:
        raise UserError(f"resume={folder} has no checkpoint that can be read: start a new run")
    if warn:
        log.warning("resume=%s: no checkpoint was saved yet; the run starts from the beginning", folder)
    config, typed = read_record(folder / "config.yaml"), []
    with suppress(UserError):  # only needed for keys outside the default config
        typed = read_record(folder / ".hydra" / "overrides.yaml")
    if not isinstance(config, dict):
        raise UserError(f"resume={folder} has a damaged config.yaml: choose another run folder")
    return ResumePoint(config, typed if isinstance(typed, list) else [])


def first_intact(paths: Sequence[Path], *, warn: bool = True) -> ResumePoint | None:
    """The first intact checkpoint of this version; None if there is none."""
    for path in paths:
        try:
            checkpoint = load_checkpoint(path)
            if missing := lacking(checkpoint):
                raise UserError(f"{path} comes from another version: it lacks {', '.join(sorted(missing))}")
        except UserError as error:
            if warn:
                log.warning("%s (resuming from the one before it)", error)
        else:
            return ResumePoint(checkpoint["config"], checkpoint["overrides"], path, checkpoint)
    return None


def refuse_another(config: DictConfig, folder: Path) -> None:
    """Refuse to resume a sweep's job if the run in its folder has a different config.

    Raises:
        UserError: naming a differing key.
    """
    held = read_record(folder / "config.yaml")
    held = moved(held, str(held.get("run_dir")), str(folder)) if isinstance(held, dict) else {}
    for key, old, new in differing_values(held, plain(config)):
        chosen = key == "data.batch_size" and new == "auto"  # chosen by the run itself
        if key not in ("resume", "run_dir", "optimized_metric") and not chosen:
            raise UserError(
                f"{os.path.relpath(folder)} holds a run with {key}={old}, not {new}: resume the sweep unchanged with "
                f"-m resume={os.path.relpath(folder.parent)}, or omit hydra.sweep.dir to start a new one"
            )
