"""Errors that a user can fix."""

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

__all__ = ["STOP_SIGNALS", "Diverged", "Stopped", "UserError", "below", "brief", "optional_package", "typed_as_options"]


STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class UserError(ValueError):
    """One sentence that names the setting, its value and the fix; the entry points print it and exit with 1."""


class Diverged(UserError):
    """A loss, gradient, weight or metric became NaN or infinite in training.

    Args:
        what: the value that diverged.
        step: the optimizer step at which it diverged.
        saved: a hint on earlier checkpoints for the message.
    """

    def __init__(self, what: str, step: int, saved: str = ""):
        super().__init__(
            f"{what} became NaN or infinite at step {step}; {saved}try a lower optimizer.lr, a lower trainer.gradient_clip_val, "
            "a longer lr_scheduler.total_iters, or trainer.precision=32-true"
        )
        self.what, self.step = what, step


class Stopped(Exception):
    """The run was stopped by one of STOP_SIGNALS and can be resumed.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def brief(error: BaseException) -> str:
    """An error's type and up to 240 characters of its text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


@contextmanager
def below(key: str, shared: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Prefix errors about values in a part of the config with its key: `sampler.num_steps must be ...`.

    Args:
        key: the part.
        shared: settings of the part that are set elsewhere in the config, each with its key there.

    Raises:
        UserError: in place of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        setting = re.match(r"([a-z_][\w.]*(?:\[\d+\])?)(?:=| must )", text)
        if setting and setting[1] in shared:
            raise UserError(shared[setting[1]] + text[setting.end(1) :]) from error
        prefix = "" if text.startswith((f"{key}=", f"{key}.")) else f"{key}." if setting else f"{key}: "
        raise UserError(prefix + text) from error


@contextmanager
def typed_as_options(*names: str) -> Iterator[None]:
    """Name these settings in errors as they are typed: `--steps must be ...`."""
    try:
        yield
    except UserError as error:
        found = re.match(r"(\w+)(?= must )", str(error))
        if found and found[1] in names:
            raise UserError(f"--{error}") from error
        raise


@contextmanager
def optional_package(name: str, extra: str, *, needed_by: str) -> Iterator[None]:
    """Import an optional package within this context.

    Args:
        name: the package.
        extra: the extra of ddpm_lightning that installs the package.
        needed_by: the setting that requires the package, such as "data=huggingface".

    Raises:
        UserError: in place of an ImportError, with the install command.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{needed_by} requires the package {name}: pip install 'ddpm_lightning[{extra}]'") from error
