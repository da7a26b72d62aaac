"""sample.py edit=..., from image files to image files, with the perfect denoiser of Gaussian data in place of a checkpoint's."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import schedules
from ddpm_lightning.data.datasets import digits
from ddpm_lightning.denoiser import Guidance
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.editing import edit_images
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.process_group import ALONE
from ddpm_lightning.runs.sampling_setup import SamplingSetup
from ddpm_lightning.runs.schema import Sampling, check_types
from ddpm_lightning.sheets import Layout
from tests.helpers.configs import config_of
from tests.helpers.samplers import MEAN, STD, gaussian


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Two digits, one of them four times as large, and masks."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("images", "masks", "one"):
        (folder / name).mkdir()
    images = digits().images[:2, 0].numpy()
    large = Image.fromarray(images[1].repeat(4, 0).repeat(4, 1))
    large.save(folder / "images" / "b.png")
    Image.fromarray(images[0]).save(folder / "images" / "a.png")
    half = np.zeros((8, 8), np.uint8)
    half[:, 4:] = 255
    Image.fromarray(half).save(folder / "half.png")
    Image.fromarray(half).save(folder / "masks" / "a.png")
    Image.fromarray(half.T.repeat(4, 0).repeat(4, 1)).save(folder / "masks" / "b.png")
    Image.fromarray(half).save(folder / "one" / "a.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "black.png")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "tall.png")
    (folder / "text.png").write_text("no image")
    return folder


def setup_of(config, tmp_path):
    denoiser = gaussian(schedules.linear(1000), "epsilon")
    data = {"channels": 1, "image_size": [8, 8]}
    sampler = build("sampler", config.sampler)
    cpu = torch.device("cpu")
    path, guidance = tmp_path / "run" / "last.ckpt", Guidance(1.0)
    times = sampler.times(1000)
    return SamplingSetup(path, guidance.of(denoiser), guidance, None, sampler, None, None, data, cpu, {}, times)


def edit(out, choice, *overrides):
    config = config_of(f"edit={choice}", "sampler.num_steps=4", f"out_dir={out}", *overrides, name="sample")
    check_types(config, Sampling)
    return edit_images(config, setup_of(config, out.parent), ALONE)


def read(folder):
    """The results by name."""
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.glob("0*.png")}


def shown(folder):
    """The images of the figure, row by row."""
    with Image.open(folder / "edit.png") as figure:
        layout = Layout.read(figure.text)
        return layout.images(torch.from_numpy(np.array(figure)).permute(2, 0, 1))[:, 0].numpy()


@pytest.mark.parametrize("method", ["repaint", "dps", "pigdm", "mmps"])
def test_inpainting_keeps_what_is_known(given, tmp_path, method):
    options = [f"edit.input={given}/images", f"edit/method={method}", "edit.results=3"]
    found = read(edit(tmp_path / "out", "inpaint", *options, f"edit.mask={given}/masks"))
    assert sorted(found) == [f"00{i}_{name}_00{j}.png" for i, name in enumerate("ab") for j in range(3)]
    images = digits().images[:2, 0].numpy()
    for j in range(3):
        assert np.array_equal(found[f"000_a_00{j}.png"][:, :4], images[0][:, :4])
        assert np.abs(found[f"001_b_00{j}.png"][:4] - images[1][:4]).max() <= 60  # resized there and back
    assert np.abs(found["000_a_000.png"] - found["000_a_001.png"]).max() > 20
    figure = shown(tmp_path / "out")
    assert len(figure) == 2 * 5  # input, known and three results
    assert np.array_equal(figure[0], images[0])
    assert np.abs(figure[1][:, 4:].astype(int) - 127.5).max() < 1
    assert np.array_equal(figure[4], found["000_a_002.png"])


def test_results_do_not_depend_on_the_batch_size_and_a_box_is_a_mask(given, tmp_path):
    options = [f"edit.input={given}/images/a.png", "edit.method.jump=1", "edit.method.repeats=2"]
    by_mask = read(edit(tmp_path / "mask", "inpaint", *options, f"edit.mask={given}/half.png"))
    by_box = read(edit(tmp_path / "box", "inpaint", *options, "edit.box=[0,4,8,4]", "batch_size=3"))
    assert by_mask.keys() == by_box.keys()
    assert max(np.abs(by_mask[name] - by_box[name]).max() for name in by_mask) <= 1  # another batch size


def test_small_images_are_enlarged_and_blurred_ones_sharpened(given, tmp_path):
    small = tmp_path / "small.png"
    Image.fromarray(np.full((4, 4), 128, np.uint8)).save(small)
    found = read(edit(tmp_path / "out", "super_resolution", f"edit.input={small}", "edit.results=2"))
    assert [image.shape for image in found.values()] == [(8, 8)] * 2
    assert len(shown(tmp_path / "out")) == 3
    options = [f"edit.input={given}/images", "edit.degrade=true", "edit.results=1"]
    assert len(read(edit(tmp_path / "blurred", "deblur", *options))) == 2
    assert len(shown(tmp_path / "blurred")) == 2 * 3


def test_no_strength_changes_nothing_and_all_of_it_does(given, tmp_path):
    options = [f"edit.input={given}/images/a.png", "edit.results=2"]
    same = read(edit(tmp_path / "same", "image_to_image", *options, "edit.strength=0"))
    original = np.asarray(Image.open(given / "images" / "a.png"))
    assert all(np.array_equal(image, original) for image in same.values())
    other = read(edit(tmp_path / "other", "image_to_image", *options, "edit.strength=1"))
    assert all(np.abs(image - original).max() > 20 for image in other.values())


def test_inversion_writes_the_noise_and_returns_the_image(given, tmp_path):
    """A perfect denoiser of N(μ, σ²) turns v into the noise (v − μ)/σ; a pixel is at most 1/2 of 255 off when it returns."""
    out = edit(tmp_path / "out", "invert", f"edit.input={given}/images", "sampler.num_steps=200", "sampler.clip=null")
    assert sorted(os.listdir(out)) == ["000_a_000.png", "001_b_000.png", "edit.png", "noise.npy"]
    noise, image = np.load(out / "noise.npy"), np.asarray(Image.open(given / "images" / "a.png")).astype(int)
    assert (noise.shape, noise.dtype) == ((2, 1, 8, 8), np.float32)
    assert np.abs(noise[0, 0] - (image / 127.5 - 1 - MEAN) / STD).max() < 0.05
    assert np.abs(read(out)["000_a_000.png"] - image).max() <= 1


def test_interpolation_begins_and_ends_with_plain_samples(given, tmp_path):
    found = read(edit(tmp_path / "out", "interpolate", "edit.results=3", "edit.ends=3"))
    assert sorted(found) == [f"00{i}_noise{i}_00{j}.png" for i in range(2) for j in range(3)]
    setup = setup_of(config_of("sampler=dpmpp_2m", "sampler.num_steps=4", name="sample"), tmp_path)
    samples = setup.samples(0, range(3), lambda: None)[:, 0].numpy().astype(int)
    for name, i in {"000_noise0_000": 0, "000_noise0_002": 1, "001_noise1_000": 1, "001_noise1_002": 2}.items():
        assert np.abs(found[f"{name}.png"] - samples[i]).max() <= 1
    between = edit(tmp_path / "between", "interpolate", f"edit.input={given}/images", "edit.results=4")
    assert len(read(between)) == 4


def test_a_folder_with_results_is_left_alone(given, tmp_path):
    options = [f"edit.input={given}/images/a.png", "edit.strength=0"]
    edit(tmp_path / "out", "image_to_image", *options)
    with pytest.raises(UserError, match=r"already holds edits, such as .*overwrite=true"):
        edit(tmp_path / "out", "image_to_image", *options)
    edit(tmp_path / "out", "image_to_image", *options, "overwrite=true", "edit.results=1")
    assert sorted(os.listdir(tmp_path / "out")) == ["000_a_000.png", "edit.png"]


INPUT = "edit.input={given}/images/a.png"


@pytest.mark.parametrize(
    ("choice", "options", "message"),
    [
        ("inpaint", ["edit.box=[0,0,4,4]"], "edit.input must be an image file or a folder of images, got null"),
        (
            "inpaint",
            [INPUT],
            "edit.mask or edit.box must be set, but not both, got edit.mask=null, edit.box=null: give",
        ),
        ("inpaint", [INPUT, "edit.mask=m.png", "edit.box=[0,0,4,4]"], r"got edit.mask=m.png, edit.box=\[0, 0, 4, 4\]"),
        ("inpaint", [INPUT, "edit.box=[0,0,4,9]"], "edit.box must be .* within 8 x 8 pixels, got"),
        ("inpaint", [INPUT, "edit.mask={given}/tall.png"], "tall.png must be as large as .*a.png, .* got 8 x 9"),
        ("inpaint", [INPUT, "edit.mask={given}/black.png"], "black.png must be white where the image is filled in"),
        ("inpaint", [INPUT, "edit.mask={given}/text.png"], "text.png cannot be read"),
        ("inpaint", [INPUT, "edit.mask={given}/no.png"], "edit.mask must be .*no.png, which does not exist"),
        (
            "inpaint",
            ["edit.input={given}/images", "edit.mask={given}/one"],
            "must hold a mask for each .* none named b",
        ),
        (
            "inpaint",
            [INPUT, "edit.box=[0,0,4,4]", "edit.noise=0.1"],
            "edit.noise must be 0 for edit/method=repaint, got 0.1",
        ),
        ("inpaint", [INPUT, "edit.box=[0,0,4,4]", "edit.method.jump=0"], "edit.method.jump must be a positive integer"),
        ("deblur", [INPUT, "edit.std=0"], "edit.std must be a positive number, got 0"),
        ("super_resolution", [INPUT, "edit.factor=3"], "edit.factor must divide all sides of the images"),
        ("image_to_image", [INPUT, "edit.strength=1.5"], r"edit.strength must be a number in \[0, 1\], got 1.5"),
        ("image_to_image", [INPUT, "edit.results=0"], "edit.results must be an integer from 1 to 1000, got 0"),
        ("image_to_image", ["edit.input={given}/nowhere"], "edit.input must be .*nowhere, which does not exist"),
        ("image_to_image", ["edit.input={given}/text.png"], ".*text.png must be an image file, but cannot be read"),
        ("image_to_image", [INPUT, "format=npz"], "format must be grid, got 'npz': edits are written as image files"),
        ("invert", [INPUT, "sampler=ancestral"], "the sampler must be one without noise to invert images"),
        ("interpolate", [INPUT], "the number of images in edit.input must be an integer of at least 2, got 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(given, tmp_path, choice, options, message):
    with pytest.raises(UserError, match=message):
        edit(tmp_path / "out", choice, *(option.format(given=given) for option in options))
    assert not (tmp_path / "out").exists()
