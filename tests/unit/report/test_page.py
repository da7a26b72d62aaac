"""What is on the page of a report besides its numbers."""

import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt as markdown_it
from PIL import Image

from ddpm_lightning.evaluation.sweep_summary import table_of
from ddpm_lightning.plots import Curve
from ddpm_lightning.report import write_report
from ddpm_lightning.report.figures import errors_by_log_snr
from ddpm_lightning.report.page import Figure, Page, Plot, Section, Sheet, SheetRow, inline, markdown, render
from ddpm_lightning.report.reading import read_runs, settings_of
from ddpm_lightning.report.tables import Link, Row, Table
from ddpm_lightning.report.writing import compare
from tests.helpers.reports import fabricate, rows_of


def test_errors_by_log_snr_are_the_last_of_each_run(tmp_path):
    for seed, value in enumerate((0.1, 0.3)):
        errors = {50: {"-10": 9.0, "0": 9.0, "+10": 9.0}, 100 + seed: {"-10": value, "0": 2 * value, "+10": 4 * value}}
        fabricate(tmp_path, seed, "prediction=v", f"seed={seed}", errors=errors)
    fabricate(tmp_path, 2, "prediction=x0", errors={50: {"-10": 5.0, "+10": 7.0}})
    fabricate(tmp_path, 3, "prediction=epsilon")
    (plot,) = errors_by_log_snr(settings_of(read_runs(tmp_path)))
    v, x0 = plot.curves  # the third setting has measured none
    assert (v.name, v.number, v.x) == ("prediction=v", 0, [-10, 0, 10])
    np.testing.assert_allclose([v.y, v.low, v.high], [[0.2, 0.4, 0.8], [0.1, 0.2, 0.4], [0.3, 0.6, 1.2]])
    assert (x0.name, x0.number, x0.x, [*x0.y]) == ("prediction=x0", 1, [-10, 10], [5, 7])


def test_errors_by_log_snr_have_a_section_where_there_are_any(tmp_path):
    fabricate(tmp_path, 0, "prediction=v", errors={100: {"-10": 0.1, "+10": 1.0}})
    text = write_report(tmp_path)[1].read_text()
    assert (
        "Comparable across schedules, prediction types and losses"
        in text.split("## Noise-prediction error vs. log SNR\n")[1]
    )
    fabricate(tmp_path / "none", 0)
    assert "Noise-prediction error vs. log SNR" not in write_report(tmp_path / "none")[1].read_text()


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
    (sheet,) = [section.sheet for section in compare(tmp_path).page.sections if section.sheet]
    assert sheet.columns == ["seed 0", "seed 1"]
    assert [row.name for row in sheet.rows] == ["prediction=v", "prediction=x0", "prediction=epsilon"]
    shades = []
    for row in sheet.rows:
        strips = [figure and np.array(Image.open(io.BytesIO(figure.png)).convert("L")) for figure in row.figures]
        shades.append([None if strip is None else strip[30, 30::68].tolist() for strip in strips])
    images = [[10 * i + 9 * seed for i in range(6)] for seed in range(2)]
    assert shades == [images, images, [None, images[1]]]


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
    marked = f"see `{text}`, {text}"
    table = Table("a_name", [text, "b"], [Row([f"`{text}`", text], 0)])
    sheet = Sheet([text], [SheetRow(text, 0, [Figure(text, b"")])])
    plot = Plot(text, text, text, [Curve(text, 0, [0, 1], [1, 2])])
    section = Section(text, marked, table, marked, (text, marked, table), sheet, [plot])
    page = Page(text, [marked], [marked, marked], [section])
    tree = markdown_it("commonmark", {"html": True}).enable("table").parse(render("md", page))
    kinds = {token.type for block in tree for token in [block, *(block.children or [])]}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    assert sum(token.type == "heading_open" for token in tree) == 2
    found = Elements(render("html", page))
    own = Elements(render("html", Page("", [""], [""] * 2, [section._replace(plots=[plot._replace(caption="")])])))
    assert [(tag, sorted(attributes)) for tag, attributes in found.elements if tag != "code"] == [
        (tag, sorted(attributes)) for tag, attributes in own.elements if tag != "code"
    ]
    assert sum(tag == "img" for tag, _ in found.elements) == 1
    links = [attributes["href"] for tag, attributes in found.elements if tag == "a"]
    assert all(link.startswith(("data:text/csv;", "data:text/x-tex;")) for link in links)
    (data,) = found.scripts[:-1]
    assert json.loads(data)["curves"][0]["name"] == text


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data


def chart_of(plot):
    html = render("html", Page("", [], [""], [Section("a", plots=[plot])]))
    return json.loads(Elements(html).scripts[0])


def test_a_chart_holds_the_values_of_its_curves():
    curves = [Curve("a", 3, [1, 2], [0.1234567, 10]), Curve("b", 0, [1], [5], [4], [6])]
    data = chart_of(Plot("", "loss", "step", curves))
    assert data == {
        **{"title": "loss", "x": "step", "log": True},  # more than a factor of 4
        "curves": [
            {"name": "a", "number": 3, "x": [1, 2], "y": [0.12346, 10]},
            {"name": "b", "number": 0, "x": [1], "y": [5], "l": [4], "h": [6]},
        ],
    }
    assert not chart_of(Plot("", "", "", curves, may_be_log=False))["log"]
    assert not chart_of(Plot("", "", "", [Curve("", 0, [0, 1], [-1, 9])]))["log"]


def test_a_long_curve_is_averaged_and_its_band_keeps_the_spikes():
    y = np.ones(4321)
    y[1000] = 1e6
    (curve,) = chart_of(Plot("", "", "", [Curve("", 0, np.arange(4321.0), y)]))["curves"]
    assert len(curve["x"]) == len(curve["h"]) == 400
    assert curve["x"] == sorted(curve["x"])
    assert (max(curve["h"]), min(curve["l"])) == (1e6, 1)
    assert sum(h == 1e6 for h in curve["h"]) == 1
    np.testing.assert_allclose(max(curve["y"]), 1e6 / 11, rtol=0.1)  # 10 or 11 values are averaged


def test_a_page_of_wandb_is_a_link_and_nothing_else_is(tmp_path):
    fabricate(tmp_path, 0, "seed=0", wandb="https://wandb.ai/me/p/runs/1")
    others = ("javascript:alert(1)", "https://a b", 'https://"onclick="x', "http://plain")
    run = fabricate(tmp_path, 1, "seed=1")
    for address in others:
        (run / "summary.json").write_text(json.dumps({"status": "finished", "wandb": address}))
        rows = compare(tmp_path).page.sections[-1].table.rows
        assert [row.cells[-1] for row in rows] == [Link("https://wandb.ai/me/p/runs/1"), None]
    html = write_report(tmp_path)[0].read_text()
    assert '<a href="https://wandb.ai/me/p/runs/1">https://wandb.ai/me/p/runs/1</a>' in html
    assert not any(address in html for address in others)


def test_bold_and_code_are_the_same_in_both_forms():
    text = "**`a`** is lowest, 0 < `t<T` & 1"
    assert markdown(text) == "**`a`** is lowest, 0 &lt; `t<T` &amp; 1"
    assert inline(text) == "<strong><code>a</code></strong> is lowest, 0 &lt; <code>t&lt;T</code> &amp; 1"


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
