"""Labels 0, 1, 2, … of folders and tables, and their class names."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition, is_labels
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import shown

__all__ = ["NO_LABEL", "check_labels", "in_order", "labels_of"]

NO_LABEL = -1  # an unlabeled image in a labeled dataset
_MOST = 2**31


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names in order: numerically if all are integers (0, 1, 2, 10), else alphabetically."""
    different = {*names}
    if all(name.isascii() and name.isdigit() for name in different):
        return sorted(different, key=lambda name: (int(name), name))
    return sorted(different)


def labels_of(values: Sequence[Any], key: str) -> tuple[Tensor, list[str]]:
    """The labels (N,) of a table column and their class names, which are empty for a column of integers.

    Args:
        values: non-negative integers, or strings, which are numbered in order.
        key: the setting that names the column.

    Raises:
        UserError: for any other value, such as null, a fraction or a list.
    """
    if values and all(isinstance(value, str) for value in values):
        names = in_order(values)
        places = {name: place for place, name in enumerate(names)}
        return torch.tensor([places[value] for value in values]), names
    for row, value in enumerate(values):
        is_number = isinstance(value, int | float) and 0 <= value < _MOST and value == int(value)
        if not is_number:
            raise UserError(f"{key} must hold non-negative integers, or strings only, got {shown(value)} in row {row}")
    return torch.tensor([int(value) for value in values], dtype=torch.long), []


def check_labels(labels: Condition, classes: Sequence[str] | None, num_classes: int | None) -> None:
    """Refuse a number of classes that does not match the labels.

    Args:
        labels: the dataset's labels, or another condition.
        classes: the class names; None for a dataset without labels.
        num_classes: the requested number; None for no labels.

    Raises:
        UserError: for labels outside 0..num_classes − 1, or none.
    """
    if num_classes is None:
        return
    if classes is None:
        raise UserError(
            f"data.num_classes must be null, got {num_classes}: the dataset has no labels (they come from the subfolders of data.root in "
            "data=image_folder, data.dataset.label_column in a table, and data.dataset.condition in data=arrays)"
        )
    if not isinstance(labels, Tensor) or not is_labels(labels):
        raise UserError(
            f"data.num_classes must be null, got {num_classes}: the dataset has a condition other than labels"
        )
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < num_classes:
        fitting = f"at least {high + 1}, or null" if low >= 0 else "null"
        reason = f"the labels range from {low} to {high}"
        if low == NO_LABEL:
            reason = "images directly in data.root have no label: move them into a subfolder"
        raise UserError(f"data.num_classes must be {fitting}, got {num_classes}: {reason}")
