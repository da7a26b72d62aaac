"""What the pictures and curves of a run show: compared with closed forms, and with what is computed from its checkpoints."""

import csv
import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image, ImageSequence

from ddpm_lightning import runs, schedules
from ddpm_lightning.callbacks import LogSNRCurve, Neighbours, SampleGrid, Trajectory
from ddpm_lightning.callbacks.pictures.log_snr import noise_errors, times_at
from ddpm_lightning.callbacks.pictures.neighbours import nearest
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.images import cells, from_uint8
from ddpm_lightning.samplers import DDIM
from tests.conftest import TINY, config_of, script, train_config
from tests.gaussian import GaussianModel
from tests.runs.test_resuming import interrupted

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")

MEAN, STD = 0.2, 0.5


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.cosine(1000)], ids=["linear", "cosine"])
def test_the_error_of_the_noise_is_the_closed_forms(schedule, prediction):
    """Var[ε | x_t] = ᾱ_t σ²/(ᾱ_t σ² + 1 − ᾱ_t) for the perfect denoiser of N(mean, σ²), whatever it predicts."""
    denoiser = Denoiser(GaussianModel(schedule, prediction, mean=MEAN, std=STD), schedule, prediction=prediction)
    times = times_at(schedule, range(-10, 11, 2))
    x0 = MEAN + STD * torch.randn(1000, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    errors = noise_errors(denoiser, x0, None, range(1000), times=times, seed=0).mean(0)
    for (level, t), error in zip(times.items(), errors.tolist(), strict=True):
        a = float(schedule.alpha_bar[t])
        exact = a * STD**2 / (a * STD**2 + 1 - a)
        assert error == pytest.approx(exact, rel=5 * math.sqrt(2 / x0.numel())), level
    assert errors[0] < 1e-4
    assert errors[-1] > 0.99  # from noise to signal: a wrong end or scale would show


def test_the_error_is_the_squared_error_of_x0_by_the_snr():
    schedule = schedules.cosine(1000)
    denoiser = Denoiser(lambda x, t, y: torch.zeros_like(x), schedule, prediction="x0").double()
    x0 = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    times = times_at(schedule, range(-5, 6))
    errors = noise_errors(denoiser, x0, None, [0, 1, 2], times=times, seed=0)
    snr = denoiser.schedule.log_snr[list(times.values())].exp()
    torch.testing.assert_close(errors, snr * x0.square().mean((1, 2, 3))[:, None], rtol=1e-6, atol=0)


def test_the_noise_is_a_function_of_seed_image_and_level():
    schedule = schedules.linear(1000)
    denoiser = Denoiser(lambda x, t, y: torch.zeros_like(x), schedule)
    x0 = torch.zeros(4, 1, 4, 4)
    times = times_at(schedule, range(-10, 11))
    together = noise_errors(denoiser, x0, None, [5, 6, 7, 8], times=times, seed=0)
    alone = noise_errors(denoiser, x0[:1], None, [7], times={-3: times[-3]}, seed=0)
    assert together[2, list(times).index(-3)] == alone[0, 0]
    assert len(set(together.flatten().tolist())) == together.numel()
    assert (together != noise_errors(denoiser, x0, None, [5, 6, 7, 8], times=times, seed=1)).all()


def test_levels_that_a_schedule_does_not_reach_are_left_out():
    assert list(times_at(schedules.linear(1000), range(-10, 11))) == list(range(-10, 10))  # log SNR from 9.2 to −10.1
    zero = schedules.rescale_zero_terminal_snr(schedules.linear(1000))
    assert math.isinf(zero.log_snr[-1])
    found = times_at(zero, range(-10, 11))
    assert 1000 not in found.values()
    for schedule in (zero, schedules.cosine(1000)):
        for level, t in times_at(schedule, range(-10, 11)).items():
            distance = (schedule.log_snr[1:] - level).abs()
            assert abs(float(schedule.log_snr[t]) - level) == pytest.approx(float(distance.min()))
    coarse = times_at(schedules.linear(4, beta_end=0.9), range(-10, 11))
    assert len(set(coarse.values())) == len(coarse) <= 4


def errors_of_the_last(folder, count):
    """By level, what the averaged weights of the newest checkpoint give."""
    denoiser = runs.load_denoiser(folder)
    data = instantiate(runs.load_checkpoint(folder)["config"]["data"])
    data.setup()
    first = next(iter(data.batches("validation", count)))
    times = times_at(denoiser.schedule, range(-10, 11))
    with torch.no_grad():
        errors = noise_errors(denoiser, from_uint8(first.x0), None, first.ids.tolist(), times=times, seed=0).mean(0)
    return {f"mse_at_log_snr/{level:+03d}": error for level, error in zip(times, errors.tolist(), strict=True)}


def logged(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if row["mse_at_log_snr/+00"]]
    return row["step"], {key: float(value) for key, value in row.items() if key.startswith("mse_at") and value}


def test_the_curve_is_the_averaged_weights(tiny_run):
    step, found = logged(tiny_run)
    assert step == "4"
    assert {"mse_at_log_snr/-10", "mse_at_log_snr/+00", "mse_at_log_snr/+05"} <= found.keys()
    assert found == pytest.approx(errors_of_the_last(tiny_run, 4), rel=1e-5)
    with Image.open(tiny_run / "samples" / "log_snr_0000004.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


@pytest.mark.slow
def test_two_ranks_share_the_curve(tmp_path):
    done = script("train.py", *TINY, "callbacks.log_snr.num_images=5", "trainer=ddp_cpu", "trainer.devices=2",
                  "logger=none", "hydra.run.dir=run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert logged(tmp_path / "run")[1] == pytest.approx(errors_of_the_last(tmp_path / "run", 5), rel=1e-5)


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


def test_the_animation_ends_as_the_strip_does_and_holds(tiny_run):
    with Image.open(tiny_run / "samples" / "trajectory_0000004.gif") as movie:
        frames = [(np.asarray(f.convert("L")), f.info["duration"]) for f in ImageSequence.Iterator(movie)]
    assert [duration for _, duration in frames] == [100] * 4 + [2000]  # the noise and four steps
    with Image.open(tiny_run / "samples" / "trajectory_0000004.png") as picture:
        strip = cells(torch.from_numpy(np.asarray(picture.convert("L")).copy())[None], (8, 8))[:, 0, ::4, ::4]
    strip = strip.reshape(2, 2, 3, 8, 8)  # sample, x_t or x̂_0, column
    for frame, column in ((0, 0), (-1, 2)):
        shown = cells(torch.from_numpy(frames[frame][0].copy())[None], (8, 8), cell=64)[:, 0, ::8, ::8]
        assert torch.equal(shown.reshape(2, 2, 8, 8), strip[:, :, column])


def test_tensorboard_has_the_same_scalars_pictures_and_the_animation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs.train(train_config(tmp_path, "logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for key in rows[0].keys() - {"step"}:
        ours = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
        assert [(e.step, e.value) for e in events.Scalars(key)] == [(s, pytest.approx(v, rel=1e-6)) for s, v in ours]
    kinds = ("grid", "raw_grid", "trajectory", "trajectory_animation", "neighbours", "log_snr", "schedule")
    assert {f"samples/{kind}" for kind in kinds} <= set(tags["images"])
    animations = events.Images("samples/trajectory_animation")
    assert [event.step for event in animations] == [2, 4]
    assert animations[1].encoded_image_string == (tmp_path / "samples" / "trajectory_0000004.gif").read_bytes()


@pytest.mark.parametrize("at_a_time", [2, 7, 1000])
def test_a_planted_image_is_the_nearest(at_a_time):
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = images[[33, 4, 20]].clone()
    samples[0, 0, 0, 0] ^= 3  # nearly a copy
    samples[2] = samples[2].flip(-1)  # a mirrored one
    found = nearest(samples, images.split(at_a_time), 5)
    distances = torch.minimum(
        *((x[:, None].double() - images.double()).square().sum((2, 3, 4)) for x in (samples, samples.flip(-1)))
    )
    assert torch.equal(found, images[distances.argsort(1)[:, :5]])
    assert torch.equal(found[:, 0], images[[33, 4, 20]])
    assert nearest(samples, images[:3].split(2), 5).shape == (3, 3, 1, 8, 8)


def test_a_sample_that_copies_a_training_image_stands_beside_it(tiny_run):
    data = instantiate(runs.load_checkpoint(tiny_run)["config"]["data"])
    data.setup()
    images = data.split("train").images
    with Image.open(tiny_run / "samples" / "neighbours_0000004.png") as picture:
        shown = cells(torch.from_numpy(np.asarray(picture).copy())[None, ..., 0] if picture.mode == "RGB" else
                      torch.from_numpy(np.asarray(picture).copy())[None], (8, 8))[:, :, ::4, ::4]  # fmt: skip
    for row in shown.reshape(2, 3, 1, 8, 8):
        assert torch.equal(row[1:], nearest(row[:1], [images], 2)[0])


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (LogSNRCurve, {"num_images": 0}),
        (LogSNRCurve, {"batch_size": 0}),
        (LogSNRCurve, {"seed": -1}),
        (LogSNRCurve, {"every_n_steps": 0}),
        (lambda folder, **kw: Neighbours(DDIM(2), (1, 8, 8), folder, num_samples=1, **kw), {"num_neighbours": 0}),
        (lambda folder, **kw: Trajectory(DDIM(2), (1, 8, 8), folder, num_samples=1, **kw), {"num_frames": 1}),
        (lambda folder, **kw: SampleGrid(DDIM(2), (1, 8, 8), folder, num_samples=1, **kw), {"weights": "best"}),
    ],
)
def test_bad_settings_are_refused(make, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make("folder", **options)
