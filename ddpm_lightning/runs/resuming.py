"""A run that goes on: its newest whole checkpoint, and its config with what was typed changed."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.module import DDPM
from ddpm_lightning.run_folder import checkpoints_of
from ddpm_lightning.runs.checkpoint import check_targets, differing, load_checkpoint

__all__ = ["Start", "fits", "refuse_another", "resumed"]

log = logging.getLogger(__name__)

_PATHS = (
    "dirpath",
    "folder",
    "save_dir",
    "default_root_dir",
    "dir",
    "name",
    "version",
)  # what callbacks and loggers write to


class Start(NamedTuple):
    """Where a run goes on from: the file, and what it holds; both None where nothing had been saved."""

    path: Path | None
    checkpoint: dict[str, Any] | None

    @property
    def rows(self) -> int:
        """The rows of metrics.csv that the checkpoint knows of."""
        return 0 if self.checkpoint is None else self.checkpoint["metrics_rows"]


def resumed(config: DictConfig) -> tuple[DictConfig, Start]:
    """The config of the run in the folder `config.resume`, and the newest of its checkpoints that is whole.

    The config is the checkpoint's. What was typed when it was resumed changes it: the difference that those overrides
    make to the config as it is composed today.

    Raises:
        UserError: where no checkpoint can be read, its config asks for what we do not ship, or a change cannot be made.
    """
    folder = Path(str(config.resume)).resolve()
    if not (folder / "config.yaml").exists():
        raise UserError(
            f"resume={config.resume} is no run folder: it holds no config.yaml; give one that train.py made"
        )
    start = _newest(folder)
    if start.checkpoint is None:
        log.warning("resume=%s: nothing had been saved yet, the run begins anew", config.resume)
        held = _plain(config if HydraConfig.initialized() else OmegaConf.load(folder / "config.yaml"))
    else:
        held = start.checkpoint["config"]
    held = _moved(held, str(held["run_dir"]), str(folder))
    if HydraConfig.initialized() and start.checkpoint is not None:
        before, now = _plain(compose("train", list(start.checkpoint["overrides"]))), _plain(config)
        for key in ("optimizer", "lr_scheduler"):
            if before[key] != now[key]:
                raise UserError(
                    f"{key} cannot be changed when a run is resumed, since the checkpoint holds its state: leave it away, or "
                    f"start a new run with init_from={folder}"
                )
        held = {**{key: value for key, value in now.items() if key not in held}, **held}
        _change(held, before, now)
    # Last, since the overrides that the folder records are a stranger's too, where the folder is.
    check_targets(held, whole_run=True)
    _check_paths(held, folder)
    return OmegaConf.create({**held, "resume": None, "run_dir": str(folder)}), start


def refuse_another(config: DictConfig, folder: Path) -> None:
    """Refuse to take the run in a sweep's folder for the job that has this config, where the two differ.

    Raises:
        UserError: that names a key in which they do.
    """
    held, now = _plain(OmegaConf.load(folder / "config.yaml")), _plain(config)
    held = _moved(held, str(held["run_dir"]), str(folder))
    for key, old, new in _differing(held, now):
        if key not in ("resume", "run_dir", "optimized_metric"):
            raise UserError(
                f"{os.path.relpath(folder)} holds a run with {key}={old}, not {new}: go on with the sweep as it was by "
                f"-m resume={os.path.relpath(folder.parent)}, or leave hydra.sweep.dir away to start another"
            )


def fits(module: DDPM, start: Start) -> None:
    """Refuse a checkpoint of another architecture before training.

    Raises:
        UserError: that names weights which differ.
    """
    assert start.checkpoint is not None
    if wrong := differing(module.state_dict(), start.checkpoint["state_dict"]):
        raise UserError(
            f"resume: {start.path} is of another network: {len(wrong)} of its weights differ in name or shape, among them "
            f"{', '.join(wrong[:3])}; leave model=..., data=... and schedule=... as they were"
        )


def _plain(config: DictConfig | ListConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _newest(folder: Path) -> Start:
    found = checkpoints_of(folder)
    for path in found:
        try:
            checkpoint = load_checkpoint(path)
            if lacking := {"overrides", "metrics_rows", "loops", "optimizer_states"} - checkpoint.keys():
                raise UserError(f"{path} is of another version: it lacks {', '.join(sorted(lacking))}")
        except UserError as error:
            log.warning("%s (going on from the one before it)", error)
        else:
            return Start(path, checkpoint)
    if found:
        raise UserError(f"resume={folder}: none of its {len(found)} checkpoints can be read; start a new run")
    return Start(None, None)


def _moved(node: Any, old: str, new: str) -> Any:
    """The config with its paths below `old` put below `new`: the folder may have been moved."""
    if isinstance(node, dict):
        return {key: _moved(child, old, new) for key, child in node.items()}
    if isinstance(node, list):
        return [_moved(child, old, new) for child in node]
    return new + node.removeprefix(old) if isinstance(node, str) and node.startswith(old) else node


def _differing(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys that both have, with their values where these are not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() & new.keys()):
            yield from _differing(old[name], new[name], f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def _check_paths(node: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config that would write outside of its run's folder."""
    for key, value in node.items():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, Mapping):
                _check_paths(child, folder)
        if key in _PATHS and isinstance(value, str) and not (folder / value).resolve().is_relative_to(folder):
            raise UserError(f"the checkpoint asks to write to {key}={value}, outside of its run's folder: refused")


def _change(held: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Make to `held` the changes that lead from `before` to `now`."""
    for key in {*before, *now} - {"resume", "run_dir"}:
        old, new = before.get(key), now.get(key)
        if old == new and (key in before) == (key in now):
            continue
        if key not in now:
            held.pop(key, None)
        elif (
            isinstance(old, dict)
            and isinstance(new, dict)
            and isinstance(held.get(key), dict)
            and _same_thing(old, new)
        ):
            _change(held[key], old, new)
        else:
            held[key] = new


def _same_thing(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(old.get("_target_") == new.get("_target_"))
