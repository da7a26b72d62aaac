"""What sweeps leave on the page of a report."""

import json
import shutil

import numpy as np
import torch

from ddpm_lightning.report.writing import compare
from tests.helpers.configs import TINY, WHOLE
from tests.helpers.evaluating import SMALL
from tests.helpers.forked import start_all
from tests.helpers.reports import rows_of
from tests.helpers.scripts import run_folders, script


def swept(folder, *overrides, processes=1, tiny=TINY):
    """The folder of a sweep of tiny runs, and what was printed."""
    folder.mkdir()
    result = script(
        *("train.py", "-m", *tiny, "logger=none", "trainer=ddp_cpu", f"trainer.devices={processes}", *overrides),
        cwd=folder,
    )
    assert "no report" not in result.stderr
    return run_folders(folder, "multirun")[0].parent, result


def contents_of(report):
    """What is on a page, without its numbers: headings, which texts there are, heads and names in tables, and the curves' names."""
    found = [len(report.page.verdicts)]
    for section in report.page.sections:
        found.append((section.heading, bool(section.lead), bool(section.note)))
        for table in section.tables:
            # A job's folder, a setting's name and the number of its seeds are words, all else is a number
            rows = [(*row.cells[: min(table.names, 4)], None in row.cells) for row in table.rows]
            found.append((table.name, *table.head, *sorted(rows, key=str)))
        if section.sheet:
            found.append((*section.sheet.columns, *([row.name, *map(bool, row.figures)] for row in section.sheet.rows)))
        found += [(plot.caption, *(curve.name for curve in plot.curves)) for plot in section.plots]
    return found


def test_a_sweep_ends_in_a_report_that_its_evaluations_join(tmp_path):
    folder, result = swept(tmp_path / "here", "schedule=linear,cosine", "seed=0,1")
    assert result.returncode == 0, result.stderr
    name = folder.relative_to(tmp_path / "here")
    assert result.stdout.endswith(f"\n{name}/report.html\n{name}/report.md\n")
    text = (folder / "report.md").read_text()
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob("*linear*/summary.json"))]
    assert f"{np.mean([summary['best']['val/bits_per_dim'] for summary in summaries]):.4g}" in text
    assert f"trained on {summaries[0]['ended'][:10]}" in text
    assert f"torch {torch.__version__} · lightning " in text
    assert "`python train.py -m model.base_channels=8 " in text
    assert f"Rebuild this page: `python -m ddpm_lightning report {name}`" in text
    shutil.rmtree(folder / "2_schedule_cosine,seed_0" / "checkpoints")
    wrong, done = start_all(
        {"argv": ["-m", "ddpm_lightning", "evaluate-sweep", str(name), *options], "cwd": str(tmp_path / "here")}
        for options in (("num_sample=60",), (*SMALL, f"cache_dir={tmp_path}"))
    )
    assert wrong["code"] == 1
    assert "num_samples" in wrong["err"]
    assert "report" not in wrong["out"]
    assert done["code"] == 0, done["err"]
    assert "Evaluating 3 of the 4 runs in multirun/" in done["out"]
    assert done["out"].endswith(
        "\n\nNo verdict on FID, since a test requires at least 3 seeds per setting: "
        f"{done['out'].rpartition('setting: ')[2].splitlines()[0]}\n{name}/report.html\n{name}/report.md\n"
    )
    rows = {row[0]: row for row in rows_of((folder / "report.md").read_text(), "Evaluation")}
    found = [json.loads(p.read_text()) for p in folder.glob("*linear*/evaluations/*/evaluation.json")]
    assert len(found) == 2
    assert rows["`linear`"][1:3] == ["2", f"{np.mean([one['metrics']['fid']['value'] for one in found]):.4g}"]
    assert rows["`cosine`"][1] == "1"


def test_two_processes_a_job_leave_as_complete_a_report(tmp_path):
    folders = [
        swept(tmp_path / f"{processes}", "schedule=linear,cosine", processes=processes, tiny=WHOLE)[0]
        for processes in (1, 2)
    ]
    one, two = map(compare, folders)
    assert contents_of(one) == contents_of(two)
    assert [section.heading for section in two.page.sections] == [
        *(
            "Results by `val/bits_per_dim` (lower is better)",
            "Results by `val/loss` (lower is better)",
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
