"""`resume=` on the command line, before Hydra reads it."""

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.launch import agreed, is_sweep, srun_tasks
from ddpm_lightning.run_folder import refuse_used, unfinished_runs

__all__ = ["complete_arguments"]

_DONE = "DDPM_RESUMED"  # tells the processes that this one starts that their command line is complete


def complete_arguments(argv: Sequence[str]) -> list[str]:
    """The command line with what `resume=` leaves unsaid: the run's folder, and the overrides that it was started with.

    `resume=auto` is the newest unfinished run, or the one that `hydra.run.dir` names; else it is a run folder.

    Raises:
        UserError: where there is no such run.
    """
    asked, run_dir = _value_of("resume", argv), _value_of("hydra.run.dir", argv)
    if asked in (None, "null", ""):
        if run_dir is not None and _is_first():
            refuse_used(Path(run_dir), "config.yaml")  # before Hydra writes its own record there
        return list(argv)
    if os.environ.get(_DONE) == asked:
        return list(argv)
    if is_sweep(argv):
        raise UserError(f"resume={asked} goes on with one run, and cannot be swept: leave -m away")
    folder = Path(agreed("resume", lambda: str(_folder(asked, run_dir))))
    earlier = folder / ".hydra" / "overrides.yaml"
    before = list(OmegaConf.load(earlier)) if earlier.exists() else []
    typed = [argument for argument in argv if not argument.startswith(("resume=", "hydra.run.dir="))]
    flags = [argument for argument in typed if argument.startswith("-")]
    overrides = [argument for argument in typed if not argument.startswith("-")]
    os.environ[_DONE] = str(folder)
    before = [override for override in before if not override.lstrip("+~").startswith(("resume=", "hydra"))]
    # Hydra's record of the overrides is left as it is: training adds to it when it has found nothing wrong.
    resume = [f"resume='{folder}'", f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"]
    return [*flags, *before, *overrides, *resume]


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
    return values[-1].strip("'\"") if values else None
