"""What sweeps leave on the page of a report."""

import io
import json
import os

from PIL import Image

from ddpm_lightning.__main__ import main
from ddpm_lightning.report.comparison import Mean
from ddpm_lightning.report.writing import compare
from tests.helpers.configs import TINY
from tests.helpers.reports import rows_of
from tests.helpers.scripts import run_folders, script


def swept(folder, *overrides, processes=1):
    """The folder of a sweep of tiny runs, and what was printed."""
    folder.mkdir()
    result = script(
        *("train.py", "-m", *TINY, "logger=none", "trainer=ddp_cpu", f"trainer.devices={processes}", *overrides),
        cwd=folder,
    )
    assert "no report" not in result.stderr
    return run_folders(folder, "multirun")[0].parent, result


def contents_of(report):
    """What is on a page, without its numbers: headings, which texts there are, heads and names in tables, and the figures' sizes."""
    found = [len(report.verdicts)]
    for section in report.sections:
        found.append((section.heading, bool(section.lead), bool(section.note), section.details))
        if section.table:
            head, rows, names = section.table
            # A job's folder, a setting's name and the number of its seeds are words, all else is a number
            found.append((*head, *([*row.cells[:names], "–" in row.cells] for row in rows)))
        if section.sheet:
            found.append((*section.sheet.columns, *([row.name, *map(bool, row.figures)] for row in section.sheet.rows)))
        found += [(figure.caption, Image.open(io.BytesIO(figure.png)).size) for figure in section.figures]
    return found


def test_a_sweep_ends_in_a_report(tmp_path):
    folder, result = swept(tmp_path / "here", "schedule=linear,cosine", "seed=0,1")
    assert result.returncode == 0, result.stderr
    name = folder.relative_to(tmp_path / "here")
    assert result.stdout.endswith(f"\n{name}/report.html\n{name}/report.md\n")
    text = (folder / "report.md").read_text()
    best = [
        json.loads(path.read_text())["best"]["val/bits_per_dim"]
        for path in sorted(folder.glob("*linear*/summary.json"))
    ]
    assert str(Mean(dict(enumerate(best)))) in text
    page = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == page.replace(
        *(f"ddpm_lightning report {path}</code>".encode() for path in (name, os.path.relpath(folder)))
    )


def test_two_processes_a_job_leave_as_complete_a_report(tmp_path):
    folders = [
        swept(tmp_path / f"{processes}", "schedule=linear,cosine", processes=processes)[0] for processes in (1, 2)
    ]
    one, two = map(compare, folders)
    assert contents_of(one) == contents_of(two)
    assert [section.heading for section in two.sections] == [
        *(
            "Results",
            "Samples",
            "Curves",
            "Noise-prediction error vs. log SNR",
            "Loss by quartile of t",
            "Schedules",
            "Cost",
        ),
        "How it was made",
    ]
    assert {row[-2] for row in rows_of((folders[1] / "report.md").read_text(), "Cost")} == {"2"}


def test_a_job_of_two_processes_that_fails_is_named(tmp_path):
    folder, result = swept(tmp_path / "here", "prediction=v,z", processes=2)
    assert result.returncode == 1
    text = (folder / "report.md").read_text()
    assert "prediction=z" in rows_of(text, "Not finished")[0][2]
    assert [row[-2] for row in rows_of(text, "Cost")] == ["2"]  # the processes of the job that has finished
