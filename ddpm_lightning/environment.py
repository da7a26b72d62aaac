"""The environment variables by which this package's processes speak to those that they start."""

from typing import Any

from ddpm_lightning.errors import UserError

__all__ = ["JOB", "JOBS", "SCRIPT", "TELL", "quoted"]

JOB = "DDPM_JOB"  # which of a sweep's jobs this process is, for people
JOBS = "DDPM_JOBS"  # how many there are
SCRIPT = "DDPM_SCRIPT"  # the entry point that the user started
TELL = "DDPM_TELL_SWEEP"  # the file in which a job with processes of its own leaves its error's sentence


def quoted(value: Any) -> str:
    """A path as Hydra reads it back.

    Raises:
        UserError: for one that Hydra would read as another.
    """
    if "${" in str(value) or "\\" in str(value):
        raise UserError(f"{value}: a folder whose name holds ${{ or a backslash cannot be resumed: rename it")
    return "'" + str(value).replace("'", r"\'") + "'"
