"""Denoising diffusion probabilistic models with PyTorch Lightning, Hydra and Weights & Biases.

`__init__.pyi` lists the public names. Each is imported on first use, so the command line responds before torch is loaded.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import lazy_loader
from omegaconf import OmegaConf

__version__ = "0.1.0"

# The config folder: inside the package in a wheel, at the top level of the repository otherwise.
CONF_DIR = next(
    str(place) for place in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if place.is_dir()
)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _register(name: str, module: str, **options: bool) -> None:
    """Register a resolver for conf/, such as `${run_name:}`, also for configs composed with Hydra's own `compose`."""

    def resolve(*values: Any) -> Any:
        return getattr(import_module(f"{__name__}.cli.{module}"), name)(*values)

    OmegaConf.register_new_resolver(name, resolve, replace=True, **options)


_register("precision", "launch")
_register("run_name", "launch", use_cache=True)
_register("job_name", "sweeps")
OmegaConf.register_new_resolver("dims", len, replace=True)
OmegaConf.register_new_resolver("out_channels", lambda channels, learned: (1 + learned) * channels, replace=True)
