"""Puts the line numbers in the links of equations.md right: `python docs/line_numbers.py`, after the code has moved.

A link there is [`snippet`](../path/to/file#L123), and line 123 of that file holds the snippet; `tests/unit/test_equations.py` keeps it so.
"""

import re
from pathlib import Path

PAGE = Path(__file__).parent / "equations.md"
LINK = re.compile(r"\[`(?P<snippet>[^`\n]+)`\]\(\.\./(?P<path>[^)#]+)#L(?P<line>\d+)\)")


def found_at(snippet: str, path: str, near: int) -> int:
    """The line that holds the snippet, of several the one nearest to where it was.

    Raises:
        ValueError: where no line holds it.
    """
    text = (PAGE.parents[1] / path).read_text(encoding="utf-8").splitlines()
    lines = [number for number, line in enumerate(text, start=1) if snippet in line]
    if not lines:
        raise ValueError(f"docs/equations.md quotes {snippet!r}, which no line of {path} holds: quote what replaced it")
    return min(lines, key=lambda line: abs(line - near))


def corrected(page: str) -> str:
    """The page with the numbers of today."""

    def link(match: re.Match[str]) -> str:
        line = found_at(match["snippet"], match["path"], int(match["line"]))
        return f"[`{match['snippet']}`](../{match['path']}#L{line})"

    return LINK.sub(link, page)


if __name__ == "__main__":
    PAGE.write_text(corrected(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
