"""Old names of moved classes, found in earlier checkpoints, run folders and sweeps."""

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["rename_targets", "targets_in"]

_MOVED = {
    "ddpm_lightning.callbacks.CSVLogger": "ddpm_lightning.loggers.CSVLogger",
    "ddpm_lightning.callbacks.Neighbours": "ddpm_lightning.callbacks.Neighbors",
    "ddpm_lightning.callbacks.TensorBoardLogger": "ddpm_lightning.loggers.TensorBoardLogger",
    "ddpm_lightning.callbacks.WandbLogger": "ddpm_lightning.loggers.WandbLogger",
    "ddpm_lightning.evaluation.study.Study": "ddpm_lightning.evaluation.sweep_summary.SweepSummary",
    "ddpm_lightning.features.classifier": "ddpm_lightning.metrics.features.classifier",
    "ddpm_lightning.features.custom": "ddpm_lightning.metrics.features.custom",
    "ddpm_lightning.features.inception": "ddpm_lightning.metrics.features.inception",
    "ddpm_lightning.runs.study.Study": "ddpm_lightning.evaluation.sweep_summary.SweepSummary",
    "ddpm_lightning.samplers.DPMSolver2M": "ddpm_lightning.samplers.DPMSolver",
    "ddpm_lightning.sweeps.Jobs": "ddpm_lightning.cli.sweeps.Jobs",
    "ddpm_lightning.sweeps.Report": "ddpm_lightning.cli.sweeps.Report",
}
_OLD = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, _MOVED))})(?![\w.])")


# Former keys of callbacks in conf/, now passed automatically: an override must add them.
_HANDED = re.compile(r"^(?=callbacks\.\w+\.(sampler|shape|num_classes)=)")
_SPELLED = re.compile(r"(?<=neighb)ours\b")  # the callback and its setting, in an override and as keys
_NEIGHBORS = re.compile(r"^\W*callbacks\.neighbours\b")
_NEIGHBORS_TARGETS = ("ddpm_lightning.callbacks.Neighbours", "ddpm_lightning.callbacks.Neighbors")


def rename_targets(node: Any) -> None:
    """Replace old names in a config or list of overrides, in place; shared parts are visited once."""
    left, seen = [node], set()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(node, dict | list):
            continue
        seen.add(id(node))
        for key, child in [*(node.items() if isinstance(node, dict) else enumerate(node))]:
            if isinstance(child, str):
                moved = _OLD.sub(lambda old: _MOVED[old[0]], child)
                node[key] = _HANDED.sub("++", _SPELLED.sub("ors", moved) if _NEIGHBORS.match(moved) else moved)
            else:
                left.append(child)
        if isinstance(node, dict):
            _spell(node)


def _spell(node: dict[Any, Any]) -> None:
    """Rename the settings of the callback `Neighbors`, and its name among the callbacks, in their places."""
    if _is_neighbors(node) or any(map(_is_neighbors, node.values())):
        for key, child in [*node.items()]:
            mine = isinstance(key, str) and (_is_neighbors(node) or _is_neighbors(child))
            node[_SPELLED.sub("ors", key) if mine else key] = node.pop(key)


def _is_neighbors(node: Any) -> bool:
    return isinstance(node, dict) and str(node.get("_target_")) in _NEIGHBORS_TARGETS


def targets_in(config: Any) -> Iterator[str]:
    """The `_target_`s of plain data, at any depth."""
    if isinstance(config, dict):
        if isinstance(config.get("_target_"), str):
            yield config["_target_"]
        config = list(config.values())
    for child in config if isinstance(config, list) else ():
        yield from targets_in(child)
