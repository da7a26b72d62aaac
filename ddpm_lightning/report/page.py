"""A page of sections with tables and figures, as Markdown and as an HTML file that needs no other file."""

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
    """Of a table: its cells, and the color and dashes of the curves that belong to it."""

    cells: Sequence[str]
    line_style: tuple[str, str] | None = None


class Table(NamedTuple):
    """Its first `names` columns hold words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Row]
    names: int = 1


class Figure(NamedTuple):
    """A PNG file, and what it shows as plain text."""

    caption: str
    png: bytes


class SheetRow(NamedTuple):
    """Of a contact sheet: its name as plain text, its line style, and a figure for each column, None where it is missing."""

    name: str
    line_style: tuple[str, str]
    figures: Sequence[Figure | None]


class Sheet(NamedTuple):
    """A contact sheet: figures in rows and columns; on a narrow screen a row's stand below each other."""

    columns: Sequence[str]
    rows: Sequence[SheetRow]


class Section(NamedTuple):
    """A heading, and what stands below it in this order, all but the figures as marked text (see `inline`)."""

    heading: str
    lead: str = ""
    table: Table | None = None
    sheet: Sheet | None = None
    plots: Sequence[Figure] = ()
    note: str = ""
    details: tuple[str, str] | None = None  # a summary, and the text that is folded below it

    @property
    def figures(self) -> list[Figure]:
        """The plots, and those of the contact sheet."""
        rows = self.sheet.rows if self.sheet else ()
        return [*self.plots, *(figure for row in rows for figure in row.figures if figure)]


def render(form: str, title: str, verdicts: Sequence[str], sections: Sequence[Section]) -> str:
    """The page in a form, "html" or "md"; Markdown holds words and tables only.

    Args:
        form: the suffix of the file.
        title: plain text.
        verdicts: the sentences that stand first, as marked text.
        sections: the rest.
    """
    return _templates().get_template(f"page.{form}.jinja").render(title=title, verdicts=verdicts, sections=sections)


def markdown(text: str) -> str:
    """Marked text as Markdown in one line, in which nothing but its bold and its code is markup."""
    parts = re.split(r"`([^`]*)`", " ".join(text.split()))
    parts[::2] = [re.sub(r"[\\`\[\]]", r"\\\g<0>", escape(part, quote=False)) for part in parts[::2]]
    parts[1::2] = [f"`{code}`" if code else "" for code in parts[1::2]]
    return "".join(parts)


def inline(text: str) -> Markup:
    """Marked text as HTML: **this** is bold outside of code, `this` is code, all else is text."""
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
