"""evaluate.py in processes of its own: killed, shared out, and swept."""

import json
import shutil

import pytest

from tests.helpers.evaluating import SMALL, copy_of, read, size_of
from tests.helpers.forked import start_all
from tests.helpers.scripts import script, script_started, torchrun, until


@pytest.fixture
def run(tiny_run, tmp_path):
    return copy_of(tiny_run, tmp_path / "run")


def test_killed_half_way_it_ends_with_the_same_numbers(run, tmp_path):
    given = [*SMALL, "sampler.num_steps=80", "num_samples=100", f"ckpt_path={run}", f"cache_dir={tmp_path / 'cache'}"]
    whole = script("evaluate.py", *given, f"out_dir={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "killed"
    with script_started("evaluate.py", *given, f"out_dir={out}", cwd=tmp_path) as process:
        until(lambda: len(list(out.glob("samples_*_seed0/*.npz"))) > 2 or process.poll() is not None)
        assert process.poll() is None, process.result
    assert not (out / "evaluation.json").exists()
    again = script("evaluate.py", *given, f"out_dir={out}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert read(out) == read(tmp_path / "whole")


def test_two_processes_give_the_numbers_of_one(run, tmp_path):
    given = [*SMALL, f"ckpt_path={run}", f"cache_dir={tmp_path / 'cache'}"]
    one = script("evaluate.py", *given, f"out_dir={tmp_path / 'one'}", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    shutil.rmtree(tmp_path / "cache" / "features")
    (two,) = torchrun("evaluate.py", *given, f"out_dir={tmp_path / 'two'}", cwd=tmp_path)
    assert two["code"] == 0, two["err"]
    a, b = read(tmp_path / "one")["metrics"], read(tmp_path / "two")["metrics"]
    assert a.keys() == b.keys()
    for name in a:
        assert b[name]["value"] == pytest.approx(a[name]["value"], abs=1e-3), name


def test_a_study_ends_in_one_table_and_one_plot(run, tmp_path):
    given = [o for o in SMALL if not o.startswith("sampler")]
    done = script(
        "evaluate.py", "-m", *given, f"ckpt_path={run}", f"cache_dir={tmp_path / 'cache'}", "bits_images=0",
        "sampler=ddim,heun", "sampler.num_steps=2,4", "hydra.sweep.dir=study", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\nBest FID (lower is better): " in done.stdout
    assert "HYDRA" not in done.stdout
    table = (tmp_path / "study" / "comparison.md").read_text()
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert [row[:3] for row in rows[2:]] == [
        ["ddim", "2", "2"],
        ["ddim", "4", "4"],
        ["heun", "2", "3"],
        ["heun", "4", "7"],
    ]
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if line.startswith(("ddim", "heun")))
    assert size_of(tmp_path / "study" / "comparison.png") == (960, 600)
    jobs = sorted((tmp_path / "study").glob("*/evaluation.json"))
    assert len(jobs) == 4
    fids = [json.loads(path.read_text())["metrics"]["fid"]["value"] for path in jobs]
    best = min(fids)
    assert f"**{best:.4g}**" in table


def test_the_classifier_is_trained_from_the_command_line(tmp_path):
    lines = (["data=digits", "features.num_steps=5", f"cache_dir={tmp_path}"], ["cache_dir=x"], ["data=digit"])
    done, *wrong = start_all(
        {"argv": ["-m", "ddpm_lightning", "features", *line], "cwd": str(tmp_path)} for line in lines
    )
    assert done["code"] == 0, done["err"]
    assert "own classifier (5 steps on this dataset, test accuracy" in done["out"]
    assert len(list((tmp_path / "classifiers").glob("*.pt"))) == 1
    for result, said in zip(wrong, ("data=... is required", "did you mean data=digits"), strict=True):
        assert result["code"] == 1
        assert said in result["err"]
        assert "Traceback" not in result["err"]
