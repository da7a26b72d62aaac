"""Update the table of docs/reference/index.md after a docstring has changed: `python docs/public_names.py`.

Each row holds a public name and the first sentence of its docstring; `tests/unit/test_docs.py` checks that they agree.
"""

import inspect
import re
from pathlib import Path

import ddpm_lightning

PAGE = Path(__file__).parent / "reference" / "index.md"
ROW = re.compile(r"^\| \[`(?P<name>\w+)`\]\((?P<page>\w+\.md)\) \| (?P<text>.*) \|$", re.MULTILINE)
CONSTANTS = {"PREDICTIONS": "The prediction types by name: {names}."}  # values without a docstring


def first_sentence(name: str) -> str:
    """The first paragraph of a public name's docstring, escaped for a table."""
    found = getattr(ddpm_lightning, name)
    if name in CONSTANTS:
        return CONSTANTS[name].format(names=", ".join(found))
    text = (inspect.getdoc(found) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", r"\|")


def corrected(page: str) -> str:
    """The page with the docstrings' sentences."""
    return ROW.sub(lambda row: f"| [`{row['name']}`]({row['page']}) | {first_sentence(row['name'])} |", page)


if __name__ == "__main__":
    PAGE.write_text(corrected(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
