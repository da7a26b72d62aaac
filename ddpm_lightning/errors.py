"""Errors that are not the program's own."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["STOP_SIGNALS", "Diverged", "Stopped", "UserError", "below", "brief", "optional_package"]


STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class UserError(ValueError):
    """One sentence that names the setting, its value and the fix; the entry points print it and exit with 1."""


class Diverged(UserError):
    """A number of the training, its loss or what follows from it, became NaN or infinite.

    Args:
        what: the number.
        step: the optimizer step after which it was so.
        saved: what is said of earlier checkpoints.
    """

    def __init__(self, what: str, step: int, saved: str = ""):
        super().__init__(
            f"{what} became NaN or infinite at step {step}; {saved}try a lower optimizer.lr, a lower trainer.gradient_clip_val, "
            "a longer lr_scheduler.total_iters, or trainer.precision=32-true"
        )
        self.what, self.step = what, step


class Stopped(Exception):
    """One of STOP_SIGNALS asked the run to end, and it has saved what it needs to resume.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def brief(error: BaseException) -> str:
    """Another package's error: its type and at most 240 characters of its text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


@contextmanager
def below(key: str) -> Iterator[None]:
    """Put the key of a part of the config before what is wrong with a value in it: `sampler.num_steps must be ...`.

    Raises:
        UserError: in place of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        names_a_setting = re.match(r"[a-z_][\w.]*(=| must )", text)
        raise UserError(f"{key}{'.' if names_a_setting else ': '}{text}") from error


@contextmanager
def optional_package(name: str, extra: str, *, needed_by: str) -> Iterator[None]:
    """Import a package that is installed on demand.

    Args:
        name: the package.
        extra: the extra of ddpm_lightning that installs it.
        needed_by: the setting that requires it, such as "data=huggingface".

    Raises:
        UserError: with the command that installs it, in place of an ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{needed_by} requires the package {name}: pip install 'ddpm_lightning[{extra}]'") from error
