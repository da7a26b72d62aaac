"""What the pictures and curves of a run show: compared with closed forms, and with what is computed from its checkpoints."""

import csv
from itertools import pairwise

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image, ImageSequence

from ddpm_lightning import runs
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.metrics.distances import nearest
from ddpm_lightning.sheets import Layout
from tests.helpers.configs import WHOLE, config_of, train_config
from tests.helpers.log_snr import errors_of_the_last, logged
from tests.helpers.resuming import interrupted
from tests.helpers.viewer import data_of, pixels_in

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def test_the_curve_is_the_averaged_weights(tiny_run):
    step, found = logged(tiny_run)
    assert step == "4"
    assert {"mse_at_log_snr/-10", "mse_at_log_snr/+00", "mse_at_log_snr/+05"} <= found.keys()
    assert found == pytest.approx(errors_of_the_last(tiny_run, 4), rel=1e-5)
    with Image.open(tiny_run / "samples" / "log_snr_0000004.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_run_that_goes_on_draws_what_is_missing_and_the_schedule_not_again(tiny_run, tmp_path):
    cut = interrupted(tiny_run, tmp_path / "cut", 2)
    for path in (cut / "samples").iterdir():
        path.unlink()
    runs.train(config_of(f"resume={cut}"))
    assert logged(cut) == logged(tiny_run)
    names = {path.name for path in (cut / "samples").iterdir()}
    assert names == {path.name for path in (tiny_run / "samples").glob("*_0000004.*")}
    assert (tiny_run / "samples" / "schedule.png").exists()
    for name in names - {"log_snr_0000004.png"}:
        assert (cut / "samples" / name).read_bytes() == (tiny_run / "samples" / name).read_bytes(), name


def test_the_grid_of_the_raw_weights_is_what_sample_draws_with_them(tiny_run, tmp_path):
    grid = tiny_run / "samples" / "raw_grid_0000004.png"
    options = [f"ckpt_path={tiny_run}", "sampler=ddim", "sampler.num_steps=4", "num_samples=4", f"out_dir={tmp_path}"]
    runs.sample(config_of(*options, "weights=raw", name="sample"))
    with Image.open(grid) as ours, Image.open(tmp_path / "grid.png") as theirs:
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert grid.read_bytes() != (tiny_run / "samples" / "grid_0000004.png").read_bytes()


def opened(path):
    """The images of a sheet (N, C, H, W), and the facts in its file."""
    with Image.open(path) as picture:
        pixels, facts = torch.from_numpy(np.array(picture)).permute(2, 0, 1), picture.text
    return Layout.read(facts).images(pixels)[:, :1], facts


def test_a_file_says_how_it_was_made(tiny_run):
    _, facts = opened(tiny_run / "samples" / "raw_grid_0000002.png")
    del facts["layout"]
    assert facts == {
        "training step": "2",
        "weights": "raw",
        "sampler": "ddim",
        "steps": "4 of T = 1,000",
        "seed": "0",
        "schedule": "linear",
        "prediction": "epsilon",
    }
    with Image.open(tiny_run / "samples" / "log_snr_0000004.png") as picture:
        assert picture.text == {"training step": "4", "weights": "ema", "seed": "0", "schedule": "linear"}


def test_the_strip_has_each_x_t_beside_the_estimate_that_is_made_from_it(tiny_run):
    """From noise on, which is no gray square: it is compared with the denoiser of the checkpoint."""
    images, facts = opened(tiny_run / "samples" / "trajectory_0000004.png")
    layout, denoiser = Layout.read(facts), runs.load_denoiser(tiny_run)
    assert [len(layout.tops), len(layout.lefts)] == [4, 3]
    first, second, third, fourth = layout.tops
    assert second - first == fourth - third < third - second  # the two rows of a sample belong together
    strip = images.reshape(2, 2, 3, 1, 8, 8)  # sample, x_t or the estimate, column
    noise = torch.cat([SeededNoise(0, [i]).draw((1, 8, 8)) for i in range(2)])
    assert torch.equal(strip[:, 0, 0], to_uint8(noise))
    with torch.no_grad():
        estimate = denoiser(noise, torch.tensor(1000)).clamp(-1, 1)
    assert (strip[:, 1, 0].int() - to_uint8(estimate).int()).abs().max() <= 1
    assert torch.equal(strip[:, 0, 2], strip[:, 1, 2])  # x_0 is its own


def test_the_animation_ends_as_the_strip_does_and_holds(tiny_run):
    with Image.open(tiny_run / "samples" / "trajectory_0000004.gif") as movie:
        frames = [(np.array(f.convert("L")), f.info["duration"]) for f in ImageSequence.Iterator(movie)]
    assert [duration for _, duration in frames] == [100] * 4 + [2000]  # the noise and four steps
    strip = opened(tiny_run / "samples" / "trajectory_0000004.png")[0].reshape(2, 2, 3, 8, 8)
    for frame, column in ((0, 0), (-1, 2)):
        shown = torch.from_numpy(frames[frame][0])[-2 * 82 :, -2 * 82 :]  # two rows and columns, 10 times as large
        for sample in range(2):
            for kind in range(2):
                cell = shown[82 * sample : 82 * sample + 80 : 10, 82 * kind : 82 * kind + 80 : 10]
                assert torch.equal(cell, strip[sample, kind, column])


def test_the_forward_process_is_that_of_the_schedule(tiny_run):
    """Real images in the first column, and √ᾱ_t x_0 + √(1−ᾱ_t) ε with one ε for each of them in the others."""
    images, facts = opened(tiny_run / "samples" / "forward_strip.png")
    assert facts.items() >= {"seed": "0", "schedule": "linear"}.items()
    strip = images.reshape(4, 11, 1, 8, 8)
    data = instantiate(runs.load_checkpoint(tiny_run)["config"]["data"])
    data.setup()
    x0 = data.split("validation").images[:4]
    assert torch.equal(strip[:, 0], x0)
    noise = torch.cat([SeededNoise(0, [i]).draw((1, 8, 8)) for i in range(4)]).double()
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for column, t in ((3, 300), (10, 1000)):
        a = alpha_bar[t - 1]
        x = a.sqrt() * (x0.double() / 127.5 - 1) + (1 - a).sqrt() * noise
        assert (strip[:, column].int() - to_uint8(x).int()).abs().max() <= 1


def test_training_ends_with_a_page_of_the_reverse_process_as_sample_writes_it(tiny_run, tmp_path):
    (page,) = (tiny_run / "samples").glob("*.html")
    assert page.name == "reverse_process_0000004.html"
    html = page.read_text()
    options = [f"ckpt_path={tiny_run}", "sampler=ddim", "sampler.num_steps=4", "num_samples=2", f"out_dir={tmp_path}"]
    runs.sample(config_of(*options, "format=html", name="sample"))
    assert torch.equal(pixels_in(html), pixels_in((tmp_path / "reverse_process.html").read_text()))
    for name, fact in [("training step", "4"), ("weights", "ema"), ("sampler", "ddim"), ("steps", "4 of T = 1,000")]:
        assert f"<dt>{name}</dt><dd>{fact}</dd>" in html


def test_a_page_is_written_where_it_is_wanted(tmp_path):
    runs.train(train_config(tmp_path / "none", "callbacks.trajectory.viewer_frames=null"))
    assert not list((tmp_path / "none").rglob("*.html"))
    few = ["callbacks.trajectory.viewer_frames=3", "data.num_classes=10", "callbacks.trajectory.every_n_steps=null"]
    runs.train(train_config(tmp_path / "few", *few))
    html = (tmp_path / "few" / "samples" / "reverse_process_0000004.html").read_text()
    assert [frame[1] for frame in data_of(html)["frames"]] == [1000, 500, 0]
    assert [image["caption"] for image in data_of(html)["images"]] == ["sample 0: label 0", "sample 1: label 1"]
    assert "<dt>guidance scale</dt><dd>1</dd>" in html


def test_tensorboard_has_the_same_scalars_pictures_and_the_animation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs.train(train_config(tmp_path, "logger=tensorboard", tiny=WHOLE))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for key in rows[0].keys() - {"step"}:
        ours = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
        assert [(e.step, e.value) for e in events.Scalars(key)] == [(s, pytest.approx(v, rel=1e-6)) for s, v in ours]
    kinds = (
        "grid",
        "raw_grid",
        "trajectory",
        "trajectory_animation",
        "neighbors",
        "log_snr",
        "schedule",
        "forward_strip",
    )
    assert {f"samples/{kind}" for kind in kinds} <= set(tags["images"])
    animations = events.Images("samples/trajectory_animation")
    assert [event.step for event in animations] == [2, 4]
    assert animations[1].encoded_image_string == (tmp_path / "samples" / "trajectory_0000004.gif").read_bytes()


def test_a_sample_that_copies_a_training_image_stands_beside_it(tiny_run):
    data = instantiate(runs.load_checkpoint(tiny_run)["config"]["data"])
    data.setup()
    images = data.split("train").images
    shown, facts = opened(tiny_run / "samples" / "neighbors_0000004.png")
    for row in shown.reshape(2, 3, 1, 8, 8):
        assert torch.equal(row[1:], images[nearest(row[:1], images, count=2, mirrored=True)[1][0]])
    layout = Layout.read(facts)
    gaps = [right - left - layout.width for left, right in pairwise(layout.lefts)]
    assert gaps == [10, 2]  # the sample stands apart
