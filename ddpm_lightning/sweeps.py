"""A sweep's jobs: one that fails leaves the others alone, and at the end all that failed are named."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning.errors import Stopped, UserError
from ddpm_lightning.run_folder import FAILED_JOBS, replace_file

__all__ = ["Report", "failed_jobs", "job", "tell_sweep"]

_TELL = "DDPM_TELL_SWEEP"  # the file in which a job with processes of its own leaves its error's sentence
_failed: dict[int, dict[str, str]] = {}  # by the job's number


class Report(Callback):
    """Ends a sweep of `train.py` in a page that compares its runs, and leaves its outcome alone where that cannot be written."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            if _failed:
                with replace_file(folder / FAILED_JOBS) as file:
                    file.write(json.dumps(_failed, indent=2) + "\n")
            from ddpm_lightning.report import report_sweep  # torch and matplotlib are imported only when there is work

            print("", *report_sweep(folder), sep="\n", flush=True)
        except Exception as error:  # whatever it is, the runs are whole
            print(f"no report: {error}", file=sys.stderr, flush=True)


@contextmanager
def job(sentence: Callable[[BaseException], str]) -> Iterator[None]:
    """Note what ends a job of a sweep before its time, and go on; a signal or Ctrl-C ends the sweep, too.

    Outside a sweep, and where Hydra's launcher runs the jobs in processes of its own, errors pass through.

    Args:
        sentence: an error in one sentence.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or not hydra.launcher._target_.endswith(".BasicLauncher"):
        yield
        return
    with NamedTemporaryFile("r") as told:
        os.environ[_TELL] = told.name
        try:
            yield
        except (Exception, SystemExit) as error:
            if isinstance(error.__cause__, Stopped):
                raise
            if isinstance(error, SystemExit) and not error.code:
                return
            if not isinstance(error, UserError | OmegaConfBaseException) or "DDPM_TRACEBACK" in os.environ:
                traceback.print_exc()
            why = told.read()
            if not why:  # else the job's own process has printed it
                why = f"exit code {error.code}" if isinstance(error, SystemExit) else sentence(error)
                print(f"error: {why}", file=sys.stderr, flush=True)
            _failed[hydra.job.num] = {"overrides": " ".join(hydra.overrides.task), "why": why}
        finally:
            del os.environ[_TELL]


def failed_jobs() -> str | None:
    """How many jobs of this process's sweep failed and, a line for each, their number, overrides and error; None for none."""
    if not _failed:
        return None
    named = [f"job {number} ({job['overrides']}): {job['why']}" for number, job in _failed.items()]
    return "\n  ".join([f"{len(_failed)} of the sweep's jobs failed, the others have ended well:", *named])


def tell_sweep(sentence: str) -> None:
    """Hand this process's error to the sweep that started it, if one did."""
    if path := os.environ.get(_TELL):
        Path(path).write_text(sentence)
