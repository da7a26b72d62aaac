"""What the entry points share: errors as one sentence, folder names, and nothing heavy to import."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning.cli.completion import answer_shell, asks_for_completion
from ddpm_lightning.cli.help import show_help, wants_help
from ddpm_lightning.cli.launch import check_preset, name_run, run_name
from ddpm_lightning.cli.mistakes import check_groups, mistake
from ddpm_lightning.cli.resume import complete_arguments
from ddpm_lightning.cli.sweeps import failed_jobs, job, remove_refused, swept, tell_sweep
from ddpm_lightning.environment import SCRIPT, TELL
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.run_folder import remove_unbegun

__all__ = ["run", "user_errors"]


_failed: list[Exception] = []


@contextmanager
def user_errors() -> Iterator[None]:
    """Hold a user's error back until Hydra has ended, which would print its own lines before it.

    In a sweep the job counts as failed, and the other jobs go on.
    """
    with job(sentence):
        try:
            yield
        except (UserError, OmegaConfBaseException, OSError) as error:
            hydra = HydraConfig.get()
            in_a_sweep = hydra.mode == RunMode.MULTIRUN
            remove_unbegun(Path(hydra.runtime.output_dir), ".hydra", "train.log", job=in_a_sweep)
            if in_a_sweep or "DDPM_TRACEBACK" in os.environ:
                raise
            _failed.append(error)


def run(main: Callable[[], Any]) -> None:
    """Run a Hydra entry point; what the user can mend is printed as one sentence, and the exit code is 1.

    With DDPM_TRACEBACK=1 in the environment the whole traceback is shown instead.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and end the process itself
    os.environ[SCRIPT] = os.path.abspath(sys.argv[0])
    script = Path(sys.argv[0]).resolve()
    if wants_help(sys.argv[1:]) and (script.parent / "conf" / f"{script.stem}.yaml").exists():
        show_help(script, (sys.modules[main.__module__].__doc__ or script.stem).partition(":")[0])
        return
    try:
        if asks_for_completion(sys.argv[1:]):
            print(answer_shell(script, sys.argv[1:]))
            return
        _end_with_parent()
        name_run()
        check_preset(sys.argv)
        check_groups(sys.argv[1:])
        sys.argv[1:] = complete_arguments(sys.argv[1:])
        main()
        if _failed:
            raise _failed[0]
        if failed := failed_jobs():
            sys.exit(f"error: {failed}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if _lacks_memory(error):
            error = UserError(
                f"the memory does not suffice ({brief(error)}): give a smaller batch size, or smaller images"
            )
        remove_refused()
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if first:
            tell_sweep(sentence(error))
        ours = isinstance(error, UserError | HydraException | OmegaConfBaseException | OSError)
        if not ours and (failed := failed_jobs()):
            sys.exit(f"error: {failed}")  # it is what a sweeper makes of them
        if "DDPM_TRACEBACK" in os.environ or not (ours or "Config group override" in str(error)):
            raise
        sys.stdout.flush()
        if first:
            print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(1)


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _end_with_parent() -> None:
    """On Linux, a process that Lightning started ends with the one that started it, whatever that one ends of."""
    started_by_lightning = os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ
    if sys.platform == "linux" and TELL in os.environ and not started_by_lightning:  # a sweep's job: it saves, and ends
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if not started_by_lightning:
        os.environ["DDPM_MAIN_PROCESS"] = str(os.getpid())
    elif sys.platform == "linux" and "DDPM_MAIN_PROCESS" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(os.environ["DDPM_MAIN_PROCESS"]):  # it ended before that
            sys.exit(1)


def sentence(error: BaseException) -> str:
    """One sentence that names the key, its value and the way out."""
    if said := mistake(error):
        return said
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}: give another path, or mend this one"
    elif cause is not error:
        text = f"{text.removeprefix('Error merging override ')}: {cause}"
    elif not isinstance(error, UserError | HydraException | OmegaConfBaseException | ValueError):
        text = f"{type(error).__name__}: {text}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(
        line for line in lines if not line.startswith(("full_key:", "object_type=", "To append", "Error merging"))
    )


def _job_name(overrides: Sequence[str]) -> str:
    """A folder name of at most 80 characters from what distinguishes a job, without what a shell or Hydra would read."""
    return re.sub(r"[^A-Za-z0-9.,+-]+", "_", ",".join(swept(overrides))).strip("_")[:80]


def _out_channels(channels: int, learned_variance: bool) -> int:
    return 2 * channels if learned_variance else channels


OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("job_name", _job_name, replace=True)
OmegaConf.register_new_resolver("out_channels", _out_channels, replace=True)
