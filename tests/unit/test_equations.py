"""docs/equations.md quotes lines of code: each is where its link says."""

import re
import sys

import pytest

from tests.helpers.configs import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import line_numbers

PAGE = line_numbers.PAGE.read_text()
LINKS = [(match["snippet"], match["path"], int(match["line"])) for match in line_numbers.LINK.finditer(PAGE)]


@pytest.mark.parametrize(("snippet", "path", "line"), LINKS)
def test_a_quoted_line_is_where_its_link_says(snippet, path, line):
    text = (ROOT / path).read_text().splitlines()
    assert len(text) >= line, "python docs/line_numbers.py"
    assert snippet in text[line - 1], "python docs/line_numbers.py"


def test_every_link_to_a_line_quotes_it():
    assert len(LINKS) == PAGE.count("](../") == PAGE.count("#L") > 50
    assert all(len(snippet) > 6 for snippet, _, _ in LINKS)  # long enough to say which line is meant


@pytest.mark.parametrize(
    "part",
    [
        *(f"Eq. 25.{number}" for number in (1, 2, 3, 4)),
        "Algorithm 25.1",
        "Algorithm 25.2",
        "AIL 862",
        "https://probml.github.io/pml-book/book2.html",
        "https://github.com/tsmatz/diffusion-tutorials",
        "alphaBars",
    ],
)
def test_all_of_the_lecture_is_on_the_page(part):
    assert part in PAGE


def test_the_fourth_equation_is_alpha_and_not_the_posterior():
    (row,) = re.findall(r"^\| Eq\. 25\.4.*$", PAGE, re.MULTILINE)
    assert "α_t = 1 − β_t" in row
    assert "posterior" not in row


def test_numbers_that_went_wrong_are_put_right():
    snippet, path, line = LINKS[0]
    good = f"[`{snippet}`](../{path}#L{line})"
    assert line_numbers.corrected(f"a {good[:-1]}9) b") == f"a {good} b"
    with pytest.raises(ValueError, match="which no line of .* holds: quote what replaced it"):
        line_numbers.corrected(f"[`no such line`](../{path}#L1)")
