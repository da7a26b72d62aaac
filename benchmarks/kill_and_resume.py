"""Kill and resume a run repeatedly; it must be bit-identical to an uninterrupted run.

python benchmarks/kill_and_resume.py [--kills 20] [--processes 1] [--odd] [--in-save] [--victim main] [--seed 0]
python benchmarks/kill_and_resume.py --others [--kills 20] [--seed 0]

Each kill is a SIGKILL to the main process, or to another one, at a random time after training has started or resumed:
mid-epoch, or while validating, sampling or saving. Half of the kills hit a run with gradient accumulation. With --in-save
they wait for a checkpoint's temporary file. After each kill all checkpoints in the folder must load. At the end raw and
EMA weights, optimizer, learning rate, Lightning's loops and metrics.csv (except timings) must be equal, and no process
may keep running. With --odd the runs use importance sampling, streams, FID and compilation in turn. With --others an
evaluation, the training of its classifier and a report are killed and restarted, and must write the same files as
uninterrupted ones.
"""

import argparse
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
OPTIONS = (
    "model.base_channels=8",
    "model.norm_groups=4",
    "data.batch_size=32",
    "trainer.max_steps=242",
    "trainer.log_every_n_steps=5",
    "trainer.val_check_interval=20",
    "sampler.num_steps=10",
    "callbacks.sample_grid.every_n_steps=30",
    "callbacks.trajectory.every_n_steps=40",
    "callbacks.checkpoint.every_n_train_steps=7",
    "logger=none",
)
ODD = {
    "importance draws": ["loss=vlb", "loss/times=importance", "loss.times.history=2", "schedule.num_steps=20"],
    "a stream": [
        "data=webdataset",
        "data.root={cwd}/shards",
        "data.channels=1",
        "data.image_size=[8,8]",
        "data.dataset.buffer=50",
        "callbacks.neighbors=null",
    ],
    "FID": [
        "callbacks=fid",
        "callbacks.generation_metrics.num_samples=20",
        "callbacks.generation_metrics.every_n_steps=40",
        "features.num_steps=60",
    ],
    "compiled": ["compile=true"],
}
TIMINGS = tuple(
    f"train/{name}" for name in ("wall_seconds", "images_per_second", "mfu", "host_share", "peak_memory_gib")
)
SAME = ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "loss_guard")


def train(cwd: Path, *overrides: str, log: Path) -> "subprocess.Popen[bytes]":
    return start(cwd, str(ROOT / "train.py"), *overrides, log=log)


def start(cwd: Path, *command: str, log: Path) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DDPM_CACHE": str(cwd / "cache")}
    command = (sys.executable, *command)
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def still_running(cwd: Path) -> list[int]:
    """Processes whose command line names the folder, except zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(cwd).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def has_saved(folder: Path, since: float) -> bool:
    """Whether a checkpoint has been written since then, so that training is running."""
    try:
        return any(path.stat().st_mtime > since for path in (folder / "checkpoints").glob("step_*.ckpt"))
    except FileNotFoundError:
        return True  # an old checkpoint has just been removed


def children_of(pid: int) -> list[int]:
    """The training processes started by a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        text = path.read_text()
        if f"PPid:\t{pid}\n" in text and b"train.py" in (path.parent / "cmdline").read_bytes():
            found.append(int(path.parent.name))
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMINGS} for row in csv.DictReader(file)]


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


def differences(one: Path, two: Path) -> list[str]:
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, two)]
    found = [key for key in SAME if not equal(states[0][key], states[1][key])]
    return found + ([] if rows(one) == rows(two) else ["metrics.csv"])


def loads(folder: Path) -> bool | None:
    """Whether all checkpoints in the folder load; None if the first save was interrupted, so that there is none yet."""
    found = list((folder / "checkpoints").glob("*.ckpt"))
    for path in found:
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            print(f"  damaged: {path}: {error}")
            return False
    return True if found else None


def until_killed(
    cwd: Path, folder: Path, overrides: list[str], chance: random.Random, in_save: bool, victim: str
) -> bool:
    """Start or resume the run and kill it; whether the kill came before its end."""
    log = cwd / "log.txt"
    resume = ["resume=auto", f"hydra.run.dir={folder}"] if (folder / "config.yaml").exists() else overrides
    begun = time.time()
    process = train(cwd, *resume, log=log)
    while not has_saved(folder, begun) and process.poll() is None:
        time.sleep(0.01)
    wait = time.monotonic() + chance.uniform(0, 1.5 if in_save else 5)
    while time.monotonic() < wait and process.poll() is None:
        time.sleep(0.005)
    while in_save and process.poll() is None and not list((folder / "checkpoints").glob(f".step_*.{process.pid}")):
        pass
    if process.poll() is not None:
        if process.returncode:
            print(log.read_text())
            raise SystemExit(f"the run ended by itself with {process.returncode}")
        return False
    if victim == "main":
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    other = chance.choice(children_of(process.pid))
    os.kill(other, signal.SIGKILL)
    killed = time.monotonic()
    code = process.wait(timeout=60)
    print(
        f"  process {other} was killed, the main one ended with {code} after {time.monotonic() - killed:.1f} s",
        flush=True,
    )
    if not code:
        raise SystemExit("a run that lost a process ended without an error")
    return True


def write_shards(folder: Path) -> None:
    """The digits as three shards."""
    from ddpm_lightning.data.datasets import digits

    folder.mkdir()
    images = digits().images[:, 0].numpy()
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for i in range(number * 500, number * 500 + 500):
                file = io.BytesIO()
                Image.fromarray(images[i]).save(file, format="png")
                info = tarfile.TarInfo(f"{i:05d}.png")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))


def compare(
    processes: int,
    accumulate: int,
    kills: int,
    chance: random.Random,
    in_save: bool,
    victim: str,
    what: str = "",
) -> None:
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        if what == "a stream":
            write_shards(cwd / "shards")
        odd = [text.format(cwd=cwd) for text in ODD.get(what, [])]
        options = [text for text in OPTIONS if not (what == "compiled" and text.startswith("trainer.max_steps"))]
        options += ["trainer.max_steps=120"] * (what == "compiled")
        common = [*odd, *options, "trainer=ddp_cpu" if processes > 1 else "trainer=cpu", f"trainer.devices={processes}"]
        common += [f"trainer.accumulate_grad_batches={accumulate}"]
        whole, broken = cwd / "whole", cwd / "broken"
        if train(cwd, *common, f"hydra.run.dir={whole}", log=cwd / "whole.txt").wait():
            raise SystemExit((cwd / "whole.txt").read_text())
        done, rounds, none_yet = 0, 0, 0
        while done < kills:  # if a run ends before all kills, another run takes the rest
            rounds += 1
            broken = cwd / f"broken_{rounds}"
            begin = [*common, f"hydra.run.dir={broken}"]
            while done < kills and until_killed(cwd, broken, begin, chance, in_save, victim):
                done += 1
                time.sleep(1)
                if strays := still_running(cwd):
                    raise SystemExit(f"still running after the kill: {strays}")
                whole_files = loads(broken)
                none_yet += whole_files is None
                if whole_files is False:
                    raise SystemExit(f"kill {done}: a damaged checkpoint")
            if not (broken / "config.yaml").exists():
                continue
            resume = ["resume=auto", f"hydra.run.dir={broken}"]
            if train(cwd, *resume, log=cwd / "log.txt").wait():
                raise SystemExit((cwd / "log.txt").read_text())
            found = differences(whole, broken)
            print(
                f"{what or 'plain'}, {processes} process(es), accumulation {accumulate}, run {rounds}, {done} of {kills} kills"
                f"{' inside the save' if in_save else ''}, {none_yet} before the first checkpoint: "
                + (f"DIFFERS in {', '.join(found)}" if found else "bit-identical"),
                flush=True,
            )
            if found:
                raise SystemExit(1)


def compare_others(kills: int, chance: random.Random) -> None:
    """Kill an evaluation with its classifier, and a report, at random times, and restart them until they finish."""
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        if train(cwd, *OPTIONS, "trainer=cpu", f"hydra.run.dir={cwd / 'run'}", log=cwd / "log.txt").wait():
            raise SystemExit((cwd / "log.txt").read_text())
        evaluate = [
            str(ROOT / "evaluate.py"),
            "ckpt_path=run",
            "num_samples=300",
            "shard_size=20",
            "sampler.num_steps=20",
        ]
        evaluate += ["features.num_steps=200", "bits_images=32", "reference_images=500", "device=cpu"]
        commands = {
            "the classifier": (["-m", "ddpm_lightning", "features", "data=digits", "features.num_steps=400"], "cache"),
            "the evaluation": (evaluate, "run/evaluations"),
            "the report": (["-m", "ddpm_lightning", "report", "run"], "run"),
        }
        for number, (what, (command, made)) in enumerate(commands.items()):
            began = time.monotonic()
            if start(cwd, *command, log=cwd / "log.txt").wait():
                raise SystemExit((cwd / "log.txt").read_text())
            seconds, whole = time.monotonic() - began, contents(cwd / made)
            done, at_work = 0, 0
            share = kills // 3 + (number < kills % 3)
            while done < share:
                for path in whole:
                    if what != "the report" or path.startswith("report."):
                        (cwd / made / path).unlink()
                while done < share:
                    process = start(cwd, *command, log=cwd / "log.txt")
                    try:
                        process.wait(timeout=chance.uniform(2, seconds))
                        break  # killed before its end
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
                        done += 1
                        at_work += contents(cwd / made) != whole
                if start(cwd, *command, log=cwd / "log.txt").wait():
                    raise SystemExit((cwd / "log.txt").read_text())
                after = contents(cwd / made)
                found = sorted(key for key in {*whole, *after} if whole.get(key) != after.get(key))
                print(
                    f"{what}: {done} of {share} kills: {f'DIFFERS in {found}' if found else 'the same files'}",
                    flush=True,
                )
                if found:
                    raise SystemExit(1)


def contents(folder: Path) -> dict[str, Any]:
    """The contents of the files below a folder, without times; incomplete files begin with a dot."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name == ".lock" or "samples_" in path.parts[-2] or path.suffix == ".log":
            continue  # shards of samples hold timings
        content: Any = path.read_bytes()
        if path.name.startswith("evaluation"):
            content = {**json.loads(content), "timing": None}
        if path.suffix == ".pt":
            content = {key: value.tolist() for key, value in torch.load(path, weights_only=True)["state_dict"].items()}
        found[name] = content
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--in-save", action="store_true")
    parser.add_argument(
        "--victim", choices=["main", "other"], default="main", help="other: a process started by the main one"
    )
    parser.add_argument("--odd", action="store_true", help="importance sampling, streams, FID and a compiled network")
    parser.add_argument("--others", action="store_true", help="an evaluation, its classifier and a report")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    if arguments.others:
        compare_others(arguments.kills, chance)
        return
    if arguments.odd:
        for number, what in enumerate(ODD):
            share = arguments.kills // len(ODD) + (number < arguments.kills % len(ODD))
            compare(arguments.processes, 1 + number % 2, share, chance, arguments.in_save, arguments.victim, what)
        return
    for accumulate, kills in ((1, arguments.kills - arguments.kills // 2), (2, arguments.kills // 2)):
        compare(arguments.processes, accumulate, kills, chance, arguments.in_save, arguments.victim)


if __name__ == "__main__":
    main()
