"""Runs that were cut off, and what two runs are compared by."""

import csv
import json
import shutil

import torch

TIMINGS = tuple(
    f"train/{name}" for name in ("wall_seconds", "images_per_second", "mfu", "host_share", "peak_memory_gib")
)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


def state(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def assert_equal(one, two, path=""):
    """To the bit, and of the same types, all the way down."""
    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_equal(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{path}/{i}")
    else:
        assert one == two, path


def assert_same_run(one, two):
    first, second = state(one), state(two)
    for key in ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "global_step", "loss_guard"):
        assert_equal(first[key], second[key], key)
    for key in ("Randomness", "SampleGrid", "BestCheckpoint"):
        assert_equal(first["callbacks"][key], second["callbacks"][key], key)
    assert first["loops"]["fit_loop"]["state_dict"] == second["loops"]["fit_loop"]["state_dict"]
    assert rows(one) == rows(two)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (one, two))
    assert ours["best"] == theirs["best"]


def interrupted(whole, folder, step):
    """The run as it lay there when it was killed some time after it had saved this step."""
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if path.name in ("last.ckpt", "best.ckpt") or int(path.stem.removeprefix("step_")) > step:
            path.unlink()
    return folder
