"""`resume=` on the command line, before Hydra reads it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_lightning.cli import menu
from ddpm_lightning.cli.launch import agreed, is_first, is_sweep, srun_tasks
from ddpm_lightning.cli.sweeps import planned
from ddpm_lightning.environment import SCRIPT, quoted
from ddpm_lightning.errors import UserError
from ddpm_lightning.records import Vocabulary, recorded_sweep
from ddpm_lightning.run_folder import (
    SWEEP,
    has_finished,
    hold,
    is_going_on,
    refuse_links_out,
    unfinished_runs,
)

__all__ = ["complete_arguments"]

_DONE = "DDPM_RESUMED"  # tells the processes that this one starts that their command line is complete


def complete_arguments(argv: Sequence[str]) -> list[str]:
    """The command line with what `resume=` leaves unsaid: the folder, and the overrides that it was started with.

    `resume=auto` is the newest unfinished run, or the one that `hydra.run.dir` names; with `-m` it is the newest sweep of
    which not all jobs have finished. Else it is a run's folder, or a sweep's. Of what a folder records only names of our own and
    plain values are put on the command line, see `records.Vocabulary`. The folder of a run is held from here on.

    Raises:
        UserError: where there is no such run or sweep, another process is at work in it, or a sweep's record asks for more.
    """
    asked = _value_of("resume", argv)
    run_dir = _value_of("run_dir", argv) or _value_of("hydra.run.dir", argv)
    if os.environ.get(_DONE) and os.environ[_DONE] == asked:
        return list(argv)
    if asked in (None, "null", ""):
        return list(argv)
    if is_sweep(argv) or (Path(asked) / SWEEP).exists():
        return _complete_sweep(asked, argv)
    folder = Path(agreed("resume", lambda: str(_folder(asked, run_dir))))
    if is_first():
        if (folder / "train.log").is_dir():
            raise UserError(f"{folder / 'train.log'} is a folder, and the run's log file goes there: remove it")
        refuse_links_out(folder)
        hold(folder)
    from ddpm_lightning.runs.resume_point import newest_point  # torch is imported only when there is work

    typed = [argument for argument in argv if not argument.startswith(("resume=", "hydra.run.dir=", "run_dir="))]
    flags = [argument for argument in typed if argument.startswith("-")]
    overrides = [argument for argument in typed if not argument.startswith("-")]
    os.environ[_DONE] = str(folder)
    before = _vocabulary("train", hydra=False).replayable(newest_point(folder, warn=False).overrides)
    # Hydra's record of the overrides is left as it is: training adds to it when it has found nothing wrong.
    resume = [
        f"resume={quoted(folder)}",
        f"hydra.run.dir={quoted(folder)}",
        "hydra.output_subdir=null",
        "hydra.mode=RUN",
    ]
    return [*flags, *before, *overrides, *resume]


def _complete_sweep(asked: str, argv: Sequence[str]) -> list[str]:
    """A sweep once more in its folder: its jobs see for themselves how far they came."""
    folder = Path(asked) if asked != "auto" else _newest_sweep()
    if not (folder / SWEEP).exists():
        raise UserError(
            f"resume={asked} holds no {SWEEP}, and is no sweep's folder: give multirun/<day>/<time>, or leave -m away"
        )
    refuse_links_out(folder)
    sweep = recorded_sweep(folder)
    typed = [
        argument for argument in argv if not argument.startswith("resume=") and argument not in ("-m", "--multirun")
    ]
    before = [text for kind in ("hydra", "task") for text in sweep["overrides"][kind]]
    before = [text for text in before if not text.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    words = _vocabulary(sweep["job"].get("config_name"), hydra=True)
    for text in before:
        if text not in typed and (why := words.objection(text)):
            raise UserError(
                f"{folder / SWEEP} records {text!r:.200}, which is not replayed from a file, since {why}: if you trust it, type it "
                f"yourself beside resume={folder}"
            )
    more = [text for text in typed if text not in before]  # the jobs keep their order, and so their numbers
    return ["-m", *before, *more, f"hydra.sweep.dir={quoted(folder)}"]


def _newest_sweep() -> Path:
    """Of the sweeps of train.py in multirun/, the last one that was begun and has not finished all its jobs."""
    for record in sorted(Path("multirun").glob(f"**/{SWEEP}"), key=lambda path: path.stat().st_mtime, reverse=True):
        sweep = recorded_sweep(record.parent)
        runs = [config.parent for config in record.parent.glob("*/config.yaml")]
        if any(map(is_going_on, [record.parent, *runs])) or sweep["job"].get("config_name") != "train":
            continue
        if sum(has_finished(run) for run in runs) < planned(sweep)[1]:
            return record.parent
    raise UserError(
        "resume=auto finds no unfinished sweep in multirun/: leave it away to start one, or name it, as in resume=multirun/<day>/<time>"
    )


def _vocabulary(script: Any, *, hydra: bool) -> Vocabulary:
    conf = _conf()
    if script not in menu.scripts(conf):
        raise UserError(f"the folder's record is of {script!r:.50}, which is no script of ours: choose another folder")
    groups = {group.name for group in menu.groups(conf, script)}
    return Vocabulary(groups, {setting.key for setting in menu.settings(conf, script)}, hydra=hydra)


def _conf() -> Path:
    """The configs beside the script that was started, or else ours."""
    beside = Path(os.environ.get(SCRIPT, "")).resolve().parent / "conf"
    return beside if (beside / "train.yaml").is_file() else Path(__file__).parents[2] / "conf"


def _folder(asked: str, run_dir: str | None) -> Path:
    if asked != "auto":
        folder = Path(asked)
    elif run_dir is not None:
        folder = Path(run_dir)
    elif srun_tasks() != 1:
        raise UserError(
            "resume=auto under srun needs hydra.run.dir=..., since each task would look for a run by itself"
        )
    else:
        found = unfinished_runs("outputs", "multirun")
        if not found:
            raise UserError(
                "resume=auto finds no unfinished run in outputs/ or multirun/: leave it away to start a run, or name one, "
                "as in resume=outputs/<day>/<time>"
            )
        folder = found[0]
    if not (folder / "config.yaml").exists():
        raise UserError(
            f"resume={asked}: {folder} is no run folder: it holds no config.yaml; give one that train.py made"
        )
    return folder


def _value_of(key: str, argv: Sequence[str]) -> str | None:
    values = [argument.removeprefix(f"{key}=") for argument in argv if argument.startswith(f"{key}=")]
    return values[-1].strip("'\"").replace(r"\'", "'") if values else None
