"""The entry points as a user runs them, in processes of their own, with no account and no GPU."""

import csv
import json
import os
import re
import signal
import time

import pytest
import torch

from ddpm_lightning.data.datasets import digits
from ddpm_lightning.data.fingerprint import fingerprint
from tests.helpers.configs import TINY, WHOLE
from tests.helpers.scripts import run_folders, script, script_started, until
from tests.helpers.wandb_files import wandb_contents, wandb_records


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_from_the_command_line(tmp_path, processes):
    devices = [f"trainer.devices={processes}"]
    result = script("train.py", *WHOLE, *devices, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = run_folders(tmp_path)  # one run folder for all processes

    # the closing words
    name = folder.relative_to(tmp_path)
    assert f"checkpoint  {name}/checkpoints/last.ckpt" in result.stdout
    assert f"metrics     {name}/metrics.csv" in result.stdout
    assert f"samples     {name}/samples/grid_0000004.png" in result.stdout
    assert result.stdout.count("Next: python sample.py") == 1
    go_on = result.stdout.rsplit("python sample.py ", 1)[1].split()

    # nothing is written twice
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["2", "4"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["2", "4"]
    often = ["grid_{}.png", "raw_grid_{}.png", "trajectory_{}.png", "trajectory_{}.gif"]
    at_the_end = ["log_snr_{}.png", "neighbors_{}.png"]
    names = {name.format(f"{step:07d}") for step in (2, 4) for name in often + at_the_end * (step == 4)}
    assert {path.name for path in (folder / "samples").iterdir()} == {
        *names,
        "schedule.png",
        "forward_strip.png",
        "reverse_process_0000004.html",
    }
    assert json.loads((folder / "summary.json").read_text())["processes"] == processes

    # W&B holds the same: loss history on one axis, the grids with their step, the whole config
    history, config, media, exits = wandb_contents(folder)
    losses = [(row["trainer/global_step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(int(row["step"]), pytest.approx(float(row["train/loss"]))) for row in rows if row["train/loss"]]
    grids = [
        row["trainer/global_step"]
        for row in history
        if any(key.split("/filenames")[0] == "samples/grid" for key in row)
    ]
    assert grids == [2, 4]
    assert len(media) == len(names) - 2 + 2  # the animations lie elsewhere
    assert len(list(folder.glob("wandb/offline-run-*/files/media/videos/samples/*.gif"))) == 2
    keys = {key.split("/filenames")[0] for row in history for key in row if key.startswith("samples/")}
    assert {key.split("/")[1] for key in keys} == {
        *(
            "grid",
            "raw_grid",
            "trajectory",
            "trajectory_animation",
            "neighbors",
            "log_snr",
            "schedule",
            "forward_strip",
        ),
    }
    curve = [row for row in history if "mse_at_log_snr/+00" in row]
    assert [row["trainer/global_step"] for row in curve] == [4]
    assert config["schedule"]["value" if "value" in config["schedule"] else "num_steps"]
    assert "parameters" in config
    assert config["data_fingerprint"] == fingerprint(*digits()[:2])
    assert config["git_commit"] is None or len(config["git_commit"]) == 40
    assert "data.batch_size=16" in config["overrides"]
    run = next(record.run for record in wandb_records(folder) if record.HasField("run"))
    assert run.display_name == "_".join(folder.parts[-2:])
    assert {"data=digits", "model=unet_tiny", "schedule=linear", "loss=simple"} == {*run.tags}
    assert not run.run_group
    assert exits == [0]
    assert "wandb sync " in result.stdout

    # the line to go on with
    result = script("sample.py", *go_on, "num_samples=2", "sampler.num_steps=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list(folder.glob("samples_*/grid.png"))) == 1


def test_one_and_two_processes_train_alike(tmp_path):
    losses = {}
    for processes in (1, 2):
        options = [
            f"trainer.devices={processes}",
            f"data.batch_size={32 // processes}",
            "logger=none",
            "trainer.limit_val_batches=1.0",
        ]
        assert script("train.py", *TINY, *options, f"hydra.run.dir={processes}", cwd=tmp_path).returncode == 0
        with (tmp_path / str(processes) / "metrics.csv").open(newline="") as file:
            losses[processes] = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)  # the same images, t and noise in every global batch


IMPORTANCE = (
    "loss=vlb",
    "loss/times=importance",
    "loss.times.history=2",
    "schedule.num_steps=4",
    "schedule.beta_end=0.9",
)


def test_an_importance_draw_learns_from_the_losses_of_all_ranks(tmp_path):
    options = [*IMPORTANCE, "trainer=ddp_cpu", "logger=none", "hydra.run.dir=run"]
    result = script("train.py", *TINY, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    counts, losses = state["loss.times.counts"], state["loss.times.losses"]
    assert counts.sum() == 2 * 16 * 4  # processes, images, steps
    assert (counts >= 2).all()  # so that the last steps drew by importance
    assert (losses > 0).all()


def test_a_sweep_gives_two_finished_runs_in_one_folder(tmp_path):
    result = script("train.py", "-m", "schedule=linear,cosine", *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    one, two = run_folders(tmp_path, "multirun")
    assert one.parent == two.parent
    assert "schedule_linear" in one.name
    assert "schedule_cosine" in two.name
    for folder, schedule in ((one, "linear"), (two, "cosine")):
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        assert (folder / "checkpoints" / "last.ckpt").exists()
        config = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["config"]
        assert config["schedule"]["_target_"].endswith(schedule)
        assert wandb_contents(folder)[3] == [0]
        run = next(record.run for record in wandb_records(folder) if record.HasField("run"))
        assert run.run_group == "_".join(one.parts[-3:-1])  # the sweep
        assert f"schedule={schedule}" in run.tags


def test_a_sweep_of_jobs_with_two_processes_starts_each_once(tmp_path):
    devices = ["trainer=ddp_cpu", "logger=none"]
    result = script("train.py", "-m", "seed=0,1", *TINY, *devices, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folders = run_folders(tmp_path, "multirun")
    assert [folder.name for folder in folders] == ["0_seed_0", "1_seed_1"]
    assert [result.stdout.count(f"Job {i} of 2: seed={i - 1}") for i in (1, 2)] == [1, 1]
    assert "HYDRA" not in result.stdout
    assert "#0 :" not in result.stdout
    assert re.search(r"\nval/loss: \S+ over 2 seeds\.\n\S+/report.html\n", result.stdout)
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--help"], 0, "schedule"),
        (["--cfg", "job"], 0, "beta_end: 0.02"),
        (["model=unet_smal"], 1, "error: model=unet_smal does not exist: did you mean model=unet_small?"),
        (["trainer.max_step=3"], 1, "error: there is no key trainer.max_step: did you mean trainer.max_steps=3?"),
        (["modle=unet_small"], 1, "error: there is no key modle: did you mean model=unet_small?"),
    ],
)
def test_the_command_line_answers_at_once(tmp_path, args, code, says):
    started = time.monotonic()
    result = script("train.py", *args, cwd=tmp_path, timeout=60)
    assert (result.returncode, says in result.stdout + result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == code
    print(f"{args}: {time.monotonic() - started:.2f} s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("train.py", ["trainer.max_steps=-5"], "trainer.max_steps must be an integer from 1 to 100000000, got -5"),
        ("train.py", ["schedule=betas"], "schedule.betas has no default"),
        ("train.py", ["logger=null"], "choose one of its files, such as logger=none"),
        ("sample.py", ["ckpt_path=nowhere.ckpt"], "ckpt_path=nowhere.ckpt cannot be loaded (there is no such file)"),
        ("sample.py", [], "train one with `python train.py`"),
    ],
)
def test_errors_are_one_sentence(tmp_path, name, args, says):
    result = script(name, *args, cwd=tmp_path, timeout=120)
    assert result.returncode == 1
    assert not list(tmp_path.glob("outputs/*"))
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_run_goes_on_in_its_folder_with_what_was_typed_changed(tmp_path):
    """The config is the checkpoint's, also where the defaults have changed since; W&B's parts bear one id."""
    result = script("train.py", *TINY, "schedule=cosine", "callbacks.ema.decay=0.5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = run_folders(tmp_path)
    (folder / "summary.json").unlink()  # as if it had been killed at its end
    result = script("train.py", "resume=auto", "trainer.max_steps=6", "sampler.num_steps=3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert run_folders(tmp_path) == [folder]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    config = checkpoint["config"]
    assert checkpoint["global_step"] == 6
    assert config["schedule"]["_target_"].endswith("cosine")
    assert config["callbacks"]["ema"]["decay"] == 0.5
    assert config["sampler"]["num_steps"] == 3
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["2", "4", "6"]
    newest = max(folder.glob("wandb/offline-run-*"))  # W&B's part of what came after, on the same axis
    logged = [row for row in wandb_contents(folder, newest.name)[0] if "train/loss" in row]
    assert [row["trainer/global_step"] for row in logged] == [6]
    ids = {path.stem.removeprefix("run-") for path in folder.glob("wandb/offline-run-*/run-*.wandb")}
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2
    assert ids == {(folder / "wandb" / "run_id").read_text()}

    for wrong, says in (
        (["resume=auto"], "resume=auto found no unfinished run"),
        (["resume=elsewhere"], "resume must be the folder of a run, got elsewhere"),
        (
            [f"resume={folder}", "optimizer.lr=1"],
            "optimizer.lr cannot be changed from 0.002 to 1 when a run is resumed",
        ),
        ([f"resume={folder}", "model.base_channels=16"], "holds a different network"),
        (["-m", "resume=auto", "seed=1,2"], "resume=auto found no unfinished sweep"),
        ([f"hydra.run.dir={folder}"], "already holds a run"),
    ):
        before = sorted(folder.rglob("*"))
        result = script("train.py", *wrong, *([] if "resume" in " ".join(wrong) else TINY), cwd=tmp_path)
        assert result.returncode == 1
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert sorted(folder.rglob("*")) == before
    record = (folder / ".hydra" / "overrides.yaml").read_text()
    assert "trainer.max_steps=6" in record
    assert "optimizer.lr=1" not in record


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path, number):
    run = ["trainer=ddp_cpu", "logger=none", "hydra.run.dir=run", "trainer.max_steps=100000"]
    every = [
        "callbacks.checkpoint.every_n_train_steps=100000",
        "callbacks.sample_grid=null",
        "callbacks.trajectory=null",
        "callbacks.raw_grid=null",
    ]
    with script_started("train.py", *TINY, *run, *every, cwd=tmp_path) as process:
        until((tmp_path / "run" / "metrics.csv").exists)
        os.kill(process.pid, number)
        assert process.wait(60) == 128 + number, process.result
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step == summary["steps"] > 0
    result = script("train.py", "resume=auto", "hydra.run.dir=run", f"trainer.max_steps={step + 2}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == step + 2
