"""A run that goes on: its newest whole checkpoint, and its config with what was typed changed."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.errors import Stopped, UserError, brief
from ddpm_lightning.module import DDPM
from ddpm_lightning.records import Vocabulary, read_record
from ddpm_lightning.run_folder import checkpoints_in, refuse_links_out
from ddpm_lightning.runs.loading import differing, load_checkpoint
from ddpm_lightning.runs.soundness import is_state_of, lacking
from ddpm_lightning.runs.trust import check_paths, check_targets

__all__ = [
    "Start",
    "blamed",
    "first_intact",
    "fits",
    "newest_start",
    "refuse_another",
    "resumed",
    "same_data",
    "typed_behind",
]

log = logging.getLogger(__name__)

# What the weights, the optimiser's state and the held-out images stand or fall with.
_FIXED = {
    "optimizer": "the checkpoint holds its state",
    "lr_scheduler": "the checkpoint holds its state",
    "seed": "the order of the images, and which of them are held out, are drawn from it",
    "schedule": "the weights are trained for it",
    "prediction": "the weights are trained for it",
    "learned_variance": "the weights are trained for it",
    "loss": "the weights are trained for it",
    "data.channels": "the weights are trained on them",
    "data.image_size": "the weights are trained on it",
    "data.dataset": "the weights are trained on it",
    "data.num_classes": "the weights are trained on them",
    "data.val_fraction": "images that the run has trained on would be held out",
    "data.seed": "images that the run has trained on would be held out",
}


_FREE = ("workers", "sizes", "max_damaged", "fused", "foreach")


class Start(NamedTuple):
    """Where a run goes on from: its config, the overrides that made it, and the checkpoint; None where nothing had been saved.

    `typed` are the dotted keys that were typed when it was resumed.
    """

    config: dict[str, Any]
    overrides: Sequence[str]
    path: Path | None
    checkpoint: dict[str, Any] | None
    typed: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """The rows of metrics.csv that the checkpoint knows of."""
        return 0 if self.checkpoint is None else self.checkpoint["metrics_rows"]


def resumed(config: DictConfig) -> tuple[DictConfig, Start]:
    """The config of the run in the folder `config.resume`, and the newest of its checkpoints that is whole.

    The config is the checkpoint's. What was typed when it was resumed changes it: the difference that those overrides
    make to the config as it is composed today. What is not typed comes from the folder, and is checked as a stranger's.

    Raises:
        UserError: where no checkpoint can be read, its config asks for what we do not ship, or a change cannot be made.
    """
    folder = Path(str(config.resume)).resolve()
    refuse_links_out(folder)
    start = newest_start(folder)
    held, typed = _moved(start.config, str(start.config.get("run_dir")), str(folder)), set()
    if HydraConfig.initialized():
        replayed = _vocabulary(config).replayable(start.overrides)
        before, now = _plain(compose("train", replayed)), _plain(config)
        for text in typed_behind(replayed):  # whatever the config was made of, this is what it was
            key = text.lstrip("+~").partition("=")[0].replace("/", ".")
            _put(before, key, _at(held, key))
        _refuse_changes(before, now, folder)
        held = {**{key: value for key, value in now.items() if key not in held}, **held}
        typed = {*_change(held, before, now)}
    check_targets(held, "run", typed=typed)
    check_paths(held, folder, typed=typed)
    config = OmegaConf.create({**held, "resume": None, "run_dir": str(folder)})
    return config, start._replace(typed=frozenset(typed))


def newest_start(folder: Path, *, warn: bool = True) -> Start:
    """What the newest checkpoint in a run's folder that is whole says, or where nothing has been saved the folder's own records.

    Args:
        folder: the run's.
        warn: whether damaged checkpoints are named.

    Raises:
        UserError: where the folder is no run's, or none of its checkpoints can be read.
    """
    if not (folder / "config.yaml").exists():
        raise UserError(f"resume={folder} is no run folder: it holds no config.yaml; give one that train.py made")
    found = checkpoints_in(folder / "checkpoints")
    if (start := first_intact(found, warn=warn)) is not None:
        return start
    if found:
        raise UserError(f"resume={folder}: none of its {len(found)} checkpoints can be read; start a new run")
    if warn:
        log.warning("resume=%s: nothing had been saved yet, the run begins anew", folder)
    config, typed = read_record(folder / "config.yaml"), []
    with suppress(UserError):  # not needed, but for keys that are not in the default config
        typed = read_record(folder / ".hydra" / "overrides.yaml")
    if not isinstance(config, dict):
        raise UserError(f"resume={folder}: its config.yaml is no config; give a folder that train.py made")
    return Start(config, typed if isinstance(typed, list) else [], None, None)


def first_intact(paths: Sequence[Path], *, warn: bool = True) -> Start | None:
    """The first of these checkpoints that is whole and of this version; None where none is."""
    for path in paths:
        try:
            checkpoint = load_checkpoint(path)
            if missing := lacking(checkpoint):
                raise UserError(f"{path} is of another version: it lacks {', '.join(sorted(missing))}")
        except UserError as error:
            if warn:
                log.warning("%s (going on from the one before it)", error)
        else:
            return Start(checkpoint["config"], checkpoint["overrides"], path, checkpoint)
    return None


@contextmanager
def blamed(path: Path | None, still: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """An error that nobody foresaw is the checkpoint's or the folder's that a run goes on from, as one sentence.

    Args:
        path: the checkpoint or folder; None where the run begins, and the error is raised as it is.
        still: whether it may be the checkpoint's, when it has come.
    """
    try:
        yield
    except (UserError, Stopped, OSError, MisconfigurationException):
        raise
    except Exception as error:
        if path is None or not still():
            raise
        raise UserError(
            f"{path} cannot be resumed from ({brief(error)}): give another folder; DDPM_TRACEBACK=1 shows where it failed"
        ) from error


def refuse_another(config: DictConfig, folder: Path) -> None:
    """Refuse to take the run in a sweep's folder for the job that has this config, where the two differ.

    Raises:
        UserError: that names a key in which they do.
    """
    held, now = read_record(folder / "config.yaml"), _plain(config)
    held = _moved(held, str(held.get("run_dir")), str(folder)) if isinstance(held, dict) else {}
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
    average = start.checkpoint.get("ema_state_dict", {})
    weights = {name: parameter for name, parameter in module.named_parameters() if name in average}
    if wrong := differing(weights, average):
        raise UserError(f"resume: the averaged weights in {start.path} are of another network: {', '.join(wrong[:3])}")
    if not is_state_of(module, start.checkpoint["optimizer_states"]):
        raise UserError(
            f"resume: the optimizer's state in {start.path} is of another network, or damaged: start a new run"
        )


def _plain(config: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def same_data(start: Start, fingerprint: str) -> None:
    """Refuse to go on with other images, or other labels, than the run has learned so far.

    Args:
        start: where the run goes on from.
        fingerprint: of the data that there are now.

    Raises:
        UserError: where they differ.
    """
    before = None if start.checkpoint is None else start.checkpoint.get("data_fingerprint")
    if before is not None and before != fingerprint:
        raise UserError(
            f"data: the images or labels are not those that the run has learned (fingerprint {before}, now {fingerprint}): give "
            f"the folder of those by data.root=..., or start a new run with init_from={start.path}"
        )


def _vocabulary(config: DictConfig) -> Vocabulary:
    return Vocabulary([*HydraConfig.get().runtime.choices], [str(key) for key in config])


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    for key, why in _FIXED.items():
        old, new = (_at(config, key) for config in (before, now))
        if _fixed_part(old) != _fixed_part(new):
            change = "" if isinstance(old, dict) or isinstance(new, dict) else f" from {old} to {new}"
            raise UserError(
                f"{key} cannot be changed{change} when a run is resumed, since {why}: leave it away, or start a new run with "
                f"init_from={folder}"
            )


def typed_behind(record: Sequence[str]) -> list[str]:
    """This start's overrides without those that its run's record has put before them."""
    typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    for text in record:
        typed = typed[1:] if typed[:1] == [text] else typed
    return typed


def _put(node: Any, key: str, value: Any) -> None:
    """Put a value in a config's place, where the config has that place."""
    above, _, last = key.rpartition(".")
    node = _at(node, above) if above else node
    if isinstance(node, dict) and last in node and value is not None:
        node[last] = value


def _fixed_part(node: Any) -> Any:
    """Without how many workers read, and how much may be damaged."""
    return {k: v for k, v in node.items() if k not in _FREE} if isinstance(node, Mapping) else node


def _at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _moved(node: Any, old: str, new: str) -> Any:
    """The config with its paths at and below the folder `old` put below `new`: it may have been moved."""
    if isinstance(node, dict):
        return {key: _moved(child, old, new) for key, child in node.items()}
    if isinstance(node, list):
        return [_moved(child, old, new) for child in node]
    return (
        new + node.removeprefix(old) if isinstance(node, str) and (node == old or node.startswith(f"{old}/")) else node
    )


def _differing(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys that both have, with their values where these are not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() & new.keys()):
            yield from _differing(old[name], new[name], f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def _change(held: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Make to `held` the changes that lead from `before` to `now`, and give the dotted keys of what was put in."""
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
            yield from _change(held[key], old, new, f"{above}{key}.")
        else:
            held[key] = new
            yield f"{above}{key}"


def _same_thing(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(old.get("_target_") == new.get("_target_"))
