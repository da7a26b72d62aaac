"""A page of headings, sentences, tables and pictures, as Markdown and as an HTML file that needs no other."""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Block", "Gallery", "Heading", "Row", "Strip", "Table", "Text", "to_html", "to_markdown"]


class Heading(NamedTuple):
    """A section's."""

    text: str


class Text(NamedTuple):
    """A paragraph, in which **this** is bold and `this` is code; a note is set in small print."""

    text: str
    note: bool = False


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


class Strip(NamedTuple):
    """Pictures below each other: a caption, its look, and the PNG file."""

    pictures: Sequence[tuple[str, tuple[str, str], bytes]]


Block = Heading | Text | Table | Gallery | Strip

_STYLE = """
:root { color: #1b1b1b; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 1120px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid #ddd; }
p { margin: .5rem 0; max-width: 52rem; }
.note { color: #555; font-size: .875rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.box { overflow-x: auto; }
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
.strip figure { margin: .8rem 0; }
.strip img { max-width: min(100%, 800px); display: block; }
figcaption { font-size: .92rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
""".strip()


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page's words and tables; its pictures are in the HTML file only."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Text(text, _):
                parts.append(text)
            case Table(head, rows, names):
                ruler = ["---"] * names + ["--:"] * (len(head) - names)
                lines = [
                    [text.replace("|", "\\|") for text in cells] for cells in (head, ruler, *(r.cells for r in rows))
                ]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case _:
                parts.append("(pictures: in `report.html`)")
    return "\n\n".join(parts) + "\n"


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
        case Text(text, note):
            return f"<p class='note'>{_inline(text)}</p>" if note else f"<p>{_inline(text)}</p>"
        case Table(head, rows, names):
            lines = [_cells("th", head, names), *(_cells("td", r.cells, names, key=_key(r.look)) for r in rows)]
            return _all("<div class='box'><table>", lines, "</table></div>")
        case Gallery(plots):
            return _all("<div class='gallery'>", [f"<figure>{_image(file, what)}</figure>" for what, file in plots])
        case Strip(pictures):
            captions = [f"<figcaption>{_key(look)}{_inline(what)}</figcaption>" for what, look, _ in pictures]
            images = [_image(file, what) for what, _, file in pictures]
            pairs = zip(captions, images, strict=True)
            return _all("<div class='strip'>", [f"<figure>{caption}{image}</figure>" for caption, image in pairs])


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
