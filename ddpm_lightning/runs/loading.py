"""Load denoisers from checkpoints."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ddpm_lightning import environment
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.interop import from_diffusers, images_of, is_diffusers_folder
from ddpm_lightning.ranges import is_integer, require_one_of
from ddpm_lightning.records.moved import rename_targets
from ddpm_lightning.records.torch import load_plain
from ddpm_lightning.run_folder import checkpoints_in, runs_within
from ddpm_lightning.runs.instantiate import build, one_line
from ddpm_lightning.runs.trust import check_targets

__all__ = [
    "Loaded",
    "averages_of",
    "data_config_of",
    "denoiser_of",
    "differing",
    "load_checkpoint",
    "load_denoiser",
    "load_model",
    "newest_checkpoint",
    "run_dir_of",
]


class Loaded(NamedTuple):
    """A checkpoint's model, and the configs of its data and of its schedule, if known."""

    denoiser: Denoiser
    data: dict[str, Any]
    schedule: dict[str, Any] | None


def load_denoiser(checkpoint: str | Path, *, weights: str | None = None, trust: Collection[str] = ()) -> Denoiser:
    """Load a checkpoint's denoiser, in eval mode on the CPU, with its "ema" or "raw" weights; None is "ema" if available.

    `checkpoint` may also be a run folder, for its newest checkpoint, or a diffusers folder. Your own packages that the
    checkpoint names must be trusted, as in `trust=("mylab",)`.

    Raises:
        UserError: for a file that is not a checkpoint, a config with classes from untrusted packages, or missing "ema"
            weights.
    """
    checkpoint = Path(checkpoint)
    if is_diffusers_folder(checkpoint):
        return from_diffusers(checkpoint)
    return denoiser_of(load_checkpoint(checkpoint), weights=weights, trust=trust)


def load_model(path: Path, *, weights: str = "ema", key: str = "ckpt_path") -> Loaded:
    """Like `load_denoiser`, with configs; a diffusers folder has a data config of "channels" and "image_size" only.

    Args:
        path: the checkpoint.
        weights: "ema" or "raw".
        key: the setting that names the path, for errors.
    """
    if is_diffusers_folder(path):
        return Loaded(from_diffusers(path), images_of(path), None)
    checkpoint = load_checkpoint(path, key=key)
    denoiser, config = denoiser_of(checkpoint, weights=weights), checkpoint["config"]["denoiser"]
    return Loaded(denoiser, data_config_of(checkpoint), config.get("schedule"))


def load_checkpoint(path: str | Path, *, key: str = "ckpt_path") -> dict[str, Any]:
    """Load a checkpoint file, or a run folder's newest, as plain data, without running code in it.

    Raises:
        UserError: for a missing file, or one that is not a checkpoint of this package.
    """
    path = Path(path)
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        found = next((found for found in (last, *checkpoints_in(last.parent)) if found.is_file()), last)
        if not found.is_file() and (runs := runs_within(path)):
            raise UserError(f"{key}={path} is a folder of {len(runs)} runs: give one of them, such as {key}={runs[0]}")
        path = found
    try:
        if not path.is_file():  # reading a pipe would block
            raise FileNotFoundError("there is no such file")
        checkpoint = load_plain(path)
        if not isinstance(checkpoint, dict) or not all(
            isinstance(checkpoint.get(k), dict) for k in ("config", "state_dict")
        ):
            raise ValueError("it is not a checkpoint of ddpm_lightning: it lacks config or weights")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}={path} cannot be loaded ({' '.join(str(error).split())}): "
            "give a checkpoint such as outputs/<day>/<time>/checkpoints/last.ckpt"
        ) from error
    rename_targets([checkpoint["config"], checkpoint.get("overrides")])
    return checkpoint


def data_config_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The data config of a checkpoint.

    Raises:
        UserError: for a config without the data's size.
    """
    data = checkpoint["config"].get("data")
    size = data.get("image_size") if isinstance(data, dict) else None
    sides = isinstance(size, list) and 1 <= len(size) <= 3 and all(is_integer(side, "1..65536") for side in size)
    if not isinstance(data, dict) or not sides or not is_integer(data.get("channels"), "1..4096"):
        raise UserError("the checkpoint's config does not give the size of its images: use another checkpoint")
    return data


def averages_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's EMA weights by name, such as "ema"."""
    end = "_state_dict"
    return {key.removesuffix(end): value for key, value in checkpoint.items() if str(key).endswith(end)}


def denoiser_of(checkpoint: Mapping[str, Any], *, weights: str | None = None, trust: Collection[str] = ()) -> Denoiser:
    """Like `load_denoiser`, for a loaded checkpoint."""
    averages = averages_of(checkpoint)
    weights = weights or ("ema" if "ema" in averages else "raw")
    require_one_of("weights", weights, [*averages, "raw"], hint="" if averages else "the checkpoint has no EMA weights")
    config = checkpoint["config"].get("denoiser")
    check_targets(config, "denoiser", trust=trust)
    try:
        state = {**checkpoint["state_dict"], **averages.get(weights, {})}
        prefix = "denoiser."
        theirs = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        with torch.device("meta"):  # without memory first, since the config may ask for too much
            ours = build("model", OmegaConf.create(config["model"])).state_dict(prefix="model.")
        if wrong := differing(ours, {name: value for name, value in theirs.items() if name.startswith("model.")}):
            raise ValueError(wrong)
        denoiser: Denoiser = build("denoiser", OmegaConf.create(config))
        denoiser.load_state_dict(theirs)  # which also compares what is beside the network, such as a learned schedule
    except UserError:
        raise
    except Exception as error:  # an invalid config can raise anything
        raise UserError(
            f"the checkpoint's config and weights do not match, or come from another version ({one_line(error)}): "
            "use another checkpoint"
        ) from error
    if broken := [name for name, value in theirs.items() if not value.isfinite().all()]:
        raise UserError(
            f"weights={weights}: {len(broken)} of the checkpoint's weights are NaN or infinite, among them {broken[0]}: "
            "use an earlier checkpoint"
        )
    return denoiser.eval()


def differing(ours: Mapping[str, Tensor], theirs: Mapping[str, Any]) -> str:
    """A description of weights that differ between two networks in name or shape; empty if none."""
    shapes = {name: weight.shape if isinstance(weight, Tensor) else None for name, weight in theirs.items()}
    wrong = sorted(str(n) for n in {*ours, *theirs} if n not in ours or ours[n].shape != shapes.get(n))
    return f"{len(wrong)} of its weights differ in name or shape, among them {', '.join(wrong[:3])}" if wrong else ""


def newest_checkpoint() -> Path:
    """The `last.ckpt` of the newest run in outputs/ and multirun/."""
    found = [p for folder in ("outputs", "multirun") for p in Path(folder).glob("**/checkpoints/last.ckpt")]
    if not found:
        raise UserError(
            f"ckpt_path is not given and outputs/ holds no run yet: train one with `{environment.command('train')}`"
        )
    return max(found, key=lambda p: p.stat().st_mtime)


def run_dir_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint or run folder; for a checkpoint moved elsewhere, a folder beside it."""
    if checkpoint.is_dir():
        return checkpoint
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
