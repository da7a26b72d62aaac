"""Validation of numbers and choices, with uniform error messages."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from ddpm_lightning.errors import UserError

__all__ = ["is_integer", "require", "require_one_of", "shown", "within"]

_WORDS = {
    "1..": "a positive integer",
    "0..": "a non-negative integer",
    "(0, inf)": "a positive number",
    "[0, inf)": "a non-negative number",
}


def require(name: str, value: Any, interval: str, *, optional: bool = False, hint: str = "") -> None:
    """Refuse a value outside an interval: `num_steps must be a positive integer, got 2.5`.

    Args:
        name: the setting, as the user types it.
        value: the value.
        interval: an interval of numbers, "(0, 1]" or "[0, inf)", or of integers, "1..1000" or "1.." (unbounded).
        optional: whether None is allowed.
        hint: appended to the message, such as the reason.

    Raises:
        UserError: for any other value, NaN and booleans among them.
    """
    if (optional and value is None) or within(value, interval):
        return
    low, _, high = interval.partition("..")
    integers = f"an integer from {low} to {high}" if high else f"an integer of at least {low}"
    words = _WORDS.get(interval) or (integers if ".." in interval else f"a number in {interval}")
    if (
        not hint
        and ".." in interval
        and isinstance(value, float)
        and value.is_integer()
        and within(int(value), interval)
    ):
        hint = f"write {int(value)}"
    raise UserError(f"{name} must be {words}{' or null' * optional}, got {shown(value)}{hint and f': {hint}'}")


def require_one_of(name: str, value: Any, choices: Sequence[Any], *, hint: str = "") -> None:
    """Refuse a value that is not one of the choices: `weights must be ema or raw, got 'x'`.

    Args:
        name: the setting, as the user types it.
        value: the value.
        choices: values of any type; True is not 1.
        hint: appended to the message.

    Raises:
        UserError: for any other value.
    """
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    names = [choice if isinstance(choice, str) else shown(choice) for choice in choices]
    listed = (
        " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
        or "left out, since there is nothing to choose from"
    )
    raise UserError(f"{name} must be {listed}, got {shown(value)}{hint and f': {hint}'}")


def within(value: Any, interval: str) -> bool:
    """Whether a value is a number in an interval, see `require`; NaN never is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    number: Any = value
    if ".." in interval:
        low, _, high = interval.partition("..")
        return float(low) <= number <= float(high or "inf") and isinstance(value, Integral)
    low, high = interval[1:-1].split(",")
    above = number > float(low) if interval[0] == "(" else number >= float(low)
    return bool(above and (number < float(high) if interval[-1] == ")" else number <= float(high)))


def is_integer(value: Any, interval: str = "1..") -> bool:
    """Whether a value is an integer in an interval, see `require`."""
    return isinstance(value, Integral) and within(value, interval)


def shown(value: Any) -> str:
    """Format a value as in YAML, with strings in quotes."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)
