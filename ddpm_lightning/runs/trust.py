"""Refuse a checkpoint's config with untrusted classes, code, or paths outside its run."""

import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object

from ddpm_lightning import environment
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.records.moved import targets_in
from ddpm_lightning.records.yaml import NAMES, WRITTEN_TO
from ddpm_lightning.runs.roles import INSIDE, ROLES, WANDB, Role

__all__ = ["check_targets", "packages_to_trust", "without_download"]

# Logger settings allowed in a checkpoint; others reach wandb.init, TensorBoard's writer or a server's address.
_LOGGER = {"save_dir", "name", "version", "prefix", "flush_logs_every_n_steps", "log_graph", "default_hp_metric"}
_WANDB = {"project", "entity", "name", "save_dir", "offline", "log_model", "group", "tags"}

# Packages that can run arbitrary code.
_TOO_MUCH = {
    *sys.stdlib_module_names,
    "builtins",
    "ddpm_lightning",
    "hydra",
    "lightning",
    "omegaconf",
    "torch",
    "torchvision",
}

_REFUSED = "refused: use a checkpoint from a source that you trust"

_FILENAME = re.compile(r"(?:[\w.=+-]|\{[\w/]+(?::\d*(?:\.\d+)?[defg])?\})*")  # "{epoch}-{val/loss:.2f}"
_DEPTH, _NODES = 32, 100_000  # maximum depth and size of a config; ours have 7 levels and a few hundred values


def check_targets(
    node: Any, role: str, *, typed: Collection[str] = (), folder: Path | None = None, trust: Collection[str] = ()
) -> None:
    """Refuse a config unless it is plain, resolved data with allowed `_target_`s in their places: classes of this package,
    PyTorch, Lightning and trusted packages.

    Args:
        node: the config, or a part of it.
        role: the part's role: "run" for a whole config, or "denoiser", "data", "sampler" etc.
        typed: dotted keys whose values were typed by the user instead of coming from the checkpoint.
        folder: the run folder, outside of which nothing may be written; links are followed.
        trust: trusted packages, besides those of `environment.trusted`.

    Raises:
        UserError: naming what is refused.
    """
    trust = [*trust, *environment.trusted()]
    for package in trust:
        if package.partition(".")[0] in _TOO_MUCH or not all(part.isidentifier() for part in package.split(".")):
            raise UserError(f"trust must name packages of your own, as in trust=[mylab], got {package!r}")
    left, count = [(node, role, "", 0)], 0
    while left:
        node, role, key, depth = left.pop()
        count += 1
        if count > _NODES or depth > _DEPTH:
            raise UserError(f"the checkpoint's config is too deep or too long, so it is {_REFUSED}")
        if key in typed:
            continue
        if isinstance(node, Mapping):
            if not all(isinstance(name, str) for name in node):
                raise UserError(f"the checkpoint's config has keys that are not names, so it is {_REFUSED}")
            trusted = _is_trusted(node.get("_target_"), trust)
            if not trusted:
                _check_node(node, ROLES[role])
            parts = {"*": "inside"} if trusted or role == "inside" else ROLES[role].parts
            left += [
                (v, parts.get(k, parts.get("*", "")), f"{key}.{k}".lstrip("."), depth + 1) for k, v in node.items()
            ]
            if folder is not None and not trusted:
                _check_paths(node, key, folder, typed)
        elif isinstance(node, list):
            left += [(child, role, f"{key}.{i}", depth + 1) for i, child in enumerate(node)]
        else:
            _check_value(node)


def without_download(node: Mapping[str, Any]) -> dict[str, Any]:
    """A data config with downloads disabled, for a folder that comes from a checkpoint."""
    dataset = node.get("dataset")
    if isinstance(dataset, Mapping) and str(dataset.get("_target_")).endswith(".from_torchvision"):
        return {**node, "dataset": {**dataset, "download": False}}
    return {**node}


def packages_to_trust(config: Any) -> list[str]:
    """The packages in a config that its checkpoint requires to be trusted."""
    own = [t for t in targets_in(config) if not _is_layer(t) and not any(role.has(t) for role in ROLES.values())]
    return sorted({target.partition(".")[0] for target in own} - _TOO_MUCH)


def _is_layer(target: Any) -> bool:
    path, _, name = str(target).rpartition(".")
    return path == "torch.nn" and name in torch.nn.modules.__all__


def _is_trusted(target: Any, trust: Collection[str]) -> bool:
    """Whether a `_target_` is defined in a trusted package, not just imported there.

    Raises:
        UserError: for a name in a trusted package that is not defined there.
    """
    packages = [name for name in trust if isinstance(target, str) and target.startswith(f"{name}.")]
    if not packages:
        return False
    try:
        found = get_object(target)
    except Exception as error:  # its import can raise anything
        raise UserError(
            f"{target} cannot be imported ({brief(error)}): run this where {packages[0]} is importable"
        ) from error
    home = getattr(found, "__module__", None)
    if not (callable(found) and isinstance(home, str) and any(f"{home}.".startswith(f"{name}.") for name in packages)):
        raise UserError(f"the checkpoint asks for {target}, which is not defined in {packages[0]}, so it is {_REFUSED}")
    return True


def _check_node(node: Mapping[str, Any], role: Role) -> None:
    target = node.get("_target_")
    inside = role is ROLES["inside"] and (_is_layer(target) or any(ROLES[name].has(target) for name in INSIDE))
    if "_target_" in node and not role.has(target) and not inside:
        root = str(target).partition(".")[0]
        if root in _TOO_MUCH or not root.isidentifier():
            raise UserError(f"the checkpoint asks for {target}, which is never allowed, so it is {_REFUSED}")
        raise UserError(
            f"the checkpoint names {target}, which is not part of ddpm_lightning: if you trust {root}, add trust=[{root}] "
            f"(--trust {root} for a command of `ddpm`, or DDPM_TRUST={root} in the environment)"
        )
    if "_args_" in node:
        raise UserError(f"the checkpoint's config has positional arguments, so it is {_REFUSED}")
    if odd := [name for name in node if name.startswith("_") and name not in ("_target_", "_partial_")]:
        raise UserError(f"the checkpoint's config sets {', '.join(sorted(odd))}, so it is {_REFUSED}")
    if role is ROLES["logger"]:
        maker = "W&B" if target in WANDB else str(target).rpartition(".")[2].removesuffix("Logger")
        settings = _WANDB if target in WANDB else _LOGGER
        if odd := sorted(node.keys() - settings - {"_target_"}):
            raise UserError(f"the checkpoint's config sets {', '.join(odd)} of {maker}'s logger, so it is {_REFUSED}")


def _check_value(node: Any) -> None:
    if not isinstance(node, str | int | float | None) or (isinstance(node, str) and "${" in node):
        raise UserError(f"the checkpoint's config holds {node!r:.200}, which is not a plain value, so it is {_REFUSED}")
    if isinstance(node, str) and node.strip().startswith("pipe:") and not environment.allows_pipes():
        raise UserError(f"the checkpoint's config runs a command ({node}): if you trust it, set DDPM_ALLOW_PIPE=1")


def _check_paths(node: Mapping[str, Any], key: str, folder: Path, typed: Collection[str]) -> None:
    for name, value in node.items():
        below = f"{key}.{name}".lstrip(".")
        if name not in (*WRITTEN_TO, *NAMES) or not isinstance(value, str) or below in typed:
            continue
        # Names are appended to another path; braces are filled in later.
        above = str(node.get("save_dir", node.get("dirpath", folder))) if name in NAMES else ""
        plain = name != "filename" or _FILENAME.fullmatch(value)
        if not plain or not _is_inside(os.path.join(above, value), folder):
            raise UserError(
                f"the checkpoint asks to write to {below}={value}, outside its run folder, which is refused: "
                "to allow it, type it on the command line"
            )


def _is_inside(path: str, folder: Path) -> bool:
    """Whether a path, with links resolved, lies in a folder; false for paths with expandable characters."""
    if path.startswith("~") or set(path) & {"$", "%", "\0"} or "://" in path:
        return False
    try:
        return Path(os.path.realpath(path)).is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return False
