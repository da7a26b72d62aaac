"""What a checkpoint's config may ask for: plain data about our own parts and those the user trusts, and paths inside its run."""

import inspect
import os
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_class, get_object

from ddpm_lightning import environment
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.records.yaml import NAMES, WRITTEN_TO

__all__ = ["WANDB", "check_targets", "packages_to_trust", "without_download"]

WANDB = ("ddpm_lightning.loggers.WandbLogger", "lightning.pytorch.loggers.WandbLogger")  # the latter in old checkpoints
_TENSORBOARD = "ddpm_lightning.loggers.TensorBoardLogger"

# What a checkpoint may set of a logger: more reaches wandb.init, TensorBoard's writer, or a server's address.
_LOGGER = {"save_dir", "name", "version", "prefix", "flush_logs_every_n_steps", "log_graph", "default_hp_metric"}
_WANDB = {"project", "entity", "name", "save_dir", "offline", "log_model", "group", "tags"}

_INSIDE = ("model", "schedule", "sampler", "loss", "denoiser")  # what a trusted part may hold of ours

_DEPTH, _NODES = 32, 100_000  # of a config; ours have 7 levels and some hundred values


class Role(NamedTuple):
    """What may stand at a place of a config.

    Args:
        names: `_target_`s by name.
        packages: modules, or packages with all their modules, whose public names are `_target_`s, too.
        kinds: of the packages' names those that are subclasses of one of these classes, or functions that return one.
        parts: by key, the roles of what may stand inside; "*" for any key.
        forward: of the packages' modules those whose `forward` has these parameters; None for all.
    """

    names: Collection[str] = ()
    packages: Collection[str] = ()
    kinds: Collection[str] = ()
    parts: Mapping[str, str] = {}
    forward: tuple[str, ...] | None = None

    def has(self, target: Any) -> bool:
        """Whether a `_target_` is one of these."""
        if target in self.names:
            return True
        if not isinstance(target, str) or not any(target.startswith(f"{name}.") for name in self.packages):
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
    "inside": Role(),  # a value of a trusted part, which may be a layer or another part of the model
    "run": Role(parts={**{part: part for part in _PARTS}, "callbacks": "callbacks", "logger": "loggers"}),
    "denoiser": Role(["ddpm_lightning.denoiser.Denoiser"], parts={"model": "model", "schedule": "schedule"}),
    "model": Role(packages=["ddpm_lightning.models"], kinds=["torch.nn.Module"], forward=("x", "t", "y")),
    "schedule": Role(
        packages=["ddpm_lightning.schedules"],
        kinds=["ddpm_lightning.schedules.NoiseSchedule"],
        parts={"schedule": "schedule"},
    ),
    "sampler": Role(packages=["ddpm_lightning.samplers"], kinds=["ddpm_lightning.samplers.Sampler"]),
    "loss": Role(
        packages=["ddpm_lightning.losses"],
        kinds=[f"ddpm_lightning.losses.{name}" for name in ("Objective", "TimeDraw", "Weighting", "Distance")],
        parts={"times": "loss", "weighting": "loss", "distance": "loss"},
    ),
    "features": Role([f"ddpm_lightning.metrics.features.{name}" for name in ("classifier", "inception")]),
    "data": Role(["ddpm_lightning.data.datamodule.ImageDataModule"], parts={"dataset": "dataset"}),
    "dataset": Role(
        ["ddpm_lightning.data.streams.Stream"],
        packages=["ddpm_lightning.data"],
        kinds=["ddpm_lightning.data.loaders.ImageSet"],
        parts={"source": "torchvision"},
    ),
    "torchvision": Role([f"torchvision.datasets.{name}" for name in _TORCHVISION]),
    "optimizer": Role(packages=["torch.optim"], kinds=["torch.optim.Optimizer"]),
    "lr_scheduler": Role(packages=["torch.optim.lr_scheduler"], kinds=["torch.optim.lr_scheduler.LRScheduler"]),
    "callbacks": Role(parts={"*": "callback"}),
    "callback": Role(
        packages=["ddpm_lightning.callbacks", "lightning.pytorch.callbacks"],
        kinds=["lightning.pytorch.Callback"],
        parts={"sampler": "sampler", "features": "features"},
    ),
    "loggers": Role(parts={"*": "logger"}),
    "logger": Role(
        [*WANDB, _TENSORBOARD, "ddpm_lightning.loggers.CSVLogger"],
        packages=["lightning.pytorch.loggers"],
        kinds=["lightning.pytorch.loggers.Logger"],
    ),
    "profiler": Role(packages=["lightning.pytorch.profilers"], kinds=["lightning.pytorch.profilers.Profiler"]),
    "trainer": Role(
        ["lightning.pytorch.Trainer"], parts={"strategy": "strategy", "plugins": "plugin", "profiler": "profiler"}
    ),
    "strategy": Role(["ddpm_lightning.sharding.FSDP2"]),
    "plugin": Role(["lightning.pytorch.plugins.environments.SLURMEnvironment"]),
}


def check_targets(
    node: Any, role: str, *, typed: Collection[str] = (), folder: Path | None = None, trust: Collection[str] = ()
) -> None:
    """Refuse a config that is anything but plain, resolved data about parts of this package, PyTorch's and Lightning's, each in
    its place, and about what trusted packages define.

    Args:
        node: the config, or a part of it.
        role: what the part is: "run" of a whole config, else such as "denoiser", "data" or "sampler".
        typed: dotted keys whose values do not come from the checkpoint, since the user typed them.
        folder: that of the run, outside of which nothing may be written; links are followed as writing follows them.
        trust: packages that are trusted, besides those of `environment.trusted`.

    Raises:
        UserError: that names what is refused.
    """
    trust = [*trust, *environment.trusted()]
    for package in trust:
        if not all(part.isidentifier() for part in package.split(".")):
            raise UserError(f"trust must name packages, as in trust=[mylab], got {package!r}")
    left, count = [(node, role, "", 0)], 0
    while left:
        node, role, key, depth = left.pop()
        count += 1
        if count > _NODES or depth > _DEPTH:
            raise UserError("the checkpoint's config is nested deeper, or longer, than any of ours: refused")
        if key in typed:
            continue
        if isinstance(node, Mapping):
            if not all(isinstance(name, str) for name in node):
                raise UserError("the checkpoint's config has keys that are no names: refused")
            trusted = _is_trusted(node.get("_target_"), trust)
            if not trusted:
                _check_node(node, _ROLES[role])
            parts = {"*": "inside"} if trusted or role == "inside" else _ROLES[role].parts
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


def packages_to_trust(node: Any) -> list[str]:
    """The packages of a config's own parts, which its checkpoint cannot be used without trusting."""
    if isinstance(node, list):
        return sorted({name for child in node for name in packages_to_trust(child)})
    if not isinstance(node, Mapping):
        return []
    found = {name for child in node.values() for name in packages_to_trust(child)}
    target = node.get("_target_")
    if isinstance(target, str) and not any(role.has(target) for role in _ROLES.values()) and not _is_layer(target):
        found.add(target.partition(".")[0])
    return sorted(found)


def _is_layer(target: Any) -> bool:
    path, _, name = str(target).rpartition(".")
    return path == "torch.nn" and name in torch.nn.modules.__all__


def _is_trusted(target: Any, trust: Collection[str]) -> bool:
    """Whether a `_target_` is defined in a trusted package; what that has only imported is not.

    Raises:
        UserError: for a name below a trusted package that is not defined in it.
    """
    package = next((name for name in trust if isinstance(target, str) and target.startswith(f"{name}.")), None)
    if package is None:
        return False
    try:
        found = get_object(target)
    except Exception as error:  # whatever its import raises
        raise UserError(f"{target} cannot be imported ({brief(error)}): run this where {package} can be") from error
    home = getattr(found, "__module__", None)
    if not (callable(found) and isinstance(home, str) and f"{home}.".startswith(f"{package}.")):
        raise UserError(f"the checkpoint asks for {target}, which is not defined in {package}: refused")
    return True


def _check_node(node: Mapping[str, Any], role: Role) -> None:
    target = node.get("_target_")
    inside = role is _ROLES["inside"] and (_is_layer(target) or any(_ROLES[name].has(target) for name in _INSIDE))
    if "_target_" in node and not role.has(target) and not inside:
        root = str(target).partition(".")[0]
        if root == "ddpm_lightning" or not root.isidentifier():
            raise UserError(f"the checkpoint asks for {target}, no part of ddpm_lightning's in this place: refused")
        raise UserError(
            f"the checkpoint asks for {target}, which is no part of ddpm_lightning in this place: refused; if you trust {root}, give "
            f"trust=[{root}], --trust {root} to a command of `ddpm`, or DDPM_TRUST={root} in the environment"
        )
    if "_args_" in node:
        raise UserError("the checkpoint's config has arguments without a name: refused")
    if odd := [name for name in node if name.startswith("_") and name not in ("_target_", "_partial_")]:
        raise UserError(f"the checkpoint's config sets {', '.join(sorted(odd))}: refused")
    if role is _ROLES["logger"]:
        maker = "W&B" if target in WANDB else str(target).rpartition(".")[2].removesuffix("Logger")
        settings = _WANDB if target in WANDB else _LOGGER
        if odd := sorted(node.keys() - settings - {"_target_"}):
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
        above = (
            str(node.get("save_dir", node.get("dirpath", folder))) if name in NAMES else ""
        )  # what names are appended to
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
