"""What a user types, in the form that Hydra reads."""

import os
import re
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

__all__ = ["FLAGS", "as_hydra_reads"]

FLAGS = {name: action for action in get_args_parser()._actions for name in action.option_strings}  # Hydra's own


def as_hydra_reads(argv: Sequence[str]) -> list[str]:
    """A command line whose overrides Hydra takes: `--key=value` without its dashes, `~/` as the home folder, and texts in quotes.

    Quoted is what Hydra does not read as it stands, such as a path with `=`, `#` or letters of other alphabets.
    """
    parser = OverridesParser.create()
    return [_one(argument, parser) for argument in argv]


def _one(argument: str, parser: OverridesParser) -> str:
    flag, _, _ = argument.partition("=")
    if argument.startswith("--") and "=" in argument and flag not in FLAGS:
        argument = argument[2:]
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals:
        return argument
    if re.match(r"~(/|$)", value):
        value = os.path.expanduser(value)
    plain = f"{key}={value}"
    if value[:1] in tuple("[{('\"") or _is_read(plain, parser):
        return plain
    quoted = f"{key}='{_escaped(value)}'"
    return quoted if _is_read(quoted, parser) else plain


def _escaped(value: str) -> str:
    """A text between single quotes, where a backslash stands for itself unless a quote follows it."""
    return re.sub(r"(\\*)'", r"\1\1\\'", value) if not value.endswith("\\") else value + "\\"


def _is_read(override: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_override(override)
    except HydraException:
        return False
    return True
