"""Tables as CSV, which spreadsheets and pandas read, and as LaTeX."""

import csv
import math
from io import StringIO

from ddpm_lightning.report.comparison import Estimate
from ddpm_lightning.report.tables import Link, Row, Table, as_csv, as_latex

TABLE = Table(
    "results",
    ["`schedule`", "seeds", "FID ↓", "p", "W&B"],
    [
        Row(
            ["`cosine_50%`", 3, Estimate(1234.5678, -1.0, 2.5), 0.012345678, Link("https://wandb.ai/a_b")],
            0,
            frozenset({2}),
        ),
        Row(["**a** & {b}\\c", 1, Estimate(2.0), math.nan, None]),
    ],
    names=1,
)


def test_csv_has_the_unrounded_numbers():
    rows = [*csv.reader(StringIO(as_csv(TABLE)))]
    ends = ["FID ↓, low of 95% interval", "FID ↓, high of 95% interval"]
    assert rows[0] == ["schedule", "seeds", "FID ↓", *ends, "p", "W&B"]
    assert rows[1] == ["cosine_50%", "3", "1234.5678", "-1.0", "2.5", "0.012345678", "https://wandb.ai/a_b"]
    assert rows[2] == ["a & {b}\\c", "1", "2.0", "", "", "", ""]


def test_csv_holds_no_formula_of_a_stranger():
    rows = [*csv.reader(StringIO(as_csv(Table("x", ["`=a`"], [Row(["=cmd|' /C calc'!A0"]), Row(["`+1`\n@x"])]))))]
    assert rows == [["'=a"], ["'=cmd|' /C calc'!A0"], ["'+1 @x"]]


def test_latex_is_booktabs_with_special_characters_escaped():
    assert as_latex(TABLE).splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"\texttt{schedule} & seeds & FID $\downarrow$ & p & W\&B \\",
        r"\midrule",
        r"\texttt{cosine\_50\%} & 3 & \textbf{1,234.6 {[}$-$1.0, 2.5{]}} & 0.012 & https://wandb.ai/a\_b \\",
        r"\textbf{a} \& \{b\}\textbackslash{}c & 1 & 2 & -- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
