"""What the entry points share: errors as one sentence, folder names, and nothing heavy to import."""

import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning.errors import UserError

__all__ = ["run"]


def run(main: Callable[[], Any]) -> None:
    """Run a Hydra entry point; what the user can mend is printed as one sentence, and the exit code is 1.

    With HYDRA_FULL_ERROR=1 in the environment the whole traceback is shown instead.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and "LOCAL_RANK" not in os.environ:
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, where it would print and end the process itself
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.stdout.flush()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(1)


def sentence(error: BaseException) -> str:
    """One sentence that names the key, its value and the way out."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist: {_way_out(choice, error.options)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None and cause.key is not None:
        key = cause.full_key or str(cause.key)
        if "not in struct" in str(cause):
            return f"there is no key {key}: {_way_out(str(cause.key), map(str, cause.parent_node))}"
    text = str(error)
    if unknown := re.match(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"there is no config group {unknown[1]}: see the groups in `python train.py --help`"
    if cause is not error:
        text = f"{text}: {cause}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(
        line for line in lines if not line.startswith(("full_key:", "object_type=", "To append", "Error merging"))
    )


def _way_out(wrong: str, valid: Iterable[str]) -> str:
    names = sorted(set(valid))
    near = get_close_matches(wrong, names, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"(choose from {', '.join(names)})"


def _slug(text: str) -> str:
    """A folder name of at most 80 characters from a list of overrides, without what a shell or Hydra would read."""
    return re.sub(r"[^A-Za-z0-9.,+-]+", "_", text).strip("_")[:80]


OmegaConf.register_new_resolver("slug", _slug, replace=True)
