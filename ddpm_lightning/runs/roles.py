"""The `_target_`s allowed at each place of a checkpoint's config, from this package, PyTorch and Lightning."""

import inspect
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from hydra.utils import get_class

__all__ = ["INSIDE", "ROLES", "WANDB", "Role"]

WANDB = ("ddpm_lightning.loggers.WandbLogger", "lightning.pytorch.loggers.WandbLogger")  # the latter in old checkpoints
TENSORBOARD = "ddpm_lightning.loggers.TensorBoardLogger"

# Roles allowed inside a trusted part.
INSIDE = (
    "model",
    "schedule",
    "sampler",
    "loss",
    "denoiser",
    "features",
    "torchvision",
    "optimizer",
    "lr_scheduler",
    "callback",
)


class Role(NamedTuple):
    """The `_target_`s allowed at a place of a config.

    Args:
        names: allowed names.
        packages: modules or packages whose public names are allowed, too.
        kinds: limits the packages' names to subclasses of these classes, and functions that return them.
        parts: the roles of nested parts by key; "*" for any key.
        forward: limits the packages' modules to those whose `forward` has these parameters; None allows all.
    """

    names: Collection[str] = ()
    packages: Collection[str] = ()
    kinds: Collection[str] = ()
    parts: Mapping[str, str] = {}
    forward: tuple[str, ...] | None = None

    def has(self, target: Any) -> bool:
        """Whether the role allows a `_target_`."""
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

ROLES = {
    "": Role(),  # a value without a `_target_`
    "inside": Role(),  # a value inside a trusted part, which may be a layer or another part of the model
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
        parts={"source": "torchvision", "dataset": "dataset"},
    ),
    "torchvision": Role([f"torchvision.datasets.{name}" for name in _TORCHVISION]),
    "optimizer": Role(packages=["torch.optim"], kinds=["torch.optim.Optimizer"]),
    "lr_scheduler": Role(
        packages=["torch.optim.lr_scheduler", "torch.optim.swa_utils"], kinds=["torch.optim.lr_scheduler.LRScheduler"]
    ),
    "callbacks": Role(parts={"*": "callback"}),
    "callback": Role(
        packages=["ddpm_lightning.callbacks", "lightning.pytorch.callbacks"],
        kinds=["lightning.pytorch.Callback"],
        parts={"sampler": "sampler", "features": "features"},
    ),
    "loggers": Role(parts={"*": "logger"}),
    "logger": Role(
        [*WANDB, TENSORBOARD, "ddpm_lightning.loggers.CSVLogger"],
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
