"""A page of headings, sentences, tables and pictures, as Markdown and as an HTML file that needs no other."""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = [
    "Block",
    "Details",
    "Gallery",
    "Heading",
    "Row",
    "Sheet",
    "SheetRow",
    "Table",
    "Text",
    "markdown",
    "to_html",
    "to_markdown",
]


class Heading(NamedTuple):
    """A section's."""

    text: str


class Text(NamedTuple):
    """A paragraph, in which **this** is bold and `this` is code; an "answer" is set off, a "note" in small print."""

    text: str
    role: str = ""


class Details(NamedTuple):
    """A note that is folded below its summary."""

    summary: str
    text: str


class Row(NamedTuple):
    """Of a table: the cells, written as a `Text`, and the colour and dashes of the curves that belong to it."""

    cells: Sequence[str]
    look: tuple[str, str] | None = None


class Table(NamedTuple):
    """Its first `names` columns hold words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Row]
    names: int = 1


class Gallery(NamedTuple):
    """Plots beside each other, as many as the page is wide: what each one shows, and its PNG file."""

    pictures: Sequence[tuple[str, bytes]]


class SheetRow(NamedTuple):
    """Of a contact sheet: its name, its look, and the PNG file of each column, None where there is none."""

    name: str
    look: tuple[str, str]
    files: Sequence[bytes | None]


class Sheet(NamedTuple):
    """A contact sheet: pictures in rows and columns; on a narrow screen a row's stand below each other."""

    columns: Sequence[str]
    rows: Sequence[SheetRow]


Block = Heading | Text | Details | Table | Gallery | Sheet

_STYLE = """
:root { color: #1b1b1b; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 1120px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid #ddd; }
p { margin: .5rem 0; max-width: 52rem; }
.answer { font-size: 1.05rem; padding: .5rem .9rem; border-left: 4px solid #0072b2; background: #f3f7fa; }
.note, details { color: #555; font-size: .875rem; }
summary { cursor: pointer; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.box { overflow-x: auto; background: linear-gradient(90deg, #fff 40%, #fff0) 0 / 2.5rem 100% no-repeat local,
 linear-gradient(-90deg, #fff 40%, #fff0) 100% / 2.5rem 100% no-repeat local,
 linear-gradient(90deg, #0003, #0000) 0 / .7rem 100% no-repeat, linear-gradient(-90deg, #0003, #0000) 100% / .7rem 100% no-repeat; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; white-space: nowrap; border-bottom: 1px solid #eee; }
td code { overflow-wrap: normal; }
td:last-child:not(.number) { white-space: normal; min-width: 14rem; }
th { border-bottom: 1px solid #999; font-weight: 600; }
.number { text-align: right; padding: .35rem 0 .35rem .8rem; }
.key { display: inline-block; width: 1.6em; margin-right: .5em; vertical-align: middle; }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; }
.gallery img { width: 100%; max-width: 560px; display: block; }
.sheet { display: grid; gap: .4rem 1rem; align-items: center; font-size: .92rem; }
.sheet > div { overflow-wrap: anywhere; }
.sheet img { width: 100%; display: block; }
.sheet figcaption { display: none; }
@media (max-width: 640px) {
 .sheet { display: block; }
 .sheet > .column { display: none; }
 .sheet > .name { margin-top: 1rem; }
 .sheet figcaption { display: block; color: #555; margin-top: .3rem; }
}
""".strip()


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page's words and tables; its pictures are in the HTML file only."""
    parts = [f"# {markdown(title)}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {markdown(text)}")
            case Text(text, _) | Details(_, text):
                parts.append(markdown(text))
            case Table(head, rows, names):
                ruler = ["---"] * names + ["--:"] * (len(head) - names)
                lines = [
                    [markdown(text).replace("|", "\\|") for text in cells] for cells in (head, *(r.cells for r in rows))
                ]
                lines.insert(1, ruler)
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case _:
                parts.append("(pictures: in `report.html`)")
    return "\n\n".join(parts) + "\n"


def markdown(text: str) -> str:
    """A `Text`'s text as Markdown in one line, in which only its bold and its code are more than text, as on the page."""
    words = " ".join(text.split())
    parts = re.split(r"`([^`]*)`", words)
    parts[::2] = [re.sub(r"[\\`\[\]]", r"\\\g<0>", escape(part, quote=False)) for part in parts[::2]]
    parts[1::2] = [f"`{code}`" if code else "" for code in parts[1::2]]
    return "".join(parts)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The whole page, its pictures as data URIs."""
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
        *map(_html, blocks),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_inline(text)}</h2>"
        case Text(text, role):
            return f"<p class='{role}'>{_inline(text)}</p>" if role else f"<p>{_inline(text)}</p>"
        case Details(summary, text):
            return f"<details><summary>{_inline(summary)}</summary><p>{_inline(text)}</p></details>"
        case Table(head, rows, names):
            lines = [_cells("th", head, names), *(_cells("td", r.cells, names, key=_key(r.look)) for r in rows)]
            return _all("<div class='box'><table>", lines, "</table></div>")
        case Gallery(plots):
            return _all("<div class='gallery'>", [f"<figure>{_image(file, what)}</figure>" for what, file in plots])
        case Sheet(columns, rows):
            width = f"grid-template-columns: fit-content(14rem) repeat({len(columns)}, minmax(0, 1fr))"
            head = "".join(f"<div class='column'>{_inline(text)}</div>" for text in ("", *columns))
            lines = [_sheet_row(row, columns) for row in rows]
            return _all(f"<div class='sheet' style='{width}'>{head}", lines)


def _sheet_row(row: SheetRow, columns: Sequence[str]) -> str:
    shown = [
        "<div></div>"
        if file is None
        else f"<figure><figcaption>{_inline(column)}</figcaption>{_image(file, f'{row.name}, {column}')}</figure>"
        for column, file in zip(columns, row.files, strict=True)
    ]
    return f"<div class='name'>{_key(row.look)}{_inline(row.name)}</div>{''.join(shown)}"


def _all(start: str, lines: Sequence[str], end: str = "</div>") -> str:
    return "\n".join([start, *lines, end])


def _cells(tag: str, cells: Sequence[str], names: int, *, key: str = "") -> str:
    texts = [_inline(text) for text in cells]
    texts[0] = key + texts[0]
    opened = [f"<{tag}>" if i < names else f"<{tag} class='number'>" for i in range(len(texts))]
    return f"<tr>{''.join(f'{start}{text}</{tag}>' for start, text in zip(opened, texts, strict=True))}</tr>"


def _key(look: tuple[str, str] | None) -> str:
    if look is None:
        return ""
    border = {"-": "solid", "--": "dashed", ":": "dotted"}[look[1]]
    return f"<span class='key' style='border-top: 4px {border} {look[0]}'></span>"


def _image(file: bytes, what: str) -> str:
    plain = escape(what.replace("`", "").replace("**", ""))
    return f'<img alt="{plain}" src="data:image/png;base64,{b64encode(file).decode()}">'


def _inline(text: str) -> str:
    """Bold outside of code, and code."""
    parts = re.split(r"`([^`]*)`", escape(text, quote=False))
    parts[1::2] = [f"<code>{code}</code>" for code in parts[1::2]]
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", "".join(parts))
