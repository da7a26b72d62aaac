"""The viewer's page in a browser: keys, pixels, and a phone's width."""

import subprocess

import pytest
import torch

from ddpm_lightning.viewer import Frame, captions_of, render
from tests.helpers.browser import CHROMIUM, brightness, browser, contrast

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

LAST = 12
NAME = "outputs/a_very_long_name_without_any_blank/" * 4 + "<b>&\"'"


@pytest.fixture(scope="module")
def pixels():
    torch.manual_seed(0)
    return torch.randint(0, 256, (3, LAST + 1, 3, 3, 5, 7), dtype=torch.uint8)


@pytest.fixture(scope="module")
def address(pixels, tmp_path_factory):
    frames = [Frame(3 * i, 90 * (LAST - i), 0.6, 0.8) for i in range(LAST + 1)]
    path = tmp_path_factory.mktemp("page") / "reverse_process.html"
    path.write_text(render(pixels, frames, facts={"checkpoint": NAME}, captions=[*captions_of(2, [0], [NAME]), "last"]))
    return path.as_uri()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def frame(tab):
    return int(tab.value("document.body.dataset.frame"))


def test_a_fragment_opens_a_frame(address, tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    found = subprocess.run([*command, f"{address}#frame=5"], capture_output=True, text=True, check=True, timeout=120)
    assert 'data-frame="5"' in found.stdout
    assert '<span id="t">630</span>' in found.stdout
    assert "step 15 of 36" in found.stdout


@pytest.mark.parametrize(
    ("fragment", "number"), [("", 0), ("#frame=3", 3), ("#frame=99", LAST), ("#frame=-1", 0), ("#x", 0)]
)
def test_fragments(tab, address, fragment, number):
    tab.open(address + fragment)
    assert frame(tab) == number
    tab.value("location.hash = '#frame=7'; new Promise(done => setTimeout(done, 50))")
    assert frame(tab) == 7


def test_keys(tab, address):
    tab.open(address)
    for key, number in [
        *[("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", LAST), ("ArrowRight", LAST)],
        *[("ArrowLeft", LAST - 1), ("Home", 0), ("ArrowLeft", 0)],
    ]:
        tab.press(key)
        assert frame(tab) == number, key
    assert tab.value("slider.getAttribute('aria-valuetext')") == "t = 1080, step 0 of 36"
    tab.value("slider.focus()")
    for key, number in [("ArrowRight", 1), ("ArrowUp", 2), ("ArrowDown", 1), ("End", LAST), ("Home", 0)]:
        tab.press(key)
        assert frame(tab) == number, key
        assert tab.value("slider.valueAsNumber") == number


def test_space_plays_to_the_end_and_pauses(tab, address):
    tab.open(address)
    tab.press(" ")
    assert tab.value("play.textContent") == "Pause"
    tab.value("new Promise(done => setTimeout(done, 350))")
    tab.press(" ")
    halfway = frame(tab)
    assert 0 < halfway < LAST
    tab.value("new Promise(done => setTimeout(done, 250))")
    assert frame(tab) == halfway
    tab.value("play.click()")
    tab.value("new Promise(done => { const look = () => timer === null ? done() : setTimeout(look, 20); look(); })")
    assert (frame(tab), tab.value("play.textContent")) == (LAST, "Play")
    tab.value("play.focus()")
    tab.press(" ", text=" ")  # one press on the button is one click, and begins again
    assert tab.value("play.textContent") == "Pause"
    assert frame(tab) < LAST
    tab.press("Home")
    assert (frame(tab), tab.value("play.textContent")) == (0, "Play")


def test_the_canvases_show_the_very_pixels(tab, address, pixels):
    for number in (0, 4, LAST):
        tab.open(f"{address}#frame={number}")
        size = tab.value("[...document.querySelectorAll('canvas')].map(c => [c.width, c.height])")
        assert size == [[7, 5]] * 9
        read = "[...c.getContext('2d').getImageData(0, 0, 7, 5).data]"
        shown = torch.tensor(tab.value(f"[...document.querySelectorAll('canvas')].map(c => {read})"))
        shown = shown.reshape(3, 3, 5, 7, 4)
        assert (shown[..., 3] == 255).all()
        assert torch.equal(shown[..., :3].permute(0, 1, 4, 2, 3).byte(), pixels[:, number])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_fits_its_window_in_both_color_schemes(tab, address, width, scheme):
    tab.show(width, scheme=scheme, mobile=width < 1000)
    tab.open(address)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("innerWidth") == width  # a phone would zoom out of a page that is too wide
    text, page = tab.value("[getComputedStyle(document.documentElement)].map(s => [s.color, s.backgroundColor])[0]")
    assert (brightness(text) > brightness(page)) == (scheme == "dark")
    assert contrast(text, page) > 7
    muted = tab.value("getComputedStyle(document.querySelector('dt')).color")
    assert contrast(muted, page) > 4.5
    button = tab.value("[getComputedStyle(play)].map(s => [s.color, s.backgroundColor])[0]")
    assert contrast(*button) > 4.5


def test_names_and_focus_are_there_for_those_who_see_little(tab, address):
    tab.show(1280)
    tab.open(address)
    labels = tab.value("[...document.querySelectorAll('canvas')].map(c => c.getAttribute('aria-label'))")
    assert labels[:3] == [f"{what}, sample 0: {NAME}" for what in ("x_t", "estimate of x_0", "estimate of the noise")]
    assert labels[-1] == "estimate of the noise, last"
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    named = {node["role"]["value"]: node["name"]["value"] for node in tree if not node["ignored"]}
    assert named["slider"] == "Timestep, from noise to image"
    assert named["button"] == "Play"
    for id in ("play", "slider"):
        tab.press("Tab")
        assert tab.value("document.activeElement.id") == id
        assert tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
