"""What the entry points share: from the command line to Hydra, and from an error to one sentence; nothing heavy to import."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from ddpm_lightning import environment
from ddpm_lightning.cli import completion, help
from ddpm_lightning.cli.launch import check_sweep_allowed, end_with_parent, run_name
from ddpm_lightning.cli.mistakes import check_groups, is_foreseen, sentence
from ddpm_lightning.cli.resume import complete_arguments
from ddpm_lightning.cli.sweeps import Sweep, swept
from ddpm_lightning.run_folder import SWEEP, remove_unbegun

__all__ = ["run", "sentence", "user_errors"]


def run(main: Callable[[], Any]) -> None:
    """Run a Hydra entry point; a user's error is printed as one sentence, and the exit code is 1.

    With DDPM_TRACEBACK=1 in the environment its traceback is shown instead.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and end the process itself
    environment.update(script=os.path.abspath(sys.argv[0]))
    try:
        if _is_answered(sys.argv[1:], main):
            return
        end_with_parent()
        check_sweep_allowed(sys.argv)
        check_groups(sys.argv[1:])
        sys.argv[1:] = complete_arguments(sys.argv[1:])
        main()
        if (sweep := Sweep.started) and (failures := sweep.failures()):
            sys.exit(f"error: {failures}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _end(error)


@contextmanager
def user_errors() -> Iterator[None]:
    """End with a user's error before Hydra, which would add lines of its own; in a sweep the job fails, and the others run."""
    hydra = HydraConfig.get()
    in_a_sweep = hydra.mode == RunMode.MULTIRUN
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_foreseen(error):
            remove_unbegun(Path(hydra.runtime.output_dir), ".hydra", "train.log", job=in_a_sweep)
        if in_a_sweep and Sweep(Path(hydra.sweep.dir)).continues_after(error, hydra):
            return
        if in_a_sweep or not is_foreseen(error):
            raise
        _end(error)


def _is_answered(argv: Sequence[str], main: Callable[[], Any]) -> bool:
    """Print the help or the shell's completions, if they are asked for."""
    script = Path(sys.argv[0]).resolve()
    if {*help.FLAGS} & {*argv} and (script.parent / "conf" / f"{script.stem}.yaml").exists():
        help.show_help(script, (sys.modules[main.__module__].__doc__ or script.stem).partition(":")[0])
    elif {*completion.FLAGS} & {*argv}:
        print(completion.answer_shell(script, argv))
    else:
        return False
    return True


def _end(error: BaseException) -> NoReturn:
    """Say what is wrong, on the screen or to the sweep that started this process, and exit with 1."""
    if sweep := Sweep.started:
        remove_unbegun(sweep.folder, SWEEP)  # where it was refused before its first job
        if not is_foreseen(error) and (failures := sweep.failures()):
            sys.exit(f"error: {failures}")  # the error is what a sweeper makes of them
    error_file, is_first = environment.current().error_file, environment.is_first_on_node()
    if error_file and is_first:
        Path(error_file).write_text(sentence(error), encoding="utf-8")
    if not is_foreseen(error) or environment.shows_traceback():
        raise error
    sys.stdout.flush()
    sys.exit(f"error: {sentence(error)}" if is_first and not error_file else 1)


def _job_name(overrides: Sequence[str]) -> str:
    """A folder name of at most 80 characters from what distinguishes a job, without what a shell or Hydra would read."""
    return re.sub(r"[^A-Za-z0-9.,+-]+", "_", ",".join(swept(overrides))).strip("_")[:80]


OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("job_name", _job_name, replace=True)
OmegaConf.register_new_resolver(
    "out_channels", lambda channels, learned: 2 * channels if learned else channels, replace=True
)
