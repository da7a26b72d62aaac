"""What the entry points share: from the command line to Hydra, and from an error to one sentence; nothing heavy to import."""

import atexit
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning import environment
from ddpm_lightning.cli import completion, help, menu, own_packages
from ddpm_lightning.cli.launch import check_sweep_allowed, end_with_parent, split_flags
from ddpm_lightning.cli.mistakes import is_foreseen, sentence
from ddpm_lightning.cli.pipes import outlive_readers
from ddpm_lightning.cli.resume import complete_arguments
from ddpm_lightning.cli.sweeps import Sweep
from ddpm_lightning.cli.typed import as_hydra_reads
from ddpm_lightning.cli.words import check_typed
from ddpm_lightning.records.moved import targets_in
from ddpm_lightning.run_folder import SWEEP, remove_unbegun
from ddpm_lightning.terminal import Activity

__all__ = ["run", "sentence", "user_errors"]


def run(program: Callable[[DictConfig], Any]) -> None:
    """Run a program by the config of its name; a user's error is printed as one sentence, and the exit code is 1.

    With DDPM_TRACEBACK=1 in the environment its traceback is shown instead.
    """
    outlive_readers()
    name, reading = program.__name__, Activity("Reading the config")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and end the process itself
    environment.update(script=os.path.abspath(sys.argv[0]), program=name)
    sys.argv[1:] = as_hydra_reads(_without_trust(sys.argv[1:]))
    own_packages.allow(environment.trusted())
    try:
        if _is_answered(sys.argv[1:], program):
            return
        end_with_parent()
        check_sweep_allowed(sys.argv[1:])
        reading.open()
        check_typed(sys.argv[1:])
        flags, overrides = split_flags(complete_arguments(sys.argv[1:]))
        sys.argv[1:] = [*flags, *overrides]  # Hydra's parser does not read overrides before a flag and behind it
        hydra.main(version_base="1.3", config_path=str(menu.conf_folder()), config_name=name)(
            _after(reading, program)
        )()
        if (sweep := Sweep.started) and (failures := sweep.failures()):
            sys.exit(f"error: {failures}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _end(error)
    finally:
        reading.close()
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # other libraries' ends are not to be broken off


def _after(reading: Activity, program: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """The program, which begins when its config has been read."""

    @functools.wraps(program)
    def begin(config: DictConfig) -> Any:
        reading.close()
        return program(config)

    return begin


@contextmanager
def user_errors(config: DictConfig) -> Iterator[None]:
    """End with a user's error before Hydra, which would add lines of its own; in a sweep the job fails, and the others run.

    What the user's config names can be imported from the working folder.
    """
    own_packages.allow(targets_in(OmegaConf.to_container(OmegaConf.create(config), resolve=False)))
    started = HydraConfig.get()
    in_a_sweep = started.mode == RunMode.MULTIRUN
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_foreseen(error):
            remove_unbegun(Path(started.runtime.output_dir), ".hydra", "train.log", job=in_a_sweep)
        if in_a_sweep and Sweep(Path(started.sweep.dir)).continues_after(error, started):
            return
        if in_a_sweep or not is_foreseen(error):
            raise
        _end(error)


def _without_trust(argv: Sequence[str]) -> list[str]:
    """A command line without its `trust=[...]`, which is kept for this process and those that it starts, and written to no record."""
    kept = [argument for argument in argv if not argument.lstrip("+").startswith("trust=")]
    for argument in (argument for argument in argv if argument not in kept):
        names = re.split(r"[\s,'\"\[\]]+", argument.partition("=")[2])
        environment.update(trust=[name for name in names if name not in ("", "null")])
    return kept


def _is_answered(argv: Sequence[str], program: Callable[..., Any]) -> bool:
    """Print the help or the shell's completions, if they are asked for."""
    if {*help.FLAGS} & {*argv}:
        help.show_help(program.__name__, (sys.modules[program.__module__].__doc__ or "").partition(":")[0])
    elif {*completion.FLAGS} & {*argv}:
        print(completion.answer_shell(argv))
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
