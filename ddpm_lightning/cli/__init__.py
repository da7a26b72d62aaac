"""The command line: from what a user types to a config that Hydra reads, and from errors to sentences."""

from ddpm_lightning.cli.entry import run, user_errors

__all__ = ["run", "user_errors"]
