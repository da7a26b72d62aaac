"""The viewer's page: its pixels, its size, and that all texts are text."""

import re
from html.parser import HTMLParser

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser, Guidance
from ddpm_lightning.samplers import DDIM
from ddpm_lightning.viewer import Frame, captions_of, facts_of, render, sprite_sheet
from tests.helpers.gaussian import GaussianModel
from tests.helpers.viewer import data_of, pixels_in


def page(batch=2, count=7, channels=1, size=(4, 6), facts=None, captions=None):
    pixels = torch.randint(0, 256, (batch, count, 3, channels, *size), dtype=torch.uint8)
    frames = [Frame(i, 10 * (count - 1 - i), 0.6, 0.8) for i in range(count)]
    return pixels, render(pixels, frames, facts=facts or {}, captions=captions or captions_of(batch))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [2, 4, 7, 60])
def test_the_sheets_hold_the_very_pixels(channels, count):
    pixels, html = page(channels=channels, count=count)
    assert torch.equal(pixels_in(html), pixels)
    assert [frame[:2] for frame in data_of(html)["frames"]] == [[i, 10 * (count - 1 - i)] for i in range(count)]
    assert f'max="{count - 1}"' in html


def test_a_sprite_sheet_is_nearly_square_and_row_by_row():
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(-1, 3, 2, 1) + 1
    sheet = sprite_sheet(images)
    assert sheet.shape == (3, 4, 3)
    assert sheet[1].tolist() == [[1, 2, 3], [1, 2, 3], [4, 5, 0], [4, 5, 0]]


class Tags(HTMLParser):
    """The elements of a page with their attributes, and the text of each `dd` and `figcaption`."""

    def __init__(self, html):
        super().__init__()
        self.found, self.values, self.inside = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "dd":
            self.values.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "dd":
            self.values[-1] += data


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</script><img src=x onerror=alert(1)>",
        "<!--<script>",
        "\"><b onclick='x'>",
        "a & b &lt; c",
        "$data ${title} $$ \\u003c",
    ],
)
def test_texts_are_text(text):
    plain, hostile = page()[1], page(facts={"checkpoint": text}, captions=[text, "b"])[1]
    tags = Tags(hostile)
    assert [tag for tag, _ in tags.found] == [*map_with_one_fact(Tags(plain).found)]
    assert tags.values == [text]
    assert data_of(hostile)["images"][0]["caption"] == text


def map_with_one_fact(found):
    """The names of the elements, with a fact in the list of facts."""
    for tag, _ in found:
        yield tag
        if tag == "dl":
            yield from ("div", "dt", "dd")


def test_nothing_is_asked_of_the_network():
    html = page()[1]
    assert not re.search(r"https?:|//\w|@import|url\(", html.partition('id="data">')[0])
    for tag, attributes in Tags(html).found:
        assert tag not in {"iframe", "object", "embed", "form"}
        assert {"src", "srcset", "action"}.isdisjoint(attributes)
        assert attributes.get("href", "data:,") == "data:,"


def test_eight_images_of_digits_take_less_than_a_megabyte():
    assert len(page(batch=8, count=60, size=(8, 8))[1]) < 300_000
    assert len(page(batch=8, count=60, size=(28, 28))[1]) < 1_900_000  # of noise; images compress


def test_facts_say_how_the_images_were_sampled():
    schedule = schedules.cosine(1000)
    denoiser = Denoiser(GaussianModel(schedule, "v", mean=0.0, std=1.0), schedule, prediction="v")
    assert facts_of(DDIM(50), 50, denoiser, seed=7, guidance=Guidance()) == {
        "sampler": "DDIM",
        "steps": "50 of T = 1,000",
        "seed": "7",
        "prediction": "v",
    }
    named = {"sampler": "dpmpp_2m_sde", "schedule": "cosine"}
    assert facts_of(DDIM(50), 50, denoiser, seed=7, guidance=Guidance(), names=named).items() >= named.items()
    denoiser.model.num_classes = 10
    assert facts_of(DDIM(50), 50, denoiser, seed=7, guidance=Guidance(2.5, [0.3, 5.0], 0.7)) | {"seed": ""} == {
        "sampler": "DDIM",
        "steps": "50 of T = 1,000",
        "seed": "",
        "prediction": "v",
        "guidance scale": "2.5",
        "guidance at σ": "0.3 to 5",
        "guidance rescaled by": "0.7",
    }


def test_a_page_says_where_timesteps_are_left_out():
    pixels, whole = page(count=3)
    assert "timesteps" not in whole.partition("<noscript>")[0]
    frames = [Frame(0, 1000, 0.0, 1.0), Frame(500, 500, 0.6, 0.8), Frame(1000, 0, 1.0, 0.0)]
    html = render(pixels, frames, facts={}, captions=captions_of(2))
    assert "<dt>shown</dt><dd>3 of 1,001 timesteps</dd>" in html


def test_captions_have_the_labels_in_turn_by_their_names():
    assert captions_of(2) == ["sample 0", "sample 1"]
    assert captions_of(3, [7, 1]) == ["sample 0: label 7", "sample 1: label 1", "sample 2: label 7"]
    assert captions_of(2, [1, 2], ["cat", "dog"]) == ["sample 0: dog", "sample 1: label 2"]
