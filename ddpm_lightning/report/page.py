"""Render a page of sections, tables, figures and interactive charts as Markdown or self-contained HTML."""

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ddpm_lightning.plots import Curve, line_style
from ddpm_lightning.report.comparison import Estimate
from ddpm_lightning.report.tables import Cell, Link, Table, as_csv, as_latex, as_text, plain

__all__ = ["Figure", "Page", "Plot", "Section", "Sheet", "SheetRow", "inline", "markdown", "render"]

_POINTS = 400  # of a chart's curve at most
_COLORS = 7  # of `plots.line_style`, which repeats them


class Figure(NamedTuple):
    """A PNG file and its caption as plain text."""

    caption: str
    png: bytes


class Plot(NamedTuple):
    """Curves in an interactive chart; its caption and the names of its axes are plain text."""

    caption: str
    title: str
    x_label: str
    curves: Sequence[Curve]
    may_be_log: bool = True


class SheetRow(NamedTuple):
    """A row of a contact sheet: its name as plain text, its line style index, and one figure per column, None if missing."""

    name: str
    number: int
    figures: Sequence[Figure | None]


class Sheet(NamedTuple):
    """A contact sheet: figures in rows and columns; narrow screens stack a row's figures."""

    columns: Sequence[str]
    rows: Sequence[SheetRow]


class Section(NamedTuple):
    """A heading and its content, in this order; text is marked text (see `inline`)."""

    heading: str
    lead: str = ""
    table: Table | None = None
    note: str = ""
    details: tuple[str, str, Table | None] | None = None  # a summary, and its folded text and table
    sheet: Sheet | None = None
    plots: Sequence[Plot] = ()

    @property
    def tables(self) -> list[Table]:
        """The table, and the folded one."""
        return [table for table in (self.table, self.details and self.details[2]) if table]

    @property
    def figures(self) -> list[Figure]:
        """The figures of the contact sheet."""
        return [figure for row in (self.sheet.rows if self.sheet else ()) for figure in row.figures if figure]


class Page(NamedTuple):
    """A page: its title as plain text, facts in short, and the verdicts as marked text, the most important one first."""

    title: str
    facts: Sequence[str]
    verdicts: Sequence[str]
    sections: Sequence[Section]


def render(form: str, page: Page) -> str:
    """Render the page as "html" or "md"; Markdown has text and tables only."""
    return _templates().get_template(f"page.{form}.jinja").render(page._asdict())


def markdown(text: str) -> str:
    """Marked text as one line of Markdown, with everything but bold and code escaped."""
    parts = re.split(r"`([^`]*)`", " ".join(text.split()))
    parts[::2] = [re.sub(r"[\\`\[\]]", r"\\\g<0>", escape(part, quote=False)) for part in parts[::2]]
    parts[1::2] = [f"`{code}`" if code else "" for code in parts[1::2]]
    return "".join(parts)


def inline(text: str) -> Markup:
    """Marked text as HTML: **this** is bold (outside code), `this` is code, everything else is escaped."""
    parts = re.split(r"`([^`]*)`", escape(text, quote=False))
    parts[1::2] = [f"<code>{code}</code>" for code in parts[1::2]]
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", "".join(parts)))


def _cell(cell: Cell) -> Markup:
    """A cell as HTML: an interval may move to the next line as a whole."""
    if isinstance(cell, Estimate):
        value, interval = cell.texts
        return Markup("{} <span class=ci>{}</span>").format(value, interval) if interval else Markup(value)
    if isinstance(cell, Link):
        return Markup('<a href="{0}">{0}</a>').format(cell.address)
    return inline(as_text(cell))


def _data_url(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8,{quote(text)}"


def _chart(plot: Plot) -> Markup:
    """A chart's data as JSON that cannot end its element."""
    curves: list[dict[str, Any]] = []
    for curve in plot.curves:
        low, high = (curve.y if ends is None else ends for ends in (curve.low, curve.high))
        x, y, low, high = _binned(*(np.asarray(values, dtype=float) for values in (curve.x, curve.y, low, high)))
        rounded = {
            key: [float(f"{v:.5g}") for v in values] for key, values in zip("xylh", (x, y, low, high), strict=True)
        }
        if rounded["l"] == rounded["h"]:
            del rounded["l"], rounded["h"]
        curves.append({"name": curve.name, "number": curve.number, **rounded})
    values = [v for curve in curves for v in curve["y"]]
    is_log = plot.may_be_log and 0 < 4 * min(values) < max(values)
    data = {"title": plot.title, "x": plot.x_label, "log": is_log, "curves": curves}
    return Markup(json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"))


def _binned(x: Any, y: Any, low: Any, high: Any) -> tuple[Any, ...]:
    """Long curves in bins: means of x and y, and the ends of the band."""
    if len(x) <= _POINTS:
        return x, y, low, high
    starts = np.linspace(0, len(x), _POINTS, endpoint=False).astype(int)
    counts = np.diff([*starts, len(x)])
    means = [np.add.reduceat(values, starts) / counts for values in (x, y)]
    return *means, np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)


def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        **{"inline": inline, "markdown": markdown, "plain": plain, "text": as_text, "cell": _cell, "chart": _chart},
        "base64": lambda file: b64encode(file).decode(),
        "csv_url": lambda table: _data_url(as_csv(table), "text/csv"),
        "latex_url": lambda table: _data_url(as_latex(table), "text/x-tex"),
    }
    for theme in ("light", "dark"):
        templates.globals[f"{theme}_colors"] = [line_style(i, theme)[0] for i in range(_COLORS)]
    return templates
