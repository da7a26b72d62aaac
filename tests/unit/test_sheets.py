"""Sheets of images: every pixel where it is meant, and text where there is none of them."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import sheets
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import as_pictures, save_png
from ddpm_lightning.sheets import Layout, beside_neighbors, by_label, captions_of, contact_sheet, enlargement, sheet

PAPER, FRAME = 255, 160


def shades(*numbers, size=(8, 8)):
    """Images of one gray level each."""
    return torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, *size)


def texts_of(monkeypatch):
    """What is written on the sheets to come, as (x, y, text)."""
    written = []
    real = sheets._written
    monkeypatch.setattr(sheets, "_written", lambda canvas, texts: written.extend(texts) or real(canvas, texts))
    return written


def test_a_plain_sheet_is_images_and_frames_alone():
    pixels, facts = sheet(shades(0, 40, 80, 120, 200), columns=3)
    assert pixels.shape == (3, 2 * 130 + 2, 3 * 130 + 2)
    for place, level in enumerate((0, 40, 80, 120, 200)):
        y, x = 2 + place // 3 * 130, 2 + place % 3 * 130
        assert (pixels[:, y : y + 128, x : x + 128] == level).all()
        assert (pixels[:, y - 2, x - 2 : x + 130] == FRAME).all()
        assert (pixels[:, y + 129, x - 2 : x + 130] == FRAME).all()
    assert (pixels[:, 134:, 2 * 130 + 2 :] == PAPER).all()  # where there is no image is paper, no black one
    assert json.loads(facts["layout"]) == {
        "tops": [2, 132],
        "lefts": [2, 132, 262],
        "height": 128,
        "width": 128,
        "factor": 16,
        "order": [0, 1, 2, 3, 4],
    }


@pytest.mark.parametrize(
    ("size", "rows", "columns", "factor"),
    [
        ((8, 8), 8, 8, 15),  # 960 pixels
        ((28, 28), 8, 8, 4),  # 896
        ((32, 32), 8, 8, 3),
        ((64, 64), 8, 8, 1),
        ((256, 256), 8, 8, 1),
        ((8, 8), 1, 1, 16),  # 128 pixels at most
        ((28, 28), 10, 6, 3),  # as high as 10 rows allow
        ((28, 28), 2, 30, 1),
        ((4, 40), 1, 1, 3),
    ],
)
def test_images_are_enlarged_to_what_one_sees(size, rows, columns, factor):
    assert enlargement(size, rows, columns) == factor


def test_a_layout_leads_back_to_the_images(tmp_path):
    """Through a file, with names, gaps and a hole."""
    images = torch.randint(256, (5, 3, 5, 9), dtype=torch.uint8)
    made = sheet(
        images,
        columns=3,
        order=[4, 0, -1, 1, 3, 2],
        names=["one", "two"],
        heads=["a", "b\nc", "d"],
        title="t = 7",
        row_breaks=[1],
        column_breaks=[2],
    )
    save_png(made.pixels, tmp_path / "sheet.png", {"guidance at σ": "3", "name": "Größe x̂₀", **made.facts})
    with Image.open(tmp_path / "sheet.png") as file:
        pixels, facts = torch.from_numpy(np.array(file)).permute(2, 0, 1), file.text
    assert (facts["guidance at sigma"], facts["name"]) == ("3", "Größe x̂₀")
    layout = Layout.read(facts)
    assert torch.equal(layout.images(pixels), images)
    assert layout.lefts[2] - layout.lefts[1] - layout.width == 10
    assert layout.lefts[1] - layout.lefts[0] - layout.width == 2
    assert layout.tops[0] == 3 * 18 + 2  # a title and two lines of heads
    assert Layout.read({"seed": "3"}) is None


def test_names_stand_beside_their_rows_and_heads_above_their_columns(monkeypatch):
    texts = texts_of(monkeypatch)
    made = sheet(shades(*range(6)), columns=3, names=["up", "down"], heads=["left", "", "right"], title="all")
    layout = Layout.read(made.facts)
    found = {text.text: (text.x, text.y, text.anchor) for text in texts}
    assert found["up"] == (layout.lefts[0] - 8, layout.tops[0] + layout.height / 2, "rm")
    assert found["down"] == (layout.lefts[0] - 8, layout.tops[1] + layout.height / 2, "rm")
    assert found["right"] == (layout.lefts[2] + layout.width / 2, layout.tops[0] - 2 - 9, "mm")
    assert found["all"][1] == 9
    margin = made.pixels[:, :, : layout.lefts[0] - 2]
    assert margin.min() < 100  # ink
    assert (made.pixels[:, layout.tops[0] : layout.tops[0] + 8, : layout.lefts[0] - 2] == PAPER).all()


def test_heads_that_would_overlap_are_thinned_out(monkeypatch):
    texts = texts_of(monkeypatch)
    sheet(shades(*range(40), size=(24, 24)), columns=40, heads=[f"t = {1000 - 25 * i}" for i in range(40)])
    assert [text.text for text in texts] == [f"t = {1000 - 75 * i}" for i in range(14)]  # 24 + 2 pixels each


def test_labels_have_a_row_each_with_their_names(monkeypatch):
    texts = texts_of(monkeypatch)
    pixels, facts = by_label(shades(*range(20, 160, 20)), ["cat", "dog", "label 2"])
    layout = Layout.read(facts)
    assert layout.order == [0, 3, 6, 1, 4, -1, 2, 5, -1]
    seen = [[int(pixels[0, top + 9, left + 9]) for left in layout.lefts] for top in layout.tops]
    assert seen == [[20, 80, 140], [40, 100, PAPER], [60, 120, PAPER]]  # image i has the label i % 3
    assert [text.text for text in texts] == ["cat", "dog", "label 2"]
    assert captions_of([1, 7], ["cat", "a\ndog"]) == ["a dog", "label 7"]
    assert captions_of([0], ["tabby, tabby cat and Egyptian cat"]) == ["tabby, tabby cat and Egypti…"]


def test_fewer_images_than_labels_have_captions(monkeypatch):
    texts = texts_of(monkeypatch)
    made = contact_sheet(torch.zeros(3, 1, 8, 8), torch.arange(1000), class_names=["cat"])
    layout = Layout.read(made.facts)
    assert [(t.text, t.y) for t in texts] == [("cat", 11), ("label 1", 11), ("label 2", layout.tops[1] - 9)]
    assert layout.tops == [20, 20 + 128 + 20]


def test_samples_stand_apart_from_their_neighbors(monkeypatch):
    texts = texts_of(monkeypatch)
    made = beside_neighbors(shades(1, 2), shades(3, 4, 5, 6, 7, 8).unflatten(0, (2, 3)))
    layout = Layout.read(made.facts)
    assert layout.images(made.pixels)[:, 0, 0, 0].tolist() == [1, 3, 4, 5, 2, 6, 7, 8]
    gaps = [b - a - layout.width for a, b in pairwise(layout.lefts)]
    assert gaps == [10, 2, 2]
    assert [text.text for text in texts] == ["sample", "neighbor 1", "neighbor 2", "neighbor 3"]


def test_a_color_condition_beside_gray_samples(monkeypatch):
    texts = texts_of(monkeypatch)
    condition = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(2, -1, 4, 4)
    made = contact_sheet(torch.zeros(4, 1, 8, 8), condition)
    images = Layout.read(made.facts).images(made.pixels)
    assert images[:, :, 4, 4].tolist() == [[255, 0, 0], [128, 128, 128]] * 4
    assert [text.text for text in texts] == ["condition", "sample"]
    plain = contact_sheet(torch.zeros(4, 1, 8), torch.zeros(2, 3)).pixels  # no images to place beside
    assert torch.equal(plain, sheet(as_pictures(torch.zeros(4, 1, 8))).pixels)


def test_dark_sheets_have_dark_paper_and_the_same_images(monkeypatch):
    light = sheet(shades(7, 200), names=["a"])
    monkeypatch.setenv("DDPM_THEME", "dark")
    dark = sheet(shades(7, 200), names=["a"])
    assert dark.facts == light.facts
    layout = Layout.read(light.facts)
    assert torch.equal(layout.images(dark.pixels), layout.images(light.pixels))
    assert (light.pixels[:, 0, 0].tolist(), dark.pixels[:, 0, 0].tolist()) == ([255] * 3, [20] * 3)
    assert dark.pixels[:, :, : layout.lefts[0] - 2].max() > 180  # ink
    monkeypatch.setenv("DDPM_THEME", "blue")
    with pytest.raises(UserError, match="DDPM_THEME must be light or dark, got 'blue'"):
        sheet(shades(7))
