"""Evaluate every finished run of a sweep as `evaluate.py` does, and add the results to the sweep's report."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddpm_lightning.cli import evaluate
from ddpm_lightning.cli.sweeps import Sweep
from ddpm_lightning.errors import UserError
from ddpm_lightning.records.yaml import quoted
from ddpm_lightning.run_folder import checkpoints_in, configs_below, has_finished, refuse_pipes

__all__ = ["evaluate_sweep"]

_INTERRUPTED = 130


def evaluate_sweep(folder: Path, overrides: Sequence[str]) -> Iterator[str]:
    """Run a sweep of `evaluate.py` over a folder's finished runs, which resumes if interrupted, and yield the report's lines.

    Args:
        folder: a sweep, or another folder of runs.
        overrides: settings and flags of `evaluate.py`; a launcher and several values for a setting are allowed, too.

    Raises:
        UserError: if there is no finished run with a checkpoint, or `ckpt_path` is given.
        SystemExit: for a refused setting; after the report, if an evaluation failed.
    """
    if any(override.lstrip("+").startswith("ckpt_path=") for override in overrides):
        raise UserError("ckpt_path must be left out, since evaluate-sweep evaluates every run in the folder")
    refuse_pipes(folder)
    runs = sorted(path.parent for path in configs_below(folder))
    finished = [run for run in runs if has_finished(run) and checkpoints_in(run / "checkpoints")]
    if not finished:
        raise UserError(f"the folder must contain finished runs of train.py with checkpoints, got {folder}")
    print(f"Evaluating {len(finished)} of the {len(runs)} runs in {folder}", flush=True)
    paths = ",".join(quoted(run) for run in finished)
    sys.argv[1:] = ["-m", f"ckpt_path={paths}", "~hydra.callbacks.comparison", *overrides]
    code = _exit_code()
    if code and (Sweep.started is None or code == _INTERRUPTED):
        sys.exit(code)
    from ddpm_lightning.report import report_sweep  # torch is imported only when there is work

    yield ""
    yield from report_sweep(folder)
    if code:
        sys.exit(code)


def _exit_code() -> str | int | None:
    try:
        evaluate.main()
    except SystemExit as end:
        return end.code
    return None
