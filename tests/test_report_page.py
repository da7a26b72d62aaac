"""What is on the page of a report besides its numbers, and what sweeps leave of it."""

import io
import json
import os
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt as markdown_it
from PIL import Image

from ddpm_lightning.__main__ import main
from ddpm_lightning.evaluation.study import table_of
from ddpm_lightning.report import write_report
from ddpm_lightning.report.comparison import Mean
from ddpm_lightning.report.figures import errors_by_log_snr
from ddpm_lightning.report.page import Gallery, Heading, Row, Sheet, Table, Text, markdown, to_html, to_markdown
from ddpm_lightning.report.reading import read_runs, settings_of
from ddpm_lightning.report.writing import compare
from tests.conftest import TINY, script
from tests.test_report import fabricate, rows_of
from tests.test_scripts import run_folders


def test_errors_by_log_snr_are_the_last_of_each_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "ddpm_lightning.report.figures.draw_curves",
        lambda curves, **kw: drawn.append((kw["title"], curves)) or b"",
    )
    for seed, value in enumerate((0.1, 0.3)):
        errors = {50: {"-10": 9.0, "0": 9.0, "+10": 9.0}, 100 + seed: {"-10": value, "0": 2 * value, "+10": 4 * value}}
        fabricate(tmp_path, seed, "prediction=v", f"seed={seed}", errors=errors)
    fabricate(tmp_path, 2, "prediction=x0", errors={50: {"-10": 5.0, "+10": 7.0}})
    fabricate(tmp_path, 3, "prediction=epsilon")
    list(errors_by_log_snr(settings_of(read_runs(tmp_path))))
    ((_, (v, x0)),) = drawn  # the third setting has measured none
    assert (v.name, v.number, v.x) == ("prediction=v", 0, [-10, 0, 10])
    np.testing.assert_allclose([v.y, v.low, v.high], [[0.2, 0.4, 0.8], [0.1, 0.2, 0.4], [0.3, 0.6, 1.2]])
    assert (x0.name, x0.number, x0.x, [*x0.y]) == ("prediction=x0", 1, [-10, 10], [5, 7])


def test_errors_by_log_snr_have_a_section_where_there_are_any(tmp_path):
    fabricate(tmp_path, 0, "prediction=v", errors={100: {"-10": 0.1, "+10": 1.0}})
    text = write_report(tmp_path)[1].read_text()
    assert "These compare, whatever schedules, predictions and losses" in text.split("## Error by log SNR\n")[1]
    fabricate(tmp_path / "none", 0)
    assert "Error by log SNR" not in write_report(tmp_path / "none")[1].read_text()


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [
        (["sampler=ancestral"], "1,000"),
        (["sampler=ddim", "sampler.num_steps=20"], "20"),
        (["sampler=heun", "sampler.num_steps=20"], "39"),
        (["sampler.num_steps=20", "data.num_classes=10", "guidance_scale=2"], "40"),
        (["sampler.num_steps=20", "data.num_classes=10"], "20"),
        (["sampler.num_steps=20", "sampler.spacing=karras", "guidance_scale=2"], "20"),
        (["sampler.num_steps=2000"], "–"),
        (["sampler._target_=os.abort"], "–"),
    ],
)
def test_the_cost_of_a_sample(tmp_path, overrides, evaluations):
    fabricate(tmp_path, 0, *overrides)
    assert rows_of(write_report(tmp_path)[1].read_text(), "Cost")[0][-1] == evaluations


def test_the_contact_sheet_has_a_row_for_each_setting_and_a_column_for_each_seed(tmp_path):
    for number, (name, seed) in enumerate([("v", 0), ("v", 1), ("x0", 0), ("x0", 1), ("epsilon", 1)]):
        fabricate(tmp_path, number, f"prediction={name}", f"seed={seed}")
    (sheet,) = [block for block in compare(tmp_path).blocks if isinstance(block, Sheet)]
    assert sheet.columns == ["seed 0", "seed 1"]
    assert [row.name for row in sheet.rows] == ["`prediction=v`", "`prediction=x0`", "`prediction=epsilon`"]
    shades = []
    for row in sheet.rows:
        strips = [file and np.array(Image.open(io.BytesIO(file)).convert("L")) for file in row.files]
        shades.append([None if strip is None else strip[30, 30::68].tolist() for strip in strips])
    images = [[10 * i + 9 * seed for i in range(6)] for seed in range(2)]
    assert shades == [images, images, [None, images[1]]]


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
    """What is on a page, without its numbers: headings, roles of sentences, heads and names in tables, and the pictures' sizes."""
    found = []
    for block in report.blocks:
        match block:
            case Table(head, rows, names):
                # A job's folder, a setting's name and the number of its seeds are words, all else is a number
                found.append((*head, *([*row.cells[:names], "–" in row.cells] for row in rows)))
            case Gallery(pictures):
                found += [(title, Image.open(io.BytesIO(file)).size) for title, file in pictures]
            case Sheet(columns, rows):
                sizes = [[file and Image.open(io.BytesIO(file)).size for file in row.files] for row in rows]
                found.append((*columns, *(row.name for row in rows), sizes))
            case Text(_, role):
                found.append(role)
            case _:
                found.append(block)
    return found


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_processes_a_job_leave_as_complete_a_report(tmp_path):
    folders = [
        swept(tmp_path / f"{processes}", "schedule=linear,cosine", processes=processes)[0] for processes in (1, 2)
    ]
    one, two = map(compare, folders)
    assert contents_of(one) == contents_of(two)
    assert [block.text for block in two.blocks if isinstance(block, Heading)] == [
        *("Results", "Samples", "Curves", "Error by log SNR", "Loss by quarter of t", "Schedules", "Cost"),
        "How it was made",
    ]
    assert {row[-2] for row in rows_of((folders[1] / "report.md").read_text(), "Cost")} == {"2"}


@pytest.mark.slow
def test_a_job_of_two_processes_that_fails_is_named(tmp_path):
    folder, result = swept(tmp_path / "here", "prediction=v,z", processes=2)
    assert result.returncode == 1
    text = (folder / "report.md").read_text()
    assert "prediction=z" in rows_of(text, "Not finished")[0][2]
    assert [row[-2] for row in rows_of(text, "Cost")] == ["2"]  # the processes of the job that has finished


HOSTILE = (
    "<script>alert(1)</script>",
    "a`<img src=x onerror=alert(1)>`b",
    "`<img src=x>``",
    "``<b>`<b>",
    "[click](javascript:alert(1))",
    "![x](http://elsewhere/x.png)",
    "a\n\n# heading\n<div>",
    "x | y | <i>",
    "back\\`<i>`slash",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_a_strangers_folder_are_text_in_both_forms_of_the_page(text):
    """As CommonMark reads the one, and HTML the other: no element but those of the page itself."""
    blocks = [Heading(text), Text(f"see `{text}`, {text}"), Table([text, "b"], [Row([f"`{text}`", text])])]
    tree = markdown_it("commonmark", {"html": True}).enable("table").parse(to_markdown(text, blocks))
    kinds = {token.type for block in tree for token in [block, *(block.children or [])]}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    assert sum(token.type == "heading_open" for token in tree) == 2
    html = to_html(text, blocks)
    assert re.findall(r"<(script|img|i|b|div)\b(?! class=.box)", html) == []


def test_bold_and_code_are_the_same_in_both_forms():
    text = "**`a`** is lowest, 0 < `t<T` & 1"
    assert markdown(text) == "**`a`** is lowest, 0 &lt; `t<T` &amp; 1"
    assert (
        to_html("", [Text(text)]).count("<strong><code>a</code></strong> is lowest, 0 &lt; <code>t&lt;T</code> &amp; 1")
        == 1
    )


def test_a_study_of_strangers_evaluations_is_text():
    protocol = {"sampler": {"_target_": "x.<img src=x>"}, "steps": "[a](b)", "network_evaluations_per_image": 1}
    summary = {
        "protocol": {**protocol, "checkpoint": "`<b>|"},
        "metrics": {"fid": {"value": 1.0}},
        "timing": {"images_per_second_of_one_process": 1.0},
    }
    table = table_of([summary])
    assert "&lt;img src=x&gt;" in table
    assert "\\[a\\](b)" in table
    assert "\\`&lt;b&gt;\\|" in table
