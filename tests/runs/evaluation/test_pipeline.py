"""evaluate.py: its numbers, that it goes on where it stopped, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation import pipeline
from ddpm_lightning.images import from_uint8
from ddpm_lightning.likelihood import estimate_bits_per_dim
from ddpm_lightning.metrics import distances, features
from tests.helpers.configs import config_of
from tests.helpers.evaluating import SMALL, copy_of, read, size_of


@pytest.fixture
def run(tiny_run, tmp_path):
    return copy_of(tiny_run, tmp_path / "run")


def evaluate(run, cache, *overrides):
    config = config_of(*SMALL, f"ckpt_path='{run}'", f"cache_dir='{cache}'", *overrides, name="evaluate")
    return pipeline.evaluate(config)


def test_the_numbers_are_those_of_the_samples_that_sample_draws(run, tmp_path, capsys):
    out = evaluate(run, tmp_path)
    drawn = runs.sample(
        config_of(
            f"ckpt_path='{run}'",
            "num_samples=60",
            "sampler=ddim",
            "sampler.num_steps=3",
            "format=npz",
            "batch_size=60",
            name="sample",
        )
    )
    images = torch.from_numpy(np.load(drawn / "samples.npz")["images"]).permute(0, 3, 1, 2)
    held = runs.load_checkpoint(run)["config"]["data"]
    data = instantiate(held)
    data.setup()
    train, unseen = data.split("train"), data.split("validation")
    model = features.classifier(lambda: data.split("all"), tmp_path, num_steps=5)
    real, fake = (features.extract(model, x) for x in (train.images, images))
    metrics, protocol = read(out)["metrics"], read(out)["protocol"]
    assert metrics["fid"]["value"] == pytest.approx(distances.frechet_distance(real, fake).value, abs=1e-3)
    assert metrics["kid"]["value"] == pytest.approx(distances.kernel_distance(real, fake).value, abs=1e-3)
    logits = features.logits_of(model, fake)
    assert metrics["inception_score"]["value"] == pytest.approx(distances.inception_score(logits).value, abs=1e-3)
    seen = features.extract(model, unseen.images)
    assert metrics["fid_of_held_out"]["value"] == pytest.approx(distances.frechet_distance(real, seen).value, abs=1e-3)
    d = [distances.nearest(x, train.images)[0][:, 0] for x in (images, unseen.images)]
    assert metrics["closer_to_train_by_images"]["value"] == pytest.approx(distances.closer_share(*d), abs=1e-6)
    terms = [metrics[f"bits_per_dim_{term}"]["value"] for term in ("prior", "diffusion", "decoder")]
    assert metrics["bits_per_dim_total"]["value"] == pytest.approx(sum(terms), rel=1e-6)
    assert protocol["network_evaluations_per_image"] == 3
    assert (protocol["num_samples"], protocol["reference_images"], protocol["seeds"]) == (60, len(train.images), [0])
    for row in metrics.values():
        assert row["of"]
    # Each sample, apart, and five images beside it, under a line of text.
    assert size_of(out / "nearest.png") == (6 * 122 + 2 + 8, 18 + 8 * 122 + 2)
    assert (out / "grid.png").exists()
    printed = " ".join(capsys.readouterr().out.split())
    assert "180 network evaluations" not in printed
    assert "60 samples (3 network evaluations each)" in printed
    assert f"own classifier (5 steps on this dataset, test accuracy {model.test_accuracy:.1%})" in printed


def test_bits_are_those_of_the_likelihood_command(run, tmp_path):
    from ddpm_lightning.evaluation.bits import measure_bits_per_dim

    ours = read(evaluate(run, tmp_path))["metrics"]
    theirs = json.loads(
        (measure_bits_per_dim(run / "checkpoints" / "last.ckpt", num_images=2) / "bits_per_dim.json").read_text()
    )
    for term, value in theirs["bits_per_dim"].items():
        assert ours[f"bits_per_dim_{term}"]["value"] == pytest.approx(value, rel=1e-5)
    assert ours["bits_per_dim_total"]["spread"] == pytest.approx(theirs["standard_error"], rel=1e-5)


def test_bits_agree_with_the_estimate_of_validation(run, tmp_path):
    total = read(evaluate(run, tmp_path, "bits_images=64", "num_samples=10"))["metrics"]["bits_per_dim_total"]
    assert total["of"].startswith("64 held-out images")
    estimate = json.loads((run / "summary.json").read_text())["final"]["val/bits_per_dim"]
    held = runs.load_checkpoint(run)["config"]["data"]
    data = instantiate(held)
    data.setup()
    x0 = from_uint8(data.split("validation").images)
    each = estimate_bits_per_dim(runs.load_denoiser(run), x0, uniform=torch.rand(180)).total
    error = float(each.std()) / 180**0.5  # of one draw for each image
    assert error < 0.1 * total["value"]
    assert estimate == pytest.approx(total["value"], abs=4 * (error**2 + total["spread"] ** 2) ** 0.5)


@pytest.mark.parametrize("other", [["shard_size=7", "batch_size=3"], ["shard_size=1000", "batch_size=1000"]])
def test_metrics_do_not_depend_on_shards_and_batches(run, tmp_path, other):
    first = read(evaluate(run, tmp_path / "a", f"out_dir='{tmp_path / 'first'}'"))["metrics"]
    second = read(evaluate(run, tmp_path / "a", f"out_dir='{tmp_path / 'second'}'", *other))["metrics"]
    for name, row in first.items():
        assert second[name]["value"] == pytest.approx(row["value"], abs=1e-3), name


def test_what_is_on_the_disk_is_not_drawn_again(run, tmp_path, monkeypatch, capsys):
    out = evaluate(run, tmp_path, "repeats=2")
    before = read(out)
    shards = sorted(out.glob("samples_*_seed1/*"))
    assert [s.name for s in shards] == ["000000-000019.npz", "000020-000039.npz", "000040-000059.npz"]
    old = shards[0].stat().st_mtime_ns
    shards[1].write_bytes(shards[1].read_bytes()[:300])  # cut off, as by a full disk
    capsys.readouterr()
    assert read(evaluate(run, tmp_path, "repeats=2")) == before
    assert "20 samples (3 network evaluations each)" in capsys.readouterr().out
    assert shards[0].stat().st_mtime_ns == old
    evaluate(run, tmp_path, "repeats=2")
    assert "All samples exist" in capsys.readouterr().out


def test_a_folder_of_the_users_may_hold_samples_of_other_models(run, tmp_path):
    given = [f"out_dir='{tmp_path / 'mine'}'", "bits_images=0", "nearest=0"]
    first = read(evaluate(run, tmp_path, *given))
    other = read(evaluate(run, tmp_path, *given, "weights=raw", "sampler.num_steps=4"))
    assert other["metrics"]["fid"]["value"] != first["metrics"]["fid"]["value"]
    assert read(evaluate(run, tmp_path, *given)) == first


def test_repeats_give_mean_and_deviation(run, tmp_path):
    metrics = read(evaluate(run, tmp_path, "repeats=3", "bits_images=0"))["metrics"]
    single = [read(evaluate(run, tmp_path, f"seed={s}", "bits_images=0"))["metrics"]["fid"]["value"] for s in (0, 1, 2)]
    assert metrics["fid"]["values"] == pytest.approx(single, rel=1e-9)
    assert metrics["fid"]["value"] == pytest.approx(np.mean(single))
    assert metrics["fid"]["spread"] == pytest.approx(np.std(single, ddof=1))
    assert "bits_per_dim_total" not in metrics


def test_another_model_sampler_or_guidance_has_another_folder(run, tmp_path):
    folders = {
        evaluate(run, tmp_path, "bits_images=0", "nearest=0", *o)
        for o in (
            [],
            ["weights=raw"],
            ["sampler.num_steps=4"],
            ["sampler=ancestral", "sampler.num_steps=3"],
            ["sampler.eta=1"],
        )
    }
    assert len(folders) == 5


def test_a_folder_of_diffusers_is_compared_with_the_set_that_is_named(run, tmp_path):
    from ddpm_lightning.runs.export import export

    export(run / "checkpoints" / "last.ckpt", tmp_path / "theirs", weights="ema", form="diffusers")
    with pytest.raises(UserError, match="does not name its training data: choose data="):
        evaluate(tmp_path / "theirs", tmp_path)
    ours = read(evaluate(run, tmp_path))["metrics"]
    theirs = read(evaluate(tmp_path / "theirs", tmp_path, "data=digits", f"out_dir='{tmp_path / 'out'}'"))["metrics"]
    for name, row in ours.items():
        assert theirs[name]["value"] == pytest.approx(row["value"], abs=1e-3), name


def test_the_split_is_that_of_the_training_whatever_the_samples_seed(run, tmp_path):
    few = ["bits_images=0", "nearest=0"]
    own = read(evaluate(run, tmp_path, *few))["protocol"]
    typed = read(evaluate(run, tmp_path, *few, "data=digits", "seed=7"))["protocol"]
    assert typed["reference_fingerprint"] == own["reference_fingerprint"]
    assert (typed["data_seed"], typed["seeds"]) == (0, [7])
    other = read(evaluate(run, tmp_path, *few, "data_seed=3"))["protocol"]
    assert other["reference_fingerprint"] != own["reference_fingerprint"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_samples=3", "num_samples must be an integer from 10 to 100000000, got 3"),
        ("num_samples=x", "num_samples must be"),
        ("repeats=0", "repeats must be"),
        ("shard_size=-1", "shard_size must be"),
        ("bits_images=-1", "bits_images must be"),
        ("reference=test", "reference must be train, validation or all, got 'test'"),
        ("data_root=elsewhere", "data_root must be null, got 'elsewhere': this dataset has no folder"),
        ("data=fashion_mnist", "data.root=data does not hold FashionMNIST|data.image_size must be"),
        ("weights=best", "weights must be ema or raw, got 'best'"),
        ("sampler.num_steps=2000", "num_steps must be an integer from 1 to 1000, got 2000"),
        ("device=tpu", "device=tpu"),
        (
            "reference_images=3",
            "reference=train and reference_images=3 must leave at least 10 images, got 3: raise reference_images$",
        ),
        ("features.num_steps=0", "features.num_steps must be an integer from 1 to"),
        ("features.seed=-1", "features.seed must be a non-negative integer, got -1"),
        ("labels=[1]", "labels must be null, .*trained without labels"),
    ],
)
def test_bad_settings(run, tmp_path, override, words):
    with pytest.raises(UserError, match=words):
        evaluate(run, tmp_path, override)
    assert not (run / "evaluations").exists()
