"""Signals, latents, videos and 16-bit images, and conditions other than labels: trained, sampled and saved as what they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.data.conditions import load_condition
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.pipeline import evaluate
from ddpm_lightning.sheets import Layout
from tests.helpers.configs import TINY, config_of, train_config

RNG = np.random.default_rng(0)

KINDS = {
    "signals": (RNG.uniform(-3, 7, (12, 3, 12)), ["data.value_range=[-3,7]"]),
    "latents": (
        RNG.normal(size=(12, 4, 4, 4)).astype(np.float32),
        ["data.value_range=[-5,5]", "sampler.clip=null", "prediction=v"],
    ),
    "videos": (RNG.integers(0, 256, (12, 3, 3, 4, 6)).astype(np.uint8), ["data.dtype=uint8"]),
    "16-bit images": (
        RNG.integers(0, 4096, (12, 1, 6, 6)).astype(np.uint16),
        ["data.dtype=uint16", "data.value_range=[0,4095]"],
    ),
}


def draw(run, out, *overrides):
    tiny = ["sampler=ddim", "sampler.num_steps=3", "num_samples=5", f"out_dir={out}"]
    return runs.sample(config_of(f"ckpt_path={run}", *tiny, *overrides, name="sample"))


QUICK = [
    f"callbacks.{name}=null"
    for name in ("raw_grid", "trajectory", "neighbors", "log_snr", "schedule_curves", "forward_strip")
]


def train(folder, *overrides, quick=True):
    runs.train(train_config(folder, "model.channel_multipliers=[1,2]", *(QUICK if quick else []), *overrides))
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_data_come_back_in_the_range_and_type_they_had(tmp_path, name):
    values, overrides = KINDS[name]
    np.save(tmp_path / "data.npy", values)
    channels, *size = values.shape[1:]
    form = [f"data.channels={channels}", f"data.image_size={size}".replace(" ", "")]
    run = train(tmp_path / "run", "data=arrays", f"data.root={tmp_path / 'data.npy'}", *form, *overrides, quick=False)
    with Image.open(next((run / "samples").glob("grid_*.png"))) as sheet:
        assert np.asarray(sheet).std() > 10
    clip = ["sampler.clip=null"] if name == "latents" else []
    samples = np.load(draw(run, tmp_path / "npy", "format=npy", *clip) / "samples.npy")
    assert samples.shape == (5, channels, *size)
    assert samples.dtype == (np.float32 if values.dtype == np.float64 else values.dtype)
    low, high = {"signals": (-3, 7), "latents": (-15, 15), "videos": (0, 255), "16-bit images": (0, 4095)}[name]
    assert low <= samples.min() < (low + high) / 2 < samples.max() <= high
    assert samples.std() > (high - low) / 20
    held = np.load(draw(run, tmp_path / "npz", "format=npz", *clip) / "samples.npz")
    assert np.array_equal(held["arrays"], samples)
    assert (draw(run, tmp_path / "grid", *clip) / "grid.png").exists()
    if name == "16-bit images":
        assert (draw(run, tmp_path / "html", "format=html") / "reverse_process.html").exists()
    else:
        with pytest.raises(UserError, match="format must be grid, npz or npy, got 'html': the model samples arrays"):
            draw(run, tmp_path / "html", "format=html", *clip)
    assert bool(list((run / "samples").glob("*.html"))) == (name == "16-bit images")
    if name == "16-bit images":  # what was sampled is a dataset again
        train(tmp_path / "again", "data=arrays", f"data.root={tmp_path / 'npy' / 'samples.npy'}", *form, *overrides)


def test_16_bit_files_to_16_bit_files(tmp_path):
    (tmp_path / "files").mkdir()
    for i in range(12):
        levels = RNG.integers(0, 65536, (6, 6)).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / "files" / f"{i:02d}.png")
    form = ["data.channels=1", "data.image_size=[6,6]", "data.dtype=uint16", "prediction=v"]
    run = train(tmp_path / "run", "data=image_folder", f"data.root={tmp_path / 'files'}", *form)
    array = np.load(draw(run, tmp_path / "npy", "format=npy") / "samples.npy")
    assert len(np.unique(array)) > 100  # and not 8 bits in 16
    for form in ("png", "tiff"):
        out = draw(run, tmp_path / form, f"format={form}")
        for i in range(5):
            with Image.open(out / f"{i:05d}.{form}") as image:
                assert np.array_equal(np.asarray(image), array[i, 0])
    with pytest.raises(UserError, match="only 8-bit images can be evaluated"):
        evaluate(config_of(f"ckpt_path={run}", "num_samples=10", name="evaluate"))


def test_a_format_that_cannot_hold_the_samples_is_refused_first(tiny_run, tmp_path):
    with pytest.raises(
        UserError, match="format must be grid, html, png, npz or npy, got 'tiff': the model samples images"
    ):
        draw(tiny_run, tmp_path / "out", "format=tiff")
    assert not (tmp_path / "out").exists()


def test_values_that_clipping_would_leave_out_are_refused(tmp_path):
    np.save(tmp_path / "data.npy", RNG.uniform(0, 255, (12, 1, 4, 4)).astype(np.float32))
    form = ["data=arrays", f"data.root={tmp_path / 'data.npy'}", "data.channels=1", "data.image_size=[4,4]"]
    with pytest.raises(
        UserError,
        match=r"data.value_range must cover the data, .* leaves out (99|100)% .*: set data.value_range=.*25.* or sampler.clip=null",
    ):
        train(tmp_path / "run", *form)
    np.save(tmp_path / "data.npy", RNG.integers(0, 65536, (12, 1, 4, 4)).astype(np.uint16))
    narrow = ["data.dtype=uint16", "data.value_range=[0,4095]"]
    with pytest.raises(
        UserError, match=r"data.value_range must cover the data, .*: set data.value_range=\[[\d.]+,[\d.]+\]$"
    ):
        train(tmp_path / "run", *form, *narrow)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def small_to_large(tmp_path_factory):
    """A run of super-resolution."""
    return train(
        tmp_path_factory.mktemp("super_resolution") / "run",
        "experiment=digits_super_resolution",
        "prediction=v",
        "optimizer.lr=0.02",
    )


def test_super_resolution_is_sampled_from_the_conditions_of_the_run_or_of_a_file(small_to_large, tmp_path):
    condition = load_condition(small_to_large / "samples" / "condition.npy")
    assert condition.shape == (64, 1, 4, 4)
    own = np.load(draw(small_to_large, tmp_path / "own", "format=npy") / "samples.npy")
    np.save(tmp_path / "same.npy", condition[:2].numpy())
    same = np.load(
        draw(small_to_large, tmp_path / "same", "format=npy", f"condition={tmp_path / 'same.npy'}") / "samples.npy"
    )
    assert np.abs(own[:2].astype(int) - same[:2]).max() <= 1  # rows in turn: the third sample has the first one's
    np.save(tmp_path / "other.npy", -condition[:5].numpy())
    other = f"condition={tmp_path / 'other.npy'}"
    other = np.load(draw(small_to_large, tmp_path / "other", "format=npy", other, "guidance_scale=3") / "samples.npy")
    assert np.abs(own.astype(int) - other).mean() > 2
    with Image.open(draw(small_to_large, tmp_path / "grid") / "grid.png") as image:
        sheet, layout = np.array(image), Layout.read(image.text)
    given = ((condition[0, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    shown = layout.images(torch.from_numpy(sheet).permute(2, 0, 1))
    assert np.array_equal(shown[0, 0, ::2, ::2], given)  # left of its sample


def test_conditions_that_do_not_fit_are_refused(small_to_large, tmp_path):
    np.save(tmp_path / "three.npy", np.zeros((4, 3, 4, 4)))
    with pytest.raises(
        UserError,
        match=r"condition=.*three.npy does not fit the model: the condition must have shape .* got \(3, 4, 4\)",
    ):
        draw(small_to_large, tmp_path / "out", f"condition={tmp_path / 'three.npy'}")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="a condition of .1, 4, 4.: a condition was given to a model that takes none"):
        train(tmp_path / "none", "data=digits_low_resolution")


def test_embeddings_from_a_file(tmp_path):
    np.save(tmp_path / "data.npy", RNG.uniform(-1, 1, (12, 1, 8)).astype(np.float32))
    np.save(tmp_path / "text.npy", RNG.normal(size=(12, 5)))
    form = ["data=arrays", f"data.root={tmp_path / 'data.npy'}", "data.channels=1", "data.image_size=[8]"]
    embeddings = [f"data.dataset.condition={tmp_path / 'text.npy'}", "model.condition_size=5", "guidance_scale=2"]
    run = train(tmp_path / "run", *form, *embeddings)
    assert load_condition(run / "samples" / "condition.npy").shape == (1, 5)  # the held-out ones
    samples = np.load(draw(run, tmp_path / "npy", "format=npy") / "samples.npy")
    assert samples.shape == (5, 1, 8)
    denoiser = runs.load_denoiser(run)
    x, y = torch.randn(2, 1, 8), torch.randn(2, 5)
    assert (denoiser(x, torch.tensor(5), y) - denoiser(x, torch.tensor(5))).abs().max() > 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.condition_size=5"], "the model requires a condition, but the dataset has none"),
        (["model=dit_s", "model.depth=1", "model.condition_channels=5"], "the model requires a condition, but"),
        (
            ["data.dataset.condition=labels.npy", "model.condition_size=1"],
            "data.num_classes must be the number of labels",
        ),
        (
            ["data.dataset.condition=labels.npy"],
            "data.num_classes must be the number of labels in labels.npy, got null",
        ),
        (["data.dataset.condition=text.npy"], "a condition of .5.: a condition was given .* set condition_size"),
        (["data.dataset.condition=text.npy", "data.num_classes=3"], "data.num_classes must be null, got 3"),
        (["data.dataset.condition=short.npy"], "condition must have one row for each of the 12 samples, got 4"),
    ],
)
def test_conditions_that_are_not_there_or_not_meant_are_refused_before_a_folder_is_made(
    tmp_path, monkeypatch, overrides, words
):
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", RNG.uniform(-1, 1, (12, 1, 8, 8)).astype(np.float32))
    np.save("labels.npy", RNG.integers(0, 3, 12))
    np.save("text.npy", RNG.normal(size=(12, 5)))
    np.save("short.npy", RNG.normal(size=(4, 5)))
    tiny = [o for o in TINY if not (o.startswith("model.") and "model=dit_s" in overrides)]
    form = ["data=arrays", "data.root=data.npy", "data.channels=1", "data.image_size=[8,8]"]
    with pytest.raises(UserError, match=words):
        runs.train(train_config(tmp_path / "run", *form, *overrides, tiny=tiny))
    assert not (tmp_path / "run").exists()


def test_labels_from_a_file(tmp_path):
    np.save(tmp_path / "data.npy", RNG.uniform(-1, 1, (12, 1, 8)).astype(np.float32))
    np.save(tmp_path / "labels.npy", np.arange(12) % 3)
    form = ["data=arrays", f"data.root={tmp_path / 'data.npy'}", "data.channels=1", "data.image_size=[8]"]
    run = train(tmp_path / "run", *form, f"data.dataset.condition={tmp_path / 'labels.npy'}", "data.num_classes=3")
    with np.load(draw(run, tmp_path / "npz", "format=npz", "labels=[2,1]") / "samples.npz") as held:
        assert held["labels"].tolist() == [2, 1, 2, 1, 2]


def test_samples_are_saved_with_their_conditions(small_to_large, tmp_path):
    stored = np.load(small_to_large / "samples" / "condition.npy")
    with np.load(draw(small_to_large, tmp_path / "npz", "format=npz") / "samples.npz") as held:
        assert np.array_equal(held["condition"], stored[:5])


def test_the_grid_takes_its_conditions_from_a_file(tmp_path):
    np.save(tmp_path / "mine.npy", np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4))
    mine = f"+callbacks.sample_grid.condition={tmp_path / 'mine.npy'}"
    run = train(tmp_path / "run", "experiment=digits_super_resolution", mine)
    with Image.open(run / "samples" / "grid_0000004.png") as image:
        shown = Layout.read(image.text).images(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    given = ((np.linspace(-1, 1, 32).reshape(2, 4, 4) + 1) * 127.5).round()
    assert np.array_equal(shown[0:4:2, 0, ::2, ::2], given)  # of the first two pairs
    with pytest.raises(UserError, match=r"condition=.*nothing.npy cannot be read"):
        train(tmp_path / "other", "experiment=digits_super_resolution", mine.replace("mine.npy", "nothing.npy"))
    assert not (tmp_path / "other").exists()
