"""Render a page of sections, tables and figures as Markdown or self-contained HTML."""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

__all__ = ["Figure", "Row", "Section", "Sheet", "SheetRow", "Table", "inline", "markdown", "render"]


class Row(NamedTuple):
    """A table row: its cells, and the line style of its curves."""

    cells: Sequence[str]
    line_style: tuple[str, str] | None = None


class Table(NamedTuple):
    """A table; the first `names` columns hold text, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Row]
    names: int = 1


class Figure(NamedTuple):
    """A PNG file and its caption as plain text."""

    caption: str
    png: bytes


class SheetRow(NamedTuple):
    """A row of a contact sheet: its name as plain text, its line style, and one figure per column, None if missing."""

    name: str
    line_style: tuple[str, str]
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
    sheet: Sheet | None = None
    plots: Sequence[Figure] = ()
    note: str = ""
    details: tuple[str, str] | None = None  # a summary and its folded text

    @property
    def figures(self) -> list[Figure]:
        """The plots, and the figures of the contact sheet."""
        rows = self.sheet.rows if self.sheet else ()
        return [*self.plots, *(figure for row in rows for figure in row.figures if figure)]


def render(form: str, title: str, verdicts: Sequence[str], sections: Sequence[Section]) -> str:
    """Render the page as "html" or "md"; Markdown has text and tables only.

    Args:
        form: the file extension.
        title: plain text.
        verdicts: the introductory sentences, as marked text.
        sections: the sections.
    """
    return _templates().get_template(f"page.{form}.jinja").render(title=title, verdicts=verdicts, sections=sections)


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


def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"inline": inline, "markdown": markdown, "base64": lambda file: b64encode(file).decode()}
    return templates
