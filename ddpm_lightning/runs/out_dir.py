"""The folder that sample.py and evaluate.py write to."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from ddpm_lightning.errors import UserError
from ddpm_lightning.run_folder import refuse_pipes
from ddpm_lightning.runs.loading import run_dir_of
from ddpm_lightning.runs.process_group import ProcessGroup

__all__ = ["claim_out_dir", "make_out_dir", "replace_files"]


def claim_out_dir(
    config: DictConfig, checkpoint: Path, group: ProcessGroup, *, kind: str, files: re.Pattern[str]
) -> Path:
    """The folder for the results, which rank zero makes: the config's, or one in the run folder.

    Args:
        config: with out_dir and overwrite.
        checkpoint: the run's checkpoint.
        group: the processes.
        kind: the beginning of the folder's name in the run folder, "samples" or "edits".
        files: the names of the files that will be written.

    Raises:
        UserError: for a folder that holds such files already, or cannot be made.
    """
    run_dir = run_dir_of(checkpoint)
    named = None if config.out_dir is None else Path(str(config.out_dir))
    out = named or run_dir / f"{kind}_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    if group.rank == 0:
        if (found := _held(out, files)) and not config.overwrite:
            raise UserError(
                f"out_dir={out} already holds {kind}, such as {found[0].name}: give another folder, or overwrite=true to replace them"
            )
        make_out_dir(out, run_dir=None if named else run_dir)
    return out


@contextmanager
def replace_files(out: Path, files: re.Pattern[str]) -> Iterator[Path]:
    """A folder whose files replace those of these names in `out` at the end."""
    with tempfile.TemporaryDirectory(prefix=".", dir=out) as name:
        yield Path(name)
        for path in _held(out, files):
            path.unlink()
        for path in Path(name).iterdir():
            os.replace(path, out / path.name)


def _held(out: Path, files: re.Pattern[str]) -> list[Path]:
    """The files of these names in a folder."""
    return [path for path in out.glob("*") if files.fullmatch(path.name)]


def make_out_dir(out: Path, *, run_dir: Path | None = None) -> None:
    """Make the folder for the results, before the work rather than after it.

    Args:
        out: the folder.
        run_dir: the run's folder, for an `out` that the user has not named: no link may lead out of it.

    Raises:
        UserError: for a folder that cannot be made.
    """
    if run_dir is not None:
        if not out.resolve().is_relative_to(run_dir.resolve()):
            raise UserError(
                f"{out} is a link to {out.resolve()}, outside of its run's folder: remove it, or give out_dir=..."
            )
        refuse_pipes(out, and_links_out=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out_dir={out} cannot be created ({error.strerror}): give another folder") from error
