"""Whether a setting is a number, and one of those that make sense."""

from numbers import Integral, Real
from typing import Any

__all__ = ["check_seed", "is_whole", "within"]


def within(value: Any, interval: str) -> bool:
    """Whether a value is a number of an interval, which is written as in mathematics: "(0, 1]", "[0, inf)"; NaN is of none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    number: Any = value
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    return bool(above and (number < high if interval[-1] == ")" else number <= high))


def is_whole(value: Any, interval: str = "[1, inf)") -> bool:
    """Whether a value is a whole number of an interval."""
    return isinstance(value, Integral) and within(value, interval)


def check_seed(seed: Any) -> None:
    """Refuse what is no seed.

    Raises:
        ValueError: for anything but a whole number, 0 or more.
    """
    if not is_whole(seed, "[0, inf)"):
        raise ValueError(f"seed={seed} is no seed: give a whole number, 0 or more")
