"""What plots say: names, units and which way is better, in light and dark."""

import runpy
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ddpm_lightning import plots, schedules
from ddpm_lightning.plots import Curve, Panel
from ddpm_lightning.plots.style import line_style
from tests.helpers.configs import ROOT


@pytest.fixture
def drawn(monkeypatch):
    """The figures to come."""
    made, init = [], Figure.__init__

    def kept(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "__init__", kept)
    return made


def labels_of(figure):
    return [(axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def test_axes_of_schedules_are_named(drawn, tmp_path):
    assert plots.draw_schedule(schedules.cosine(50)).dtype == torch.uint8
    assert labels_of(drawn[0]) == [
        ("Share of the signal in the variance", "timestep t", "ᾱ"),
        ("Signal-to-noise ratio", "timestep t", "log SNR = ln ᾱ/(1 − ᾱ)"),
        ("Variance of the noise of one step", "timestep t", "β"),
    ]
    (line,) = drawn[0].axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), schedules.cosine(50).alpha_bar)


def test_metrics_say_which_way_is_better(drawn, tmp_path):
    study = {"ddim": [(50, 7.7, 0.1), (10, 10.9, 0.2)], "dpmpp_2m_sde": [(10, 4.9, 0.0)]}
    plots.draw_comparison(tmp_path / "comparison.png", study, metric="FID (own classifier, 1,500 samples)")
    plots.draw_bits_by_step(tmp_path / "bits.png", [0.5, 0.25])
    plots.draw_curves([Curve("a", 0, [1, 2], [3, 4])], title="t", x_label="step", y_label=f"loss {plots.LOWER}")
    first, second, third = drawn
    assert labels_of(first) == [
        ("", "network evaluations per image", "FID (own classifier, 1,500 samples) ↓ (lower is better)")
    ]
    assert [text.get_text() for text in first.axes[0].get_legend().get_texts()] == ["ddim", "dpmpp_2m_sde"]
    assert [label.get_text() for label in first.axes[0].get_xticklabels()] == ["10", "50"]
    assert {axes.get_ylabel() for axes in second.axes} == {"bits/dim ↓"}
    np.testing.assert_allclose(second.axes[1].lines[0].get_ydata(), [0.5, 0.75])
    assert labels_of(third) == [("t", "step", "loss ↓")]


def test_points_have_axes_and_their_labels_names(drawn):
    x, y = torch.tensor([[0.5, -0.5], [-1.0, 1.0]])[:, :, None, None], torch.tensor([0, 1])
    plots.draw_points([[Panel("real", x, y), Panel("generated", x)], [Panel("t = 3", 4 * x)]], names=["in", "out"])
    real, generated, noise = drawn[0].get_axes()
    assert [axes.get_title() for axes in (real, generated, noise)] == ["real", "generated", "t = 3"]
    assert {axes.get_xlabel() for axes in (real, generated, noise)} == {"$x_1$"}
    assert [axes.get_ylabel() for axes in (real, generated, noise)] == ["$x_2$", "", "$x_2$"]
    assert real.get_xlim() == generated.get_xlim() == real.get_ylim() == (-1.1, 1.1)
    assert noise.get_xlim()[1] == pytest.approx(4, abs=0.3)  # all but a few
    assert len(real.get_xticks()) > 2
    assert [text.get_text() for text in real.get_legend().get_texts()] == ["in", "out"]
    assert generated.get_legend() is None
    np.testing.assert_allclose(real.collections[0].get_offsets(), [[0.5, -0.5], [-1.0, 1.0]])


def test_one_style_for_light_and_dark(drawn, monkeypatch):
    x = torch.zeros(1, 2, 1, 1)
    light = plots.draw_points([[Panel("here", x)]])
    monkeypatch.setenv("DDPM_THEME", "dark")
    dark = plots.draw_points([[Panel("here", x)]])
    assert light.shape == dark.shape
    assert light[:, 0, 0].tolist() == [255] * 3
    assert dark[:, 0, 0].tolist() == [0x13, 0x14, 0x16]
    ink = [figure.axes[0].title.get_color() for figure in drawn]
    assert ink[0] != ink[1]


def test_the_figure_of_samplers_shows_the_table_of_its_page():
    curves = dict(runpy.run_path(str(ROOT / "docs" / "build_pictures.py"))["samplers"]())
    assert [*curves] == ["ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc"]
    assert curves["ancestral"][-1] == (1000, 4.9, 0)
    assert curves["dpmpp_2m_sde"] == [(10, 4.9, 0), (20, 3.8, 0), (50, 5.9, 0), (100, 5.4, 0)]
    assert [evaluations for evaluations, *_ in curves["heun"]] == [9, 19, 39, 99]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_curves_differ_and_are_visible_on_their_paper(theme, monkeypatch):
    """A contrast of at least 2, as WCAG 2.1 defines it."""
    monkeypatch.setenv("DDPM_THEME", theme)
    paper = 1.0 if theme == "light" else luminance("#131416")
    styles = [line_style(i) for i in range(21)]
    assert len(set(styles)) == 21
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(styles))
    for color, _ in styles[:7]:
        light, dark = sorted([luminance(color), paper], reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 2, color


def luminance(color):
    """Relative luminance of sRGB, as WCAG 2.1 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
