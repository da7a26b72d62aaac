"""The built wheel in an environment of its own: the programs in an empty folder, and a user's project with parts of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
import venv

import pytest
from PIL import Image

from tests.helpers.configs import ROOT
from tests.helpers.forked import start_all
from tests.helpers.scripts import script

QUICK = [
    "trainer.max_steps=40",
    "trainer.val_check_interval=10",
    "callbacks.checkpoint.every_n_train_steps=10",
    "logger=none",
]
QUICK += [
    f"callbacks.{name}=null"
    for name in ("raw_grid", "trajectory", "neighbors", "log_snr", "schedule_curves", "forward_strip")
]
TRUST = "trust=[mylab]"
COMMANDS = {
    "ddpm": ["-m", "ddpm_lightning"],
    **{f"ddpm-{name}": [f"{name}.py"] for name in ("train", "sample", "evaluate")},
}


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The folder of the installed programs; what the package depends on is taken from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # so that a build leaves nothing in the repository
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "outputs", "multirun", "*.egg-info", "tests"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    subprocess.run(build, check=True, timeout=300)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    # -I: a checkout in the working folder is not taken for the installed package.
    install = [python, "-I", "-m", "pip", "install", "-q", "--no-deps", "--no-index", next(folder.glob("*.whl"))]
    subprocess.run(install, check=True, timeout=300)
    home = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
    )
    theirs = [path for path in sys.path if path.endswith("site-packages")]
    with open(os.path.join(home.stdout.strip(), "theirs.pth"), "w") as file:
        file.write("\n".join(theirs))
    return python.parent


def environment(cwd):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "WANDB", "DDPM", "HYDRA"))}
    return {**kept, "OMP_NUM_THREADS": "1", "DDPM_CACHE": str(cwd / "cache")}


def run(programs, name, *args, cwd, **env):
    return subprocess.run(
        [programs / name, *map(str, args)],
        cwd=cwd,
        env=environment(cwd) | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def forked(programs, name, *args, cwd, **env):
    """The same in a process that is forked from one of that environment which has imported the package."""
    start = {"argv": [str(programs / name), *map(str, args)], "cwd": str(cwd), "env": environment(cwd) | env}
    (result,) = start_all([start], python=str(programs / "python"))
    return subprocess.CompletedProcess(name, result["code"], result["out"], result["err"])


def done(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_empty_folder_is_enough(programs, tmp_path):
    where = run(programs, "python", "-c", "import ddpm_lightning; print(ddpm_lightning.__file__)", cwd=tmp_path)
    assert done(where).startswith(str(programs.parent))
    said = done(run(programs, "ddpm-train", "trainer.max_steps=50", cwd=tmp_path))
    assert "Next: ddpm-sample ckpt_path=outputs/" in said
    done(run(programs, "ddpm-sample", cwd=tmp_path))
    (grid,) = tmp_path.glob("outputs/*/*/samples_*/*.png")
    with Image.open(grid) as image:
        assert image.getextrema()[0] == (0, 255) if image.mode != "L" else image.getextrema() == (0, 255)
    assert done(forked(programs, "ddpm", "schedules", "--num-steps", "10", cwd=tmp_path)) == "schedules.png\n"
    assert "choose from" not in done(run(programs, "python", "-m", "ddpm_lightning", "train", "--help", cwd=tmp_path))


@pytest.fixture
def project(tmp_path):
    return shutil.copytree(ROOT / "examples" / "mylab", tmp_path / "project")


def started(programs, project, *args):
    """A training that is killed as soon as it has saved a checkpoint."""
    command = [programs / "ddpm-train", "--config-dir", "conf", "experiment=mine", *QUICK, *args]
    with (project / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=project, env=environment(project), stdout=log, stderr=log)
        try:
            end = time.monotonic() + 120
            while not [*project.glob("outputs/*/*/checkpoints/step_*.ckpt")] and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    said = (project / "log").read_text()
    assert f"add '{TRUST}'" in said, said
    (checkpoints,) = project.glob("outputs/*/*/checkpoints")
    return checkpoints.parent


def test_a_users_own_project(programs, project):
    folder = started(programs, project)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    small = ["num_samples=10", "device=cpu"]
    commands = [
        ["ddpm-sample", f"ckpt_path={checkpoint}", "num_samples=2", "sampler.num_steps=4", "device=cpu"],
        [
            "ddpm-evaluate",
            f"ckpt_path={checkpoint}",
            *small,
            "sampler.num_steps=4",
            "features.num_steps=1",
            "bits_images=1",
        ],
        ["ddpm-train", f"resume={folder}"],
        ["ddpm", "likelihood", checkpoint, "--num-images", "1"],
        ["ddpm", "export", checkpoint, "exported", "--format", "safetensors"],
        ["ddpm-train", "trainer.max_steps=1", f"init_from={checkpoint}", "hydra.run.dir=new"],
    ]
    before = sorted(project.rglob("*"))
    refused = [COMMANDS[command[0]] + [*map(str, command[1:])] for command in commands]
    for start, result in zip(
        refused, start_all([{"argv": argv, "cwd": str(project)} for argv in refused]), strict=True
    ):
        assert result["code"] == 1, start
        (line,) = [line for line in result["err"].splitlines() if line.startswith("error: ")]
        assert "trust=[mylab]" in line
        assert "mylab." in line
    left = {path for path in {*project.rglob("*")} - {*before} if "__pycache__" not in path.parts and path.is_file()}
    assert not left, left
    named = done(forked(programs, "ddpm-train", f"resume={folder}", TRUST, cwd=project))
    assert "Finished: 40 steps" in named
    assert f"'{TRUST}'" in named
    done(forked(programs, *commands[0], TRUST, cwd=project))
    own = ["--config-dir", "conf", "sampler=momentum"]
    done(
        forked(
            programs, "ddpm-sample", f"ckpt_path={checkpoint}", "num_samples=2", *own, TRUST, "device=cpu", cwd=project
        )
    )
    done(forked(programs, *commands[1], TRUST, cwd=project))
    done(forked(programs, *commands[3], "--trust", "mylab", cwd=project))
    done(forked(programs, *commands[4], cwd=project, DDPM_TRUST="mylab"))
    assert "report.html" in done(forked(programs, "ddpm", "report", folder, cwd=project))
    new = ["experiment=mine", *QUICK, "trainer.max_steps=1", f"init_from={checkpoint}", "hydra.run.dir=new", TRUST]
    done(forked(programs, "ddpm-train", "-cd", "conf", *new, cwd=project))


def test_an_undisturbed_run_of_the_project_is_the_resumed_one(programs, project):
    import torch

    folder = started(programs, project)
    done(forked(programs, "ddpm-train", f"resume={folder}", TRUST, cwd=project))
    whole = ["experiment=mine", *QUICK, "hydra.run.dir=whole"]
    done(forked(programs, "ddpm-train", "--config-dir", "conf", *whole, cwd=project))
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (folder, project / "whole")]
    assert "loss.log_variance.weight" in states[0]["state_dict"]
    assert "loss.log_variance.weight" not in states[0]["ema_state_dict"]
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(states[0][part][name], states[1][part][name]) for name in states[1][part])
    assert states[0]["state_dict"]["loss.log_variance.weight"].abs() > 0  # it was trained


def test_help_and_mistakes_know_the_projects_choices(programs, project):
    text = done(run(programs, "ddpm-train", "--config-dir", "conf", "--help", cwd=project))
    assert "mixer" in text
    assert "white bars, upright or level" in text
    result = run(programs, "ddpm-train", "--config-dir", "conf", "model=mixr", cwd=project)
    assert result.returncode == 1
    assert "did you mean model=mixer?" in result.stderr
    line = "ddpm-train --config-dir conf model=mi"
    env = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_WORDBREAKS": ""}
    assert done(run(programs, "ddpm-train", "-sc", "query=bash", cwd=project, **env)) == "model=mixer\n"


def test_a_sweep_of_the_project_is_resumed(project):
    """Its jobs have two processes, which are told the config folder; the second job had been killed."""
    few = [text for text in QUICK if "max_steps" not in text and "val_check" not in text]
    steps = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer=ddp_cpu"]
    start = ["--config-dir", "conf", "-m", "experiment=mine", *few, *steps, "seed=0,1", "hydra.sweep.dir=sweep"]
    result = script("train.py", *start, cwd=project)
    assert result.returncode == 0, result.stderr
    second = project / "sweep" / "1_seed_1"
    (second / "summary.json").unlink()
    again = ["--config-dir=conf", "-m", "resume=sweep"]
    refused = script("train.py", *again, cwd=project)
    assert refused.returncode == 1
    assert "add trust=[mylab]" in refused.stderr
    result = script("train.py", *again, TRUST, cwd=project)
    assert result.returncode == 0, result.stderr
    assert (second / "summary.json").exists()
