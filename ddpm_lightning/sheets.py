"""Sheets of images with captions: rows and columns are named, images are enlarged, and the file says where each of them is."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ddpm_lightning import environment
from ddpm_lightning.data.source import Condition, in_turn, is_labels
from ddpm_lightning.images import as_pictures

__all__ = [
    "Layout",
    "Picture",
    "beside_neighbors",
    "by_label",
    "captions_of",
    "contact_sheet",
    "enlargement",
    "sheet",
    "shortened",
]

_SHEET = 960  # pixels that a sheet's images are enlarged to fill, without exceeding them
_GAP, _BREAK = 2, 10  # pixels between images, and between groups of them
_FONT, _LINE, _MARGIN = 13, 18, 8  # pixels: font size, line height, and space beside text
_LONGEST = 28  # letters of a caption
_COLORS = {"light": (255, 20, 160), "dark": (20, 220, 90)}  # gray levels of paper, text and frames, by theme


class Picture(NamedTuple):
    """A figure, uint8 (C, H, W), and facts about it by name, for its file's metadata."""

    pixels: Tensor
    facts: Mapping[str, str]


class Layout(NamedTuple):
    """Where the images of a sheet are, in pixels.

    tops, lefts: of the rows and columns; height, width: of each image; factor: by which it is enlarged; order: the number of
    the image in each cell, row by row, or −1 for none.
    """

    tops: list[int]
    lefts: list[int]
    height: int
    width: int
    factor: int
    order: list[int]

    def images(self, sheet: Tensor) -> Tensor:
        """The images (N, C, H, W) of a sheet (C, H', W'), in order of their numbers and in their original size.

        Raises:
            ValueError: if the sheet is smaller than its layout.
        """
        step = self.factor
        found = {}
        for cell, number in enumerate(self.order):
            top, left = self.tops[cell // len(self.lefts)], self.lefts[cell % len(self.lefts)]
            found[number] = sheet[:, top : top + self.height : step, left : left + self.width : step]
        return torch.stack([found[number] for number in sorted(found) if number >= 0])

    @classmethod
    def read(cls, facts: Mapping[Any, Any]) -> "Layout | None":
        """The layout in a file's metadata; None if it has none."""
        return cls(**json.loads(facts["layout"])) if "layout" in facts else None


def sheet(
    images: Tensor,
    *,
    columns: int | None = None,
    order: Sequence[int] | None = None,
    names: Sequence[str] = (),
    heads: Sequence[str] = (),
    captions: Sequence[str] = (),
    title: str = "",
    row_breaks: Collection[int] = (),
    column_breaks: Collection[int] = (),
    cell: int = 128,
) -> Picture:
    """Arrange uint8 images (N, 1 or 3, H, W) in rows and columns on light or dark paper: (3, H', W').

    Each is enlarged by the same integer factor, so that they fill a sheet of 960 pixels but none exceeds `cell`.

    Args:
        images: the images.
        columns: images per row; None for a nearly square sheet.
        order: the number of the image in each cell, row by row, or −1 for none; None for 0, 1, …
        names: the rows' names, on the left.
        heads: the columns' names, at the top; "\\n" starts a second line.
        captions: the images' names, above each of them.
        title: a line above all.
        row_breaks: rows that a wider gap precedes.
        column_breaks: columns that a wider gap precedes.
        cell: pixels that a small image is enlarged to at most.
    """
    order = list(range(len(images)) if order is None else order)
    columns = columns or math.ceil(math.sqrt(len(order)))
    rows = -(-len(order) // columns)
    factor = enlargement(images.shape[-2:], rows, columns, cell=cell)
    height, width = (factor * side for side in images.shape[-2:])
    head_lines = max((head.count("\n") + 1 for head in heads), default=0)
    top = _LINE * (bool(title) + head_lines) + _GAP
    left = _GAP + (max(map(_width, names), default=0) + 2 * _MARGIN if any(names) else 0)
    above = _LINE if captions else 0
    tops = _starts(rows, height + above, top, row_breaks)
    layout = Layout(
        [start + above for start in tops], _starts(columns, width, left, column_breaks), height, width, factor, order
    )
    paper, _, edge = _COLORS[environment.theme()]
    shape = (3, layout.tops[-1] + height + _GAP, layout.lefts[-1] + width + _GAP)
    canvas = torch.full(shape, paper, dtype=torch.uint8)
    enlarged = images.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    texts = [_Text(_GAP + _MARGIN, _LINE / 2, title, "lm")] if title else []
    for place, number in enumerate(order):
        y, x = layout.tops[place // columns], layout.lefts[place % columns]
        if number >= 0:
            canvas[:, y - _GAP : y + height + _GAP, x - _GAP : x + width + _GAP] = edge
            canvas[:, y : y + height, x : x + width] = enlarged[number]
            if captions:
                texts.append(_Text(x + width / 2, y - _LINE / 2, _fitted(captions[number], width), "mm"))
    texts += [_Text(left - _MARGIN, y + height / 2, name, "rm") for y, name in zip(layout.tops, names, strict=False)]
    texts += _heads(heads, layout, top - _GAP)
    return Picture(_written(canvas, texts), {"layout": json.dumps(layout._asdict(), separators=(",", ":"))})


def enlargement(size: Sequence[int], rows: int, columns: int, *, cell: int = 128) -> int:
    """The integer factor by which a sheet enlarges images of a size (H, W), see `sheet`."""
    height, width = size
    return max(1, min(_SHEET // (rows * height), _SHEET // (columns * width), cell // max(height, width)))


def contact_sheet(samples: Tensor, condition: Condition | None = None, *, class_names: Sequence[str] = ()) -> Picture:
    """A sheet of samples (N, C, ...) in [−1, 1]; sample i has condition i % M of M.

    Labels get one row each, or captions if there are fewer samples than labels; an image condition is placed left of its
    sample, at the sample's size.

    Args:
        samples: the samples.
        condition: labels (M,) or another condition.
        class_names: the names of the labels 0, 1, …
    """
    pictures = as_pictures(samples)
    if isinstance(condition, Tensor) and is_labels(condition):
        return by_label(pictures, captions_of(condition.tolist(), class_names))
    if not isinstance(condition, Tensor) or condition.ndim != 4 or samples.ndim != 4:
        return sheet(pictures)
    given = as_pictures(in_turn(condition, range(len(samples))).to(samples.device))
    given = F.interpolate(given, size=[*pictures.shape[2:]], mode="nearest")
    channels = max(given.shape[1], pictures.shape[1])
    pairs = torch.stack([part.expand(-1, channels, -1, -1) for part in (given, pictures)], dim=1)
    columns = max(1, round(math.sqrt(len(samples) / 2)))  # of pairs, so that the sheet is nearly square
    heads, breaks = ["condition", "sample"] * columns, range(2, 2 * columns, 2)
    return sheet(pairs.flatten(0, 1), columns=2 * columns, heads=heads, column_breaks=breaks)


def beside_neighbors(samples: Tensor, neighbors: Tensor, *, names: Sequence[str] = ()) -> Picture:
    """A row for each sample (N, C, H, W), set apart from its neighbors (N, K, C, H, W), nearest first."""
    rows = torch.cat([samples[:, None], neighbors], dim=1)
    heads = ["sample", *(f"neighbor {i}" for i in range(1, rows.shape[1]))]
    return sheet(rows.flatten(0, 1), columns=rows.shape[1], names=names, heads=heads, column_breaks=[1])


def by_label(images: Tensor, names: Sequence[str]) -> Picture:
    """A sheet of images (N, C, H, W), of which image i has the label i % M of M: one row per label.

    With fewer images than labels, a sheet with a caption above each image.
    """
    if len(images) < len(names):
        return sheet(images, captions=names[: len(images)])
    columns = -(-len(images) // len(names))
    order = [j * len(names) + i for i in range(len(names)) for j in range(columns)]
    return sheet(
        images, columns=columns, order=[number if number < len(images) else -1 for number in order], names=names
    )


def captions_of(labels: Sequence[int], class_names: Sequence[str] = ()) -> list[str]:
    """The names of labels, where they have one, shortened to fit beside an image."""
    named = [class_names[label] if label < len(class_names) else f"label {label}" for label in labels]
    return [shortened(" ".join(name.split())) for name in named]


class _Text(NamedTuple):
    """A line of text at a point; the anchor is Pillow's, such as "lm" for the middle of its left end."""

    x: float
    y: float
    text: str
    anchor: str


def _starts(count: int, size: int, first: int, breaks: Collection[int]) -> list[int]:
    """Where each of the rows or columns starts."""
    wider = [sum(position <= i for position in breaks if position) for i in range(count)]
    return [first + i * (size + _GAP) + wider[i] * (_BREAK - _GAP) for i in range(count)]


def _heads(heads: Sequence[str], layout: Layout, bottom: int) -> list[_Text]:
    """The columns' names, each k-th where all of them would overlap."""
    widest = max((_width(line) for head in heads for line in head.split("\n")), default=0)
    step = -(-(widest + _GAP) // (layout.width + _GAP))
    shown = [*zip(layout.lefts, heads, strict=False)][::step] if heads else []
    lines = max((head.count("\n") + 1 for head in heads), default=0)
    return [
        _Text(max(x + layout.width / 2, _width(line) / 2), bottom - _LINE * (lines - i - 0.5), line, "mm")
        for x, head in shown
        for i, line in enumerate(head.split("\n"))
    ]


def _written(canvas: Tensor, texts: Sequence[_Text]) -> Tensor:
    if not texts:
        return canvas
    page = Image.fromarray(np.ascontiguousarray(canvas.permute(1, 2, 0).numpy()))
    pen, ink = ImageDraw.Draw(page), _COLORS[environment.theme()][1]
    for line in texts:
        pen.text((line.x, line.y), line.text, font=_font(), fill=(ink, ink, ink), anchor=line.anchor)
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of formulas and of many languages."""
    found = find_spec("matplotlib")
    assert found is not None
    return ImageFont.truetype(Path(str(found.origin)).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT)


def _width(text: str) -> int:
    return math.ceil(_font().getlength(text))


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Text of at most this many letters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _fitted(text: str, width: int) -> str:
    """Text cut to a width in pixels."""
    while text and _width(text) > width:
        text = f"{text[:-2]}…" if len(text) > 2 else ""
    return text
