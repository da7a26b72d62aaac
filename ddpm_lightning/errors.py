"""The one class of errors that are the user's to mend."""

__all__ = ["UserError"]


class UserError(Exception):
    """One sentence that names the key, its value and the way out; the entry points print it and exit with 1."""
