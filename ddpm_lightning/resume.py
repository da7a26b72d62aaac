"""`resume=` on the command line, before Hydra reads it."""

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.launch import agreed, is_sweep, quoted, srun_tasks
from ddpm_lightning.run_folder import SWEEP, has_finished, is_going_on, refuse_used, unfinished_runs
from ddpm_lightning.sweep_plan import planned, recorded

__all__ = ["complete_arguments"]

_DONE = "DDPM_RESUMED"  # tells the processes that this one starts that their command line is complete


def complete_arguments(argv: Sequence[str]) -> list[str]:
    """The command line with what `resume=` leaves unsaid: the folder, and the overrides that it was started with.

    `resume=auto` is the newest unfinished run, or the one that `hydra.run.dir` names; with `-m` it is the newest sweep of
    which not all jobs have finished. Else it is a run's folder, or a sweep's.

    Raises:
        UserError: where there is no such run or sweep.
    """
    asked, run_dir = _value_of("resume", argv), _value_of("hydra.run.dir", argv)
    if asked in (None, "null", ""):
        if run_dir is not None and _is_first():
            refuse_used(Path(run_dir), "config.yaml")  # before Hydra writes its own record there
        return list(argv)
    if os.environ.get(_DONE) == asked:
        return list(argv)
    if is_sweep(argv) or (Path(asked) / SWEEP).exists():
        return _complete_sweep(asked, argv)
    folder = Path(agreed("resume", lambda: str(_folder(asked, run_dir))))
    earlier = folder / ".hydra" / "overrides.yaml"
    before = list(OmegaConf.load(earlier)) if earlier.exists() else []
    typed = [argument for argument in argv if not argument.startswith(("resume=", "hydra.run.dir="))]
    flags = [argument for argument in typed if argument.startswith("-")]
    overrides = [argument for argument in typed if not argument.startswith("-")]
    os.environ[_DONE] = str(folder)
    before = [override for override in before if not override.lstrip("+~").startswith(("resume=", "hydra"))]
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
    hydra = recorded(folder)
    before = [*hydra.overrides.hydra, *hydra.overrides.task]
    before = [text for text in before if not text.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    typed = [
        argument for argument in argv if not argument.startswith("resume=") and argument not in ("-m", "--multirun")
    ]
    return ["-m", *before, *typed, f"hydra.sweep.dir={quoted(folder)}"]


def _newest_sweep() -> Path:
    """Of the sweeps of train.py in multirun/, the last one that was begun and has not finished all its jobs."""
    for record in sorted(Path("multirun").glob(f"**/{SWEEP}"), key=lambda path: path.stat().st_mtime, reverse=True):
        hydra = recorded(record.parent)
        runs = [config.parent for config in record.parent.glob("*/config.yaml")]
        if any(map(is_going_on, [record.parent, *runs])) or hydra.job.config_name != "train":
            continue
        if sum(has_finished(run) for run in runs) < planned(hydra)[1]:
            return record.parent
    raise UserError(
        "resume=auto finds no unfinished sweep in multirun/: leave it away to start one, or name it, as in resume=multirun/<day>/<time>"
    )


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


def _is_first() -> bool:
    """Whether this is the first process of its run; the others may find what the first one has written."""
    return all(os.environ.get(key, "0") == "0" for key in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def _value_of(key: str, argv: Sequence[str]) -> str | None:
    values = [argument.removeprefix(f"{key}=") for argument in argv if argument.startswith(f"{key}=")]
    return values[-1].strip("'\"").replace(r"\'", "'") if values else None
