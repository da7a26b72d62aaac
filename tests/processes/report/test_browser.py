"""A report's page in a browser: charts that are read by mouse and keys, and a phone's width."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from ddpm_lightning.plots import Curve
from ddpm_lightning.report.comparison import Estimate
from ddpm_lightning.report.page import Figure, Page, Plot, Section, Sheet, SheetRow, render
from ddpm_lightning.report.tables import Link, Row, Table
from tests.helpers.browser import CHROMIUM, brightness, browser, contrast

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

NAME = "optimizer.lr=" + 30 * "very_long" + "<b>&\"'"
STEPS = [10, 20, 40]
CURVES = [
    Curve("plain", 0, STEPS, [1.0, 0.1, 0.01], [0.9, 0.05, -1.0], [1.1, 0.2, 0.02]),
    Curve(NAME, 1, STEPS[:2], [100.0, 50.0]),
    Curve("short", 2, [10], [5.0]),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = io.BytesIO()
    Image.new("L", (300, 60), 128).save(file, format="png")
    cells = [f"`{NAME}`", 3, *[Estimate(1234.5, 1230.1, 1238.9)] * 7, Link("https://wandb.ai/" + 60 * "x")]
    head = ["`setting`", "seeds", *[f"a long name of metric {i} ↓" for i in range(7)], "W&B"]
    table = Table("results", head, [Row(cells, i, frozenset({2})) for i in range(9)])
    sheet = Sheet(
        [f"seed {i}" for i in range(4)], [SheetRow(NAME, i, [Figure(NAME, file.getvalue())] * 4) for i in range(2)]
    )
    plots = [
        Plot("loss by step", "loss", "step", CURVES),
        Plot("signed", "signed", "x (units)", [Curve("plain", 0, [-1, 1], [-2, 2])]),
    ]
    sections = [Section(NAME, NAME, table, NAME, (NAME, NAME, table), sheet), Section("Curves", plots=plots)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render("html", Page(f"Which {NAME}?", [NAME], [f"`{NAME}`"] * 2, sections)))
    return path.as_uri()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def numbers(tab, selector="path[stroke]"):
    """The points of the first chart's curves, in pixels."""
    found = tab.value(f"[...charts[0].plot.querySelectorAll('{selector}')].map(path => path.getAttribute('d'))")
    return [np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", d.strip("Z"))[1:]]) for d in found]


def tip(tab):
    return tab.value("charts[0].tip.hidden ? null : [...charts[0].tip.children].map(row => row.textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_cut_off_in_both_color_schemes(tab, address, width, scheme):
    tab.show(width, scheme=scheme, mobile=width < 1000)
    tab.open(address)
    tab.value("document.querySelector('details').open = true")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("innerWidth") == width  # a phone would zoom out of a page that is too wide
    if width < 640:  # where rows of tables are stacked
        wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        assert tab.value(f"{wide}.map(e => e.outerHTML.slice(0, 100))") == []
        assert tab.value("[...document.querySelectorAll('.box')].every(box => box.scrollWidth <= box.clientWidth)")
        label = "getComputedStyle(document.querySelector('td'), '::before').content"
        assert tab.value(label) == '"seeds"'
    text, page = tab.value("[getComputedStyle(document.documentElement)].map(s => [s.color, s.backgroundColor])[0]")
    assert (brightness(text) > brightness(page)) == (scheme == "dark")
    assert contrast(text, page) > 7
    for what, least in ((".note", 4.5), (".files a", 4.5)):
        assert contrast(tab.value(f"getComputedStyle(document.querySelector('{what}')).color"), page) > least
    colors = tab.value("[...document.querySelectorAll('tbody .key')].map(key => getComputedStyle(key).borderTopColor)")
    assert len(colors) == 18
    assert all(contrast(color, page) > 2 for color in colors)


def test_the_curves_lie_where_their_values_are(tab, address):
    tab.show(1280)
    tab.open(address)
    plain, long, short = numbers(tab)  # on a logarithmic axis, since they differ by more than a factor of 4
    at = {1.0: plain[0, 1], 0.1: plain[1, 1], 0.01: plain[2, 1], 100.0: long[0, 1], 50.0: long[1, 1], 5.0: short[0, 1]}
    slope = (at[1.0] - at[100.0]) / 2
    for value, y in at.items():
        assert y == pytest.approx(at[1.0] + slope * -np.log10(value), abs=0.2)
    np.testing.assert_allclose(
        plain[:, 0] - plain[0, 0], (plain[2, 0] - plain[0, 0]) * np.array([0, 1 / 3, 1]), atol=0.2
    )
    tab.value("document.querySelectorAll('.switch')[1].click()")
    assert tab.value("document.querySelectorAll('.switch')[1].getAttribute('aria-pressed')") == "false"
    plain, long, _ = numbers(tab)
    assert (plain[0, 1] - long[1, 1]) / (plain[0, 1] - long[0, 1]) == pytest.approx(49 / 99, abs=0.01)
    tab.value("document.querySelectorAll('.switch')[0].click()")
    plain, *_ = numbers(tab)
    assert (plain[1, 0] - plain[0, 0]) / (plain[2, 0] - plain[0, 0]) == pytest.approx(0.5, abs=0.01)  # 10, 20, 40
    assert tab.value("[...document.querySelectorAll('.switch')].map(s => s.disabled)") == [False, False, True, False]


def test_values_are_read_by_mouse_and_by_keys(tab, address):
    tab.show(1280)
    tab.open(address)
    tab.value("charts[0].plot.scrollIntoView({block: 'center'})")
    left, top = tab.value("[charts[0].plot.getBoundingClientRect()].map(r => [r.left, r.top])[0]")
    x = numbers(tab)[0][1, 0]
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + x + 5, y=top + 50)
    assert tip(tab) == ["step 20", f"{NAME}50", "plain0.1 [0.05, 0.2]"]  # the highest first, and one has ended
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    assert tip(tab) is None
    tab.value("charts[0].plot.focus()")
    for key, first in [
        *[("ArrowRight", "step 10"), ("ArrowRight", "step 20"), ("ArrowRight", "step 40"), ("ArrowRight", "step 40")],
        *[("ArrowLeft", "step 20"), ("Home", "step 10"), ("End", "step 40")],
    ]:
        tab.press(key)
        assert tip(tab)[0] == first, key
    assert tab.value("charts[0].plot.getAttribute('aria-valuetext')") == "step 40; plain 0.01"
    assert tab.value("charts[0].plot.getAttribute('aria-valuenow')") == "2"
    tab.press("Escape")
    assert tip(tab) is None


def test_curves_are_hidden_and_shown_in_all_charts(tab, address):
    tab.open(address)
    count = "charts.map(chart => chart.plot.querySelectorAll('path[stroke]').length)"
    assert tab.value(count) == [3, 1]
    tab.value("document.querySelector('.legend button').focus()")
    tab.press(" ", text=" ")
    assert tab.value("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    assert tab.value(count) == [2, 0]
    assert tab.value("charts[1].plot.textContent") == "no curve to show"
    tab.press(" ", text=" ")
    assert tab.value(count) == [3, 1]


def test_names_are_there_for_those_who_see_little(tab, address):
    tab.open(address)
    assert tab.value("[...document.images].every(image => image.alt)")
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node["name"]["value"]) for node in tree if not node["ignored"] and "name" in node]
    assert ("slider", "loss by step, 3 curves; arrow keys read values") in named
    assert {("button", name) for name in ("log x", "log y", "plain", NAME, "short")} <= {*named}
    assert ("columnheader", "seeds") in named
    assert ("link", "CSV") in named
    tab.value("document.querySelector('.switch').focus()")
    tab.press("Tab")
    assert tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
