"""What a person at a terminal is told until the first result: nothing is silent for more than about two seconds."""

import functools
import sys

from ddpm_lightning import environment

__all__ = ["DATA", "SAMPLES", "TORCH", "announce"]

TORCH = "Loading PyTorch ..."
DATA = "Reading the data, building the model and trying a batch ..."
SAMPLES = "Loading the checkpoint ..."


@functools.cache
def announce(text: str) -> None:
    """Say once what takes the next seconds, on standard error and only if that is a terminal: scripts and log files stay as they are."""
    if environment.is_first() and sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
