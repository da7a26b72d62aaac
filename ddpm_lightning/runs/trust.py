"""What a checkpoint's config may ask for: plain data about our own parts, each in its role, and paths inside its run."""

import inspect
import os
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_class

from ddpm_lightning import environment
from ddpm_lightning.errors import UserError
from ddpm_lightning.records.yaml import NAMES, WRITTEN_TO

__all__ = ["WANDB", "check_targets", "without_download"]

WANDB = ("ddpm_lightning.loggers.WandbLogger", "lightning.pytorch.loggers.WandbLogger")  # the latter in old checkpoints
_TENSORBOARD = "ddpm_lightning.loggers.TensorBoardLogger"

# What a checkpoint may set of these loggers: others reach wandb.init, or TensorBoard's writer.
_LOGGERS = (
    (WANDB, "W&B", {"project", "entity", "name", "save_dir", "offline", "log_model", "group", "tags"}),
    ([_TENSORBOARD], "TensorBoard", {"save_dir", "name", "version", "log_graph", "default_hp_metric", "prefix"}),
)

_DEPTH, _NODES = 32, 100_000  # of a config; ours have 7 levels and some hundred values


class Role(NamedTuple):
    """What may stand at a place of a config.

    Args:
        names: `_target_`s by name.
        package: a module, or a package with all its modules, whose public names are `_target_`s, too.
        kinds: of the package's names those that are subclasses of one of these classes, or functions that return one.
        parts: by key, the roles of what may stand inside; "*" for any key.
        forward: of the package's modules those whose `forward` has these parameters; None for all.
    """

    names: Collection[str] = ()
    package: str = ""
    kinds: Collection[str] = ()
    parts: Mapping[str, str] = {}
    forward: tuple[str, ...] | None = None

    def has(self, target: Any) -> bool:
        """Whether a `_target_` is one of these."""
        if target in self.names:
            return True
        if not isinstance(target, str) or not self.package or not target.startswith(f"{self.package}."):
            return False
        path, _, name = target.rpartition(".")
        try:
            module = import_module(path)
            found = getattr(module, name) if name in module.__all__ else None
        except (ImportError, AttributeError, ValueError, RecursionError):
            return False
        made: Any = found if isinstance(found, type) else getattr(found, "__annotations__", {}).get("return")
        if not isinstance(made, type) or not issubclass(made, tuple(map(get_class, self.kinds))):
            return False
        return self.forward is None or tuple(inspect.signature(made.forward).parameters)[1:] == self.forward  # type: ignore[attr-defined]


_TORCHVISION = ("CIFAR10", "CIFAR100", "CelebA", "FashionMNIST", "MNIST", "SVHN")
_PARTS = (
    "model",
    "schedule",
    "sampler",
    "features",
    "loss",
    "data",
    "optimizer",
    "lr_scheduler",
    "trainer",
    "denoiser",
)

_ROLES = {
    "": Role(),  # a value, which builds nothing
    "run": Role(parts={**{part: part for part in _PARTS}, "callbacks": "callbacks", "logger": "loggers"}),
    "denoiser": Role(["ddpm_lightning.denoiser.Denoiser"], parts={"model": "model", "schedule": "schedule"}),
    "model": Role(package="ddpm_lightning.models", kinds=["torch.nn.Module"], forward=("x", "t", "y")),
    "schedule": Role(
        package="ddpm_lightning.schedules",
        kinds=["ddpm_lightning.schedules.NoiseSchedule"],
        parts={"schedule": "schedule"},
    ),
    "sampler": Role(package="ddpm_lightning.samplers", kinds=["ddpm_lightning.samplers.Sampler"]),
    "loss": Role(
        package="ddpm_lightning.losses",
        kinds=[f"ddpm_lightning.losses.{name}" for name in ("Objective", "TimeDraw", "Weighting", "Distance")],
        parts={"times": "loss", "weighting": "loss", "distance": "loss"},
    ),
    "features": Role([f"ddpm_lightning.metrics.features.{name}" for name in ("classifier", "inception")]),
    "data": Role(["ddpm_lightning.data.datamodule.ImageDataModule"], parts={"dataset": "dataset"}),
    "dataset": Role(
        ["ddpm_lightning.data.streams.Stream"],
        package="ddpm_lightning.data",
        kinds=["ddpm_lightning.data.loaders.ImageSet"],
        parts={"source": "torchvision"},
    ),
    "torchvision": Role([f"torchvision.datasets.{name}" for name in _TORCHVISION]),
    "optimizer": Role(package="torch.optim", kinds=["torch.optim.Optimizer"]),
    "lr_scheduler": Role(package="torch.optim.lr_scheduler", kinds=["torch.optim.lr_scheduler.LRScheduler"]),
    "callbacks": Role(parts={"*": "callback"}),
    "callback": Role(
        package="ddpm_lightning.callbacks",
        kinds=["lightning.pytorch.Callback"],
        parts={"sampler": "sampler", "features": "features"},
    ),
    "loggers": Role(parts={"*": "logger"}),
    "logger": Role([*WANDB, _TENSORBOARD, "ddpm_lightning.loggers.CSVLogger"]),
    "trainer": Role(["lightning.pytorch.Trainer"], parts={"strategy": "strategy", "plugins": "plugin"}),
    "strategy": Role(["ddpm_lightning.sharding.FSDP2"]),
    "plugin": Role(["lightning.pytorch.plugins.environments.SLURMEnvironment"]),
}


def check_targets(node: Any, role: str, *, typed: Collection[str] = (), folder: Path | None = None) -> None:
    """Refuse a config that is anything but plain, resolved data about this package's own parts, each in its place.

    Args:
        node: the config, or a part of it.
        role: what the part is: "run" of a whole config, else such as "denoiser", "data" or "sampler".
        typed: dotted keys whose values do not come from the checkpoint, since the user typed them.
        folder: that of the run, outside of which nothing may be written; links are followed as writing follows them.

    Raises:
        UserError: that names what is refused.
    """
    left, count = [(node, role, "", 0)], 0
    while left:
        node, role, key, depth = left.pop()
        count += 1
        if count > _NODES or depth > _DEPTH:
            raise UserError("the checkpoint's config is nested deeper, or longer, than any of ours: refused")
        if key in typed:
            continue
        if isinstance(node, Mapping):
            _check_node(node, _ROLES[role])
            parts = _ROLES[role].parts
            left += [
                (v, parts.get(k, parts.get("*", "")), f"{key}.{k}".lstrip("."), depth + 1) for k, v in node.items()
            ]
            if folder is not None:
                _check_paths(node, key, folder, typed)
        elif isinstance(node, list):
            left += [(child, role, f"{key}.{i}", depth + 1) for i, child in enumerate(node)]
        else:
            _check_value(node)


def without_download(node: Mapping[str, Any]) -> dict[str, Any]:
    """A data config from a checkpoint, whose folder nobody has typed, so that nothing is downloaded there."""
    dataset = node.get("dataset")
    if isinstance(dataset, Mapping) and str(dataset.get("_target_")).endswith(".from_torchvision"):
        return {**node, "dataset": {**dataset, "download": False}}
    return {**node}


def _check_node(node: Mapping[str, Any], role: Role) -> None:
    if not all(isinstance(name, str) for name in node):
        raise UserError("the checkpoint's config has keys that are no names: refused")
    if "_target_" in node and not role.has(node["_target_"]):
        raise UserError(
            f"the checkpoint asks for {node['_target_']}, no part of ddpm_lightning's in this place: refused"
        )
    if "_args_" in node:
        raise UserError("the checkpoint's config has arguments without a name: refused")
    if odd := [name for name in node if name.startswith("_") and name not in ("_target_", "_partial_")]:
        raise UserError(f"the checkpoint's config sets {', '.join(sorted(odd))}: refused")
    for targets, maker, settings in _LOGGERS:
        if node.get("_target_") in targets and (odd := sorted(node.keys() - settings - {"_target_"})):
            raise UserError(f"the checkpoint's config sets {', '.join(odd)} of {maker}'s logger: refused")


def _check_value(node: Any) -> None:
    if not isinstance(node, str | int | float | None) or (isinstance(node, str) and "${" in node):
        raise UserError(f"the checkpoint's config holds {node!r:.200}, which is no plain value: refused")
    if isinstance(node, str) and node.strip().startswith("pipe:") and not environment.allows_pipes():
        raise UserError(f"the checkpoint's config runs a command ({node}): if you trust it, set DDPM_ALLOW_PIPE=1")


def _check_paths(node: Mapping[str, Any], key: str, folder: Path, typed: Collection[str]) -> None:
    for name, value in node.items():
        below = f"{key}.{name}".lstrip(".")
        if name not in (*WRITTEN_TO, *NAMES) or not isinstance(value, str) or below in typed:
            continue
        above = str(node.get("save_dir", folder)) if name in NAMES else ""  # loggers append names to it
        if not _is_inside(os.path.join(above, value), folder):
            raise UserError(
                f"the checkpoint asks to write to {below}={value}, outside of its run's folder: refused; if that is what you "
                "want, type it"
            )


def _is_inside(path: str, folder: Path) -> bool:
    """Whether a path, its links followed, lies in a folder; not where someone would read more than a path in it."""
    if path.startswith("~") or set(path) & {"$", "\0"}:
        return False
    try:
        return Path(os.path.realpath(path)).is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return False
