"""evaluate.py: its numbers, that it goes on where it stopped, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from ddpm_lightning import runs, schedules
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation import pipeline
from ddpm_lightning.evaluation.bits import bits_folder, held_out_of
from ddpm_lightning.evaluation.chunks import compute_chunks, missing_chunks, read_chunks
from ddpm_lightning.evaluation.study import names_of, table_of
from ddpm_lightning.images import from_uint8, to_uint8
from ddpm_lightning.likelihood import estimate_bits_per_dim
from ddpm_lightning.metrics import distances, features
from ddpm_lightning.models import UNet
from ddpm_lightning.runs.process_group import Ranks
from tests.conftest import ROOT, config_of, script

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = (
    "num_samples=60",
    "sampler.num_steps=3",
    "bits_images=2",
    "shard_size=20",
    "batch_size=16",
    "features.num_steps=5",
    "device=cpu",
)


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run, for evaluations of its own."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("evaluations"))
    return folder


def evaluate(run, cache, *overrides):
    config = config_of(*SMALL, f"ckpt_path='{run}'", f"cache_dir='{cache}'", *overrides, name="evaluate")
    return pipeline.evaluate(config)


def size_of(path):
    with Image.open(path) as image:
        return image.size


def read(folder):
    """The JSON, without timings."""
    return {
        key: value for key, value in json.loads((folder / "evaluation.json").read_text()).items() if key != "timing"
    }


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
    assert size_of(out / "nearest.png") == (6 * 34 + 2, 8 * 34 + 2)  # each sample, and five images beside it
    assert (out / "grid.png").exists()
    printed = capsys.readouterr().out
    assert "180 network evaluations" not in printed
    assert "60 samples of 3 network evaluations" in printed
    assert f"own classifier (5 steps on this data set, test accuracy {model.test_accuracy:.1%})" in printed


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
    assert "20 samples of 3" in capsys.readouterr().out
    assert shards[0].stat().st_mtime_ns == old
    evaluate(run, tmp_path, "repeats=2")
    assert "only the metrics are left" in capsys.readouterr().out


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
    with pytest.raises(UserError, match="does not say what it was trained on: choose data="):
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


def test_the_first_held_out_images_are_of_all_kinds():
    labels = torch.arange(10).repeat_interleave(100)
    data = ImageDataModule(
        lambda: ImageSet(torch.zeros(1000, 1, 8, 8).byte(), labels),
        channels=1,
        image_size=8,
        batch_size=9,
        val_fraction=0.5,
    )
    data.setup()
    held_out = held_out_of(data)
    assert len(held_out.labels) == 500
    assert torch.bincount(held_out.labels[:100], minlength=10).min() >= 3
    assert held_out.labels.equal(held_out_of(data).labels)


def test_likelihoods_of_another_schedule_are_not_taken(tmp_path):
    net = UNet(1, 1, base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=(), norm_groups=4)
    held_out = ImageSet(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).long())
    denoisers = [Denoiser(net, make(num_steps=10)) for make in (schedules.linear, schedules.cosine)]
    assert len({bits_folder(tmp_path, denoiser, held_out) for denoiser in denoisers}) == 2


def test_a_shard_that_another_process_wrote_elsewhere_is_named(tmp_path):
    compute_chunks(
        tmp_path, 5, 2, lambda items: {"x": torch.arange(items.start, items.stop)}, Ranks(rank=0, world_size=1)
    )
    assert read_chunks(tmp_path, 5, 2)["x"].tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "000002-000003.npz").unlink()
    assert missing_chunks(tmp_path, 5, 2, Ranks(rank=1, world_size=2)) == [range(2, 4)]
    assert missing_chunks(tmp_path, 5, 2, Ranks(rank=0, world_size=2)) == []
    with pytest.raises(UserError, match=r"000002-000003\.npz is missing: let all processes see one folder"):
        read_chunks(tmp_path, 5, 2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_samples=3", "num_samples=3 are too few"),
        ("num_samples=x", "num_samples=x"),
        ("repeats=0", "repeats=0"),
        ("shard_size=-1", "shard_size=-1"),
        ("bits_images=-1", "bits_images=-1"),
        ("reference=test", "reference=test is unknown: choose train, validation or all"),
        ("data_root=elsewhere", "data_root=elsewhere: this data set has no folder"),
        ("data=fashion_mnist", "data.root=data does not hold FashionMNIST|the model draws images"),
        ("weights=best", "weights=best is unknown"),
        ("sampler.num_steps=2000", "num_steps=2000 is more than the schedule's T=1000"),
        ("device=tpu", "device=tpu"),
        ("reference_images=3", "reference_images=3: 3 images are too few"),
        ("features.num_steps=0", "features.num_steps=0 will not do"),
        ("features.seed=-1", "features.seed=-1 is no seed"),
        ("labels=[1]", "trained without labels"),
    ],
)
def test_bad_settings(run, tmp_path, override, words):
    with pytest.raises(UserError, match=words):
        evaluate(run, tmp_path, override)
    assert not (run / "evaluations").exists()


@pytest.mark.slow
def test_killed_half_way_it_ends_with_the_same_numbers(run, tmp_path):
    given = [*SMALL, "sampler.num_steps=200", "num_samples=200", f"ckpt_path={run}", f"cache_dir={tmp_path / 'cache'}"]
    whole = script("evaluate.py", *given, f"out_dir={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "evaluate.py"), *given, f"out_dir={out}"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list(out.glob("samples_*_seed0/*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "evaluation.json").exists()
    again = script("evaluate.py", *given, f"out_dir={out}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read(out) == read(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run, tmp_path):
    given = [*SMALL, f"ckpt_path={run}", f"cache_dir={tmp_path / 'cache'}"]
    one = script("evaluate.py", *given, f"out_dir={tmp_path / 'one'}", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    shutil.rmtree(tmp_path / "cache" / "features")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two = subprocess.run(
        [*torchrun, str(ROOT / "evaluate.py"), *given, f"out_dir={tmp_path / 'two'}"],
        cwd=tmp_path, env=ONE_THREAD, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    a, b = read(tmp_path / "one")["metrics"], read(tmp_path / "two")["metrics"]
    assert a.keys() == b.keys()
    for name in a:
        assert b[name]["value"] == pytest.approx(a[name]["value"], abs=1e-3), name


@pytest.mark.slow
def test_a_study_ends_in_one_table_and_one_plot(run, tmp_path):
    given = [o for o in SMALL if not o.startswith("sampler")]
    done = script(
        "evaluate.py", "-m", *given, f"ckpt_path={run}", f"cache_dir={tmp_path / 'cache'}", "bits_images=0",
        "sampler=ddim,heun", "sampler.num_steps=2,4", "hydra.sweep.dir=study", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "study" / "study.md").read_text()
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert [row[:3] for row in rows[2:]] == [
        ["DDIM", "2", "2"],
        ["DDIM", "4", "4"],
        ["Heun", "2", "3"],
        ["Heun", "4", "7"],
    ]
    assert table in done.stdout
    assert size_of(tmp_path / "study" / "study.png") == (960, 600)
    jobs = sorted((tmp_path / "study").glob("*/evaluation.json"))
    assert len(jobs) == 4
    fids = [json.loads(path.read_text())["metrics"]["fid"]["value"] for path in jobs]
    best = min(fids)
    assert f"**{best:.4g}**" in table


def test_the_best_of_each_column_is_marked():
    def summary(fid, recall, eta):
        metrics = {"fid": {"value": fid}, "recall": {"value": recall, "spread": 0.1}}
        protocol = {
            "sampler": {"_target_": "a.DDIM", "eta": eta, "clip": 1.0}, "steps": 10, "network_evaluations_per_image": 10,
            "weights": "ema", "checkpoint": "x", "num_samples": 5, "reference_images": 6, "reference": "train", "features": "f",
        }  # fmt: skip
        return {"metrics": metrics, "protocol": protocol, "timing": {"images_per_second_of_one_process": 3.0}}

    lines = table_of([summary(2.0, 0.5, 0.0), summary(3.0, 0.75, 1.0)]).splitlines()
    assert lines[-1].startswith("checkpoint: x; weights: ema; ")
    assert lines[2] == "| DDIM eta=0.0 | 10 | 10 | **2** | 0.5 ± 0.1 | 3 |"
    assert lines[3] == "| DDIM eta=1.0 | 10 | 10 | 3 | **0.75 ± 0.1** | 3 |"


def test_a_study_names_all_that_differs():
    def summary(scale, checkpoint):
        protocol = {
            "sampler": {"_target_": "a.DDIM", "num_steps": 5},
            "guidance_scale": scale,
            "checkpoint": checkpoint,
        }
        return {"protocol": protocol}

    assert names_of([summary(2, "a"), summary(3, "a")]) == ["DDIM guidance_scale=2", "DDIM guidance_scale=3"]
    assert names_of([summary(2, "a"), summary(2, "b")]) == ["DDIM checkpoint=a", "DDIM checkpoint=b"]
    assert names_of([summary(2, "a")]) == ["DDIM"]


def test_the_classifier_is_trained_from_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_lightning", "features", "data=digits", "features.num_steps=5", f"cache_dir={tmp_path}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "own classifier (5 steps on this data set, test accuracy" in done.stdout
    assert len(list((tmp_path / "classifiers").glob("*.pt"))) == 1
    for words, said in ((["cache_dir=x"], "data= is not given"), (["data=digit"], "did you mean digits")):
        done = subprocess.run(
            [sys.executable, "-m", "ddpm_lightning", "features", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_images_are_rounded_as_they_are_saved():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]
