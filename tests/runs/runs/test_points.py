"""Points in the plane, all the way: trained, resumed, drawn, and refused where images are meant."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.data.points import two_moons
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.bits import measure_bits_per_dim
from tests.helpers.configs import TINY_POINTS, config_of, train_config

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def points_config(folder, *overrides):
    return train_config(folder, *overrides, tiny=TINY_POINTS)


def draw(run, out, *overrides):
    options = [f"ckpt_path={run}", "sampler=ddim", "sampler.num_steps=4", "num_samples=6", f"out_dir={out}"]
    return runs.sample(config_of(*options, *overrides, name="sample"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points") / "run"
    runs.train(points_config(folder, "data.num_classes=2"))
    return folder


def test_pictures_are_drawn_and_bits_are_not_measured(run):
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == [
        "forward_strip.png",
        "log_snr_0000004.png",
        "scatter_0000002.png",
        "scatter_0000004.png",
        "schedule.png",
    ]
    with Image.open(run / "samples" / "scatter_0000004.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 20  # dots of two colours, not an empty page
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/loss"]] == ["2", "4"]
    assert "val/bits_per_dim" not in rows[0]
    assert 0 < float(rows[-1]["mse_at_log_snr/+00"]) < 2


def test_a_run_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    for name in ("last.ckpt", "best.ckpt", "step_0000004.ckpt"):
        (folder / "checkpoints" / name).unlink()
    picture = folder / "samples" / "scatter_0000004.png"
    picture.unlink()
    runs.train(config_of(f"resume={folder}"))
    whole, resumed = (torch.load(at / "checkpoints" / "last.ckpt", weights_only=True) for at in (run, folder))
    for key in ("state_dict", "ema_state_dict"):
        for name, value in whole[key].items():
            assert torch.equal(value, resumed[key][name]), name
    assert picture.read_bytes() == (run / "samples" / picture.name).read_bytes()


def test_points_have_no_page_of_the_reverse_process(run, tmp_path):
    with pytest.raises(UserError, match="format must be grid, npz or npy, got 'html': the model samples points"):
        draw(run, tmp_path / "out", "format=html")
    assert not list(run.rglob("*.html"))


def test_samples_are_points_and_their_scatter_plot(run, tmp_path):
    found = np.load(draw(run, tmp_path / "npz", "format=npz", "sampler.clip=null") / "samples.npz")
    assert (found["points"].shape, found["points"].dtype) == ((6, 2), np.float32)
    assert found["labels"].tolist() == [0, 1, 0, 1, 0, 1]
    assert len(np.unique(found["points"])) == 12  # neither rounded nor clipped to the grid of images
    parts = np.load(draw(run, tmp_path / "parts", "format=npz", "sampler.clip=null", "batch_size=4") / "samples.npz")
    np.testing.assert_allclose(found["points"], parts["points"], rtol=1e-4)
    guided = np.load(
        draw(run, tmp_path / "guided", "format=npz", "sampler.clip=null", "guidance_scale=5") / "samples.npz"
    )
    assert np.abs(found["points"] - guided["points"]).max() > 1e-3
    with Image.open(draw(run, tmp_path / "grid") / "scatter.png") as picture:
        assert (picture.width, picture.height) == (1000, 1050)  # square, and a line of text


def test_what_is_for_images_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="format must be grid, npz or npy, got 'png'"):
        draw(run, tmp_path / "png", "format=png")
    assert not (tmp_path / "png").exists()
    with pytest.raises(UserError, match="trained on points, and only images can be evaluated"):
        measure_bits_per_dim(run)


@pytest.mark.parametrize(
    ("tiny", "overrides", "message"),
    [
        (
            (),
            ["data=two_moons", "model=mlp"],
            r"callbacks.sample_grid is for images, .* choose callbacks=points",
        ),
        ((), ["model=mlp"], r"the model MLP is for points, .* are images .*: choose model=unet_tiny"),
        ((), ["callbacks=points"], r"callbacks.scatter is for points, .* choose callbacks=default"),
        (TINY_POINTS, ["model=dit_tiny"], r"the model DiT is for images, .* are points .*: choose model=mlp"),
        (TINY_POINTS, ["callbacks.scatter.num_columns=1"], "num_columns must be an integer from 2 to 20, got 1"),
        (TINY_POINTS, ["data.dataset.noise=-1"], r"data.dataset.noise must be a number in \[0, 1\], got -1"),
        (
            TINY_POINTS,
            ["data=digits", "data.channels=2", "data.image_size=[1,1]", "data.batch_size=16"],
            "data.channels must be 1 or 3, got 2: the dataset holds images",
        ),
    ],
)
def test_no_training_begins_with_what_does_not_go_together(tmp_path, tiny, overrides, message):
    anew = tuple(
        o.split("=")[0] for o in overrides if o in ("model=dit_tiny", "data=digits")
    )  # with none of its settings
    given = [o for o in tiny if not o.startswith(anew)]
    with pytest.raises(UserError, match=message):
        runs.train(train_config(tmp_path / "run", *overrides, tiny=given))
    assert not any(tmp_path.iterdir())


def test_a_short_training_brings_noise_to_the_moons(tmp_path):
    options = ["data.dataset.num_points=2000", "model.hidden_size=64", "data.batch_size=256", "prediction=v"]
    steps = ["trainer.max_steps=400", "trainer.val_check_interval=400", "callbacks.checkpoint.every_n_train_steps=400"]
    quiet = [
        "schedule=cosine",
        "callbacks.scatter=null",
        "trainer.log_every_n_steps=100",
        "lr_scheduler.total_iters=50",
    ]
    runs.train(points_config(tmp_path / "run", *options, *steps, *quiet))
    sampled = draw(tmp_path / "run", tmp_path / "out", "sampler.num_steps=25", "num_samples=500", "format=npz")
    points = torch.from_numpy(np.load(sampled / "samples.npz")["points"])
    moons = two_moons(5000, 0.0).images.flatten(1) * 1.5 / 1.7  # as far apart as those with noise

    def off(x):
        return torch.cdist(x, moons).min(1).values.mean()

    real = off(two_moons(500).images.flatten(1))
    noise = off(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
    print(f"off the moons: samples {off(points):.3f}, real points {real:.3f}, noise {noise:.3f}")
    assert off(points) < noise / 5
    centre = moons[:, 0].mean()
    assert 0.35 < (points[:, 0] < centre).float().mean() < 0.65  # both of them
