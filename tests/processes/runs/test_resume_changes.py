"""What a resumed run takes from its checkpoint alone, what may be changed, and what may not."""

import csv
import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from ddpm_lightning.cli.resume import complete_arguments
from ddpm_lightning.run_folder import release
from tests.helpers.configs import ROOT, TINY
from tests.helpers.forked import start_all
from tests.helpers.resuming import TIMINGS, assert_equal, interrupted, rows, state

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")

ODD = (  # as little of the default config as can be
    *(text for text in TINY if not text.startswith(("callbacks.trajectory", "model."))),
    "model=dit_tiny",
    "model.hidden_size=16",
    "model.depth=1",
    "model.num_heads=2",
    "schedule=cosine",
    "prediction=v",
    "loss=min_snr",
    "loss/times=stratified",
    "seed=3",
    "data.batch_size=8",
    "data.val_fraction=0.3",
    "optimizer=adam",
    "callbacks.trajectory=null",
    "logger=none",
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Its folder, trained as a user does."""
    cwd = tmp_path_factory.mktemp("odd")
    (result,) = start_all([{"argv": ["train.py", *ODD, "hydra.run.dir=whole"], "cwd": str(cwd)}])
    assert result["code"] == 0, result["err"]
    return cwd / "whole"


def same_end(one, two):
    first, second = state(one), state(two)
    for key in ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "global_step", "loss_guard"):
        assert_equal(first[key], second[key], key)
    assert rows(one) == rows(two)


def test_the_checkpoint_holds_all_that_is_needed(odd, tmp_path):
    """Without its dot files, with an empty record, with another's, and begun by run_dir=: the same end, and the same config."""
    starts = []
    for name in ("bare", "empty", "another", "moved"):
        folder = interrupted(odd, tmp_path / name, step=2)
        shutil.rmtree(folder / ".hydra", ignore_errors=name != "bare")
        if name != "bare":
            (folder / ".hydra").mkdir()
            text = {"empty": "[]\n", "another": "- schedule=linear\n- seed=5\n- logger=wandb\n"}.get(name, "")
            (folder / ".hydra" / "overrides.yaml").write_text(text)
        starts.append({"argv": ["train.py", f"resume={name}"], "cwd": str(tmp_path)})
    starts.append({"argv": ["train.py", *ODD, "run_dir=named", "trainer.max_steps=2"], "cwd": str(tmp_path)})
    starts.append({"argv": ["train.py", "resume=named", "trainer.max_steps=4"], "cwd": str(tmp_path)})
    for start, result in zip(starts, start_all(starts), strict=True):
        assert result["code"] == 0, (start, result)
    for name in ("bare", "empty", "another", "moved", "named"):
        if name != "named":  # whose first part ended, with a row of metrics and pictures of its own
            same_end(odd, tmp_path / name)
        ours, theirs = (json.loads(json.dumps(state(folder)["config"])) for folder in (odd, tmp_path / name))
        ours, theirs = (
            json.dumps(config).replace(config["run_dir"], "RUN").replace('"RUN"', "RUN") for config in (ours, theirs)
        )
        assert ours == theirs, name
    for key in ("state_dict", "ema_state_dict", "optimizer_states", "global_step"):
        assert_equal(state(odd)[key], state(tmp_path / "named")[key], key)


def test_what_the_run_stands_or_falls_with_cannot_be_changed(odd, tmp_path):
    refused = {
        "seed=4": "seed cannot be changed from 3 to 4 when a run is resumed",
        "data.val_fraction=0.2": "data.val_fraction cannot be changed from 0.3 to 0.2",
        "schedule=linear": "schedule cannot be changed when a run is resumed, since the weights are trained for it",
        "schedule.num_steps=500": "schedule.num_steps cannot be changed from",
        "prediction=x0": "prediction cannot be changed from v to x0",
        "loss=simple": "loss cannot be changed",
        "loss/times=uniform": "loss.times",
        "data.num_classes=10": "data.num_classes cannot be changed from null to 10",
        "data=two_moons": "data.channels cannot be changed from 1 to 2",
        "optimizer.lr=1": "optimizer.lr cannot be changed from",
        "model.depth=2": "holds a different network",
    }
    folder = interrupted(odd, tmp_path / "run", step=2)
    (folder / "train.log").touch()
    before = sorted(folder.rglob("*"))
    starts = [{"argv": ["train.py", f"resume={folder}", *text.split()], "cwd": str(tmp_path)} for text in refused]
    for says, result in zip(refused.values(), start_all(starts), strict=True):
        assert result["code"] == 1, result
        assert says in result["err"]
        assert len(result["err"].strip().splitlines()) == 1, result["err"]
        assert sorted(folder.rglob("*")) == before
    init = [{"argv": ["train.py", *ODD, "seed=4", f"init_from={folder}", "hydra.run.dir=new"], "cwd": str(tmp_path)}]
    assert start_all(init)[0]["code"] == 0  # the way out that is named


def test_a_changed_batch_size_goes_on_behind_the_images_that_were_seen(odd, tmp_path):
    folder = interrupted(odd, tmp_path / "run", step=2)
    argv = ["train.py", f"resume={folder}", "data.batch_size=4", "trainer.max_steps=6"]
    (result,) = start_all([{"argv": argv, "cwd": str(tmp_path)}])
    assert result["code"] == 0, result["err"]
    held = state(folder)
    assert held["global_step"] == 6
    assert held["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"images": 2 * 8 + 4 * 4}]


def test_the_summary_is_of_all_parts_of_the_run(odd, tmp_path):
    folder = interrupted(odd, tmp_path / "run", step=2)
    held = state(folder, "step_0000002.ckpt")
    held["summary"]["wall_seconds"] = 1000.0
    held["summary"]["final"]["val/fid"] = 7.0  # measured in the first part, and not in the second
    torch.save(held, folder / "checkpoints" / "step_0000002.ckpt")
    (result,) = start_all([{"argv": ["train.py", f"resume={folder}"], "cwd": str(tmp_path)}])
    assert result["code"] == 0, result["err"]
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (folder, odd))
    assert 1000 < ours["wall_seconds"] < 1100
    assert ours["final"].pop("val/fid") == 7
    assert {k: v for k, v in ours["final"].items() if k not in TIMINGS} == {
        k: v for k, v in theirs["final"].items() if k not in TIMINGS
    }
    assert ours["best"] == theirs["best"]
    with (folder / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows(odd))


LINKS = ("checkpoints", "metrics.csv", "samples", "train.log", ".lock", ".hydra")


def test_a_link_out_of_the_run_is_not_written_through(odd, tmp_path):
    other = interrupted(odd, tmp_path / "other", step=4)
    for name in LINKS:
        (other / name).touch() if not (other / name).exists() else None
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in other.rglob("*")}
    starts = []
    for name in LINKS:
        folder = interrupted(odd, tmp_path / f"run{name}", step=2)
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(other / name)
        starts.append({"argv": ["train.py", f"resume={folder}"], "cwd": str(tmp_path)})
    for name, result in zip(LINKS, start_all(starts), strict=True):
        assert result["code"] == 1
        assert f"run{name}/{name} is a link to {other / name}, outside of" in result["err"], result
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in other.rglob("*")} == before


def test_a_refused_start_leaves_a_run_that_starts_in_the_same_folder_alone(tmp_path):
    """The first is held up before it has written its config, when the second one is refused."""
    first = """
import sys, time
from pathlib import Path
from ddpm_lightning import runs
def slow(config, train=runs.train):
    Path("ready").touch()
    while not Path("go").exists():
        time.sleep(0.05)
    return train(config)
runs.train = slow
import runpy
sys.argv = [ROOT + "/train.py", *sys.argv[1:]]
runpy.run_path(ROOT + "/train.py", run_name="__main__")
"""
    import subprocess
    import sys
    import time

    (tmp_path / "first.py").write_text(f"ROOT = {str(ROOT)!r}\n{first}")
    tiny = [*TINY, "logger=none", "hydra.run.dir=run", "trainer.max_steps=2"]
    env_free = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "first.py", *tiny], cwd=tmp_path, **env_free) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        before = sorted((tmp_path / "run").rglob("*"))
        bad = [[*tiny, "data.batch_size=-1"], tiny, ["resume=run"], ["resume=auto", "hydra.run.dir=run"]]
        results = start_all([{"argv": ["train.py", *argv], "cwd": str(tmp_path)} for argv in bad])
        assert sorted((tmp_path / "run").rglob("*")) == before
        for result in results:
            assert result["code"] == 1
            assert len(result["err"].strip().splitlines()) == 1, result
        assert all("is used by another run" in result["err"] for result in results[:2])
        (tmp_path / "go").touch()
        assert process.wait() == 0, process.stderr.read()
    assert {".hydra", "train.log", "config.yaml", "summary.json"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_the_records_lines_are_not_typed_lines(odd, tmp_path, monkeypatch):
    """What is replayed is on the command line; what is not stays in the record."""
    folder = interrupted(odd, tmp_path / "run", step=2)
    held = state(folder, "step_0000002.ckpt")
    held["overrides"] += ["+callbacks.more={_target_: os.mkdir}", "callbacks.checkpoint.dirpath=/elsewhere"]
    torch.save(held, folder / "checkpoints" / "step_0000002.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDPM_LAUNCH", raising=False)
    argv = complete_arguments(["resume=run", "trainer.max_steps=6"])
    release(folder)
    assert argv[: len(ODD)] == [*ODD]
    assert argv[len(ODD)] == "trainer.max_steps=6"
    assert not any("callbacks.more" in text or "dirpath" in text for text in argv)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", argv[: len(ODD) + 1], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        try:
            with open_dict(config):
                del config["hydra"]
            config.run_dir, config.resume = str(folder), str(folder)
            from ddpm_lightning.runs.build import _overrides
            from ddpm_lightning.runs.resume_point import resume

            now, point = resume(config, folder)
            assert now.trainer.max_steps == 6
            assert now.callbacks.checkpoint.dirpath == str(folder / "checkpoints")
            assert _overrides(point) == [*held["overrides"], "trainer.max_steps=6"]
        finally:
            HydraConfig.instance().cfg = None
