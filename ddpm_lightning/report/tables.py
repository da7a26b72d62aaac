"""Tables of a report as text cells, CSV and LaTeX."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import NamedTuple

from ddpm_lightning.report.comparison import CONFIDENCE, Estimate

__all__ = ["Cell", "Link", "Row", "Table", "as_csv", "as_latex", "as_text", "plain"]


class Link(NamedTuple):
    """A link that is shown as its address."""

    address: str

    def __str__(self) -> str:
        return self.address


Cell = str | int | float | Estimate | Link | None  # text is marked: **bold** and `code`; None is unknown


class Row(NamedTuple):
    """A table row: its cells, the line style index of its curves, and the columns whose cells stand out."""

    cells: Sequence[Cell]
    number: int | None = None
    bold: frozenset[int] = frozenset()


class Table(NamedTuple):
    """A table; its name is a file name, and the first `names` columns hold text, the others numbers."""

    name: str
    head: Sequence[str]
    rows: Sequence[Row]
    names: int = 1


def as_text(cell: Cell) -> str:
    """A cell as marked text; whole numbers have thousands separators, others, such as p-values, two significant digits."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    return f"{cell:.2g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def plain(text: str) -> str:
    """Marked text without its marks."""
    return re.sub(r"\*\*(.+?)\*\*", r"\1", text).replace("`", "")


def as_csv(table: Table) -> str:
    """The table as CSV with unrounded numbers; a column of estimates becomes three: value, low and high."""
    wide = [any(isinstance(row.cells[i], Estimate) for row in table.rows) for i in range(len(table.head))]
    ends = [f"{end} of {CONFIDENCE:.0%} interval" for end in ("low", "high")]
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [
        [name, *(f"{name}, {end}" for end in ends)] if w else [name] for name, w in zip(table.head, wide, strict=True)
    ]
    writer.writerow(_inert(name) for group in names for name in group)
    for row in table.rows:
        writer.writerow([value for cell, w in zip(row.cells, wide, strict=True) for value in _values(cell, w)])
    return file.getvalue()


def _values(cell: Cell, wide: bool) -> Iterator[str]:
    """A cell's entries in a row of CSV."""
    numbers: Sequence[str | int | float | Link | None] = cell if isinstance(cell, Estimate) else [cell]
    for number in [*numbers, *[None] * (3 * wide - len(numbers) if wide else 0)]:
        if isinstance(number, str | Link):
            yield _inert(str(number))
        else:
            yield "" if number is None or not math.isfinite(number) else repr(number)


def _inert(text: str) -> str:
    """Marked text as plain text in one line, with a quote in front of what a spreadsheet would run as a formula."""
    text = " ".join(plain(text).split())
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def as_latex(table: Table) -> str:
    r"""The table as a LaTeX `tabular` with the rules of booktabs, to be read by \input."""
    columns = "l" * table.names + "r" * (len(table.head) - table.names)
    rows = [[(_latex(as_text(cell)), i in row.bold) for i, cell in enumerate(row.cells)] for row in table.rows]
    lines = [[rf"\textbf{{{text}}}" if bold else text for text, bold in row] for row in rows]
    body = [f"{' & '.join(line)} \\\\" for line in ([*map(_latex, table.head)], *lines)]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            *(r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"),
            r"\end{tabular}",
            "",
        ]
    )


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"[": "{[}", "]": "{]}"},  # behind \\ a bracket would be an option
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"−": "$-$", "–": "--", "×": r"$\times$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "≈": r"$\approx$"},
}


def _latex(text: str) -> str:
    """Marked text with LaTeX's special characters escaped."""
    parts = re.split(r"`([^`]*)`", " ".join(text.split()))
    parts = ["".join(_LATEX.get(character, character) for character in part) for part in parts]
    parts[1::2] = [rf"\texttt{{{part}}}" for part in parts[1::2]]
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", "".join(parts))
