"""Labels in whole runs: trained with, asked for in sampling, refused where there are none."""

import csv

import numpy as np
import pytest
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.sheets import Layout
from tests.helpers.configs import config_of, train_config


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "outputs" / "run"
    runs.train(
        train_config(folder, "data.num_classes=10", "guidance_scale=2.0", "callbacks.sample_grid.num_samples=20")
    )
    return folder


def draw(run, out, *overrides):
    options = ["sampler=ddim", "sampler.num_steps=4", f"ckpt_path={run}/checkpoints/last.ckpt", f"out_dir={out}"]
    return runs.sample(config_of(*options, *overrides, name="sample"))


def test_a_run_with_labels_draws_a_row_for_each(labelled_run, tmp_path):
    """And the grid is the one that sample.py draws."""
    with Image.open(labelled_run / "samples" / "grid_0000004.png") as picture:
        ours, layout = np.asarray(picture), Layout.read(picture.text)
    assert (layout.factor, len(layout.tops), len(layout.lefts)) == (12, 10, 2)  # 960 pixels for ten rows of 8
    assert ours.shape[0] == 10 * (12 * 8 + 2) + 2
    assert layout.order == [i for label in range(10) for i in (label, 10 + label)]
    out = draw(labelled_run, tmp_path / "same", "num_samples=20", "guidance_scale=2.0")
    assert np.array_equal(np.asarray(Image.open(out / "grid.png")), ours)
    out = draw(labelled_run, tmp_path / "other", "num_samples=20")
    assert not np.array_equal(np.asarray(Image.open(out / "grid.png")), ours)


def test_labels_are_written_beside_the_images(labelled_run, tmp_path):
    out = draw(labelled_run, tmp_path / "npz", "labels=[7,0,2]", "num_samples=5", "format=npz", "batch_size=2")
    assert np.load(out / "samples.npz")["labels"].tolist() == [7, 0, 2, 7, 0]
    out = draw(labelled_run, tmp_path / "png", "labels=[7,0,2]", "num_samples=4", "format=png")
    with (out / "labels.csv").open(newline="") as file:
        rows = [(row["file"], row["label"]) for row in csv.DictReader(file)]
    assert rows == [("00000.png", "7"), ("00001.png", "0"), ("00002.png", "2"), ("00003.png", "7")]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("labels=[10]", "labels\\[0] must be an integer from 0 to 9, got 10"),
        ("labels=[-1]", "labels\\[0] must be an integer from 0 to 9, got -1"),
        ("labels=[]", "labels must be a list of at least one label, or null for all, got \\[\\]"),
        ("labels=[one]", "labels\\[0] must be an integer from 0 to 9, got 'one'"),
        ("guidance_scale=-1", "guidance_scale must be a non-negative number, got -1"),
        ("guidance_scale=much", "guidance_scale must be a number, got 'much'"),
        ("edit=invert", "labels must name the label of each input image in turn, got null"),
    ],
)
def test_labels_that_cannot_be(labelled_run, tmp_path, override, says):
    with pytest.raises(UserError, match=says):
        draw(labelled_run, tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_a_model_without_labels_takes_none(tiny_run, tmp_path):
    for override, says in (
        ("labels=[1]", r"labels must be null, got \[1\]: the model was trained without labels"),
        ("guidance_scale=2", "guidance_scale must be 1 for a model trained without labels, got 2"),
    ):
        with pytest.raises(UserError, match=says):
            draw(tiny_run, tmp_path / "out", override)


def test_the_likelihood_uses_the_labels(labelled_run):
    from ddpm_lightning.evaluation.bits import measure_bits_per_dim

    out = measure_bits_per_dim(labelled_run / "checkpoints" / "last.ckpt", num_images=2)
    assert (out / "bits_per_dim.json").exists()
