"""Weights & Biases, which never blocks a run or makes it fail."""

import logging
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning.errors import brief
from ddpm_lightning.ranges import require_one_of

__all__ = ["WandbLogger"]

log = logging.getLogger(__name__)

_AXIS = "trainer/global_step"
_NO_KEY = "no API key found"

# W&B's settings unless the environment sets them: timeouts in seconds at the start and at the end, and no output, since
# this logger reports what a user should know.
_SETTINGS = {
    "WANDB_SILENT": "true",
    "WANDB_INIT_TIMEOUT": "15",
    "WANDB_FINISH_TIMEOUT": "60",
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}

# The hosts that W&B stores its keys under; newer versions also read the older one.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")

# The summary of metrics by prefix; the last value for all others.
_SUMMARIES = {
    "val/": "min,last",
    "train/loss": "min,last",
    "mse_at_log_snr/": "min,last",
    "train/images_per_second": "max,last",
    "train/grad_norm": "max,last",
}


class WandbLogger(LightningWandbLogger):
    """Lightning's W&B logger, whose failures cause one warning and never stop the run.

    Without a key or a network, the run is kept offline; if W&B's files cannot be written either, the run continues without
    W&B. The only axis is `trainer/global_step`. Waiting is limited to `WANDB_INIT_TIMEOUT` and `WANDB_FINISH_TIMEOUT` seconds.

    Args:
        project: the project.
        name: the run's name.
        save_dir: the parent of W&B's folder `wandb`.
        offline: whether to send nothing; None is offline if no key is found.
        log_model: log checkpoints as artifacts: True for the best and last at the end, "all" for each when saved.
        group: the run's group.
        job_type: the kind of run, if not training.
        tags: the run's tags.
        entity: the team; None for the account's default.
        id: the run's ID, which joins the parts of a resumed run.

    Raises:
        UserError: for an invalid log_model or offline.
    """

    def __init__(
        self,
        project: str,
        *,
        name: str | None = None,
        save_dir: str | Path = ".",
        offline: bool | None = None,
        log_model: bool | str = False,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        entity: str | None = None,
        id: str | None = None,
    ):
        require_one_of("log_model", log_model, (True, False, "all"))
        require_one_of("offline", offline, (True, False, None), hint="null is offline if no key is found")
        super().__init__(
            name=name,
            save_dir=save_dir,
            project=project,
            id=id,
            group=group,
            job_type=job_type,
            tags=list(tags),
            entity=entity,
        )
        self._offline, self._log_model = offline, log_model
        self._experiment: Any = None
        self._given_up = False
        self._saved: dict[str, Path] = {}
        self._defined: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run on rank zero, started on first use; a dummy on other ranks and after W&B has failed."""
        if self._experiment is None and not self._given_up:
            self._start()
        return self._experiment

    @property
    def address(self) -> str | None:
        """The page of the run at W&B; None if it is offline or has not started."""
        run = self._experiment
        return None if run is None or run.disabled or run.offline else run.url

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self._try(super().log_hyperparams, params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(self._define, metrics)
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self._try(super().log_image, key, images, step, **kwargs)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self._try(super().log_video, key, videos, step, **kwargs)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Record a checkpoint: the `file` of its callback, and its `alias`."""
        if not self._log_model or not hasattr(checkpoint_callback, "alias"):
            return
        self._saved[checkpoint_callback.alias] = checkpoint_callback.file
        if self._log_model == "all":
            self._log_checkpoints()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status == "success":
            self._log_checkpoints()

    def finish(self, exit_code: int) -> str | None:
        """Finish the run, and return its URL or the command that uploads it; None without a run."""
        run, self._experiment = self._experiment, None
        if run is None or run.disabled:
            return None
        lost, self._given_up = self._given_up, True
        folder = shlex.quote(os.path.relpath(Path(run.dir).parent))
        where = f"offline; upload with: wandb sync {folder}" if run.offline else run.url
        try:
            with _no_log_errors():
                run.finish(exit_code=exit_code)
        except Exception as error:  # as in `_try`
            _end_service()
            if not lost:
                log.warning(
                    "W&B did not receive the whole run (%s): check the network and the disk, then upload the rest with "
                    "`wandb sync %s`",
                    brief(error),
                    folder,
                )
        return None if lost else where

    def _start(self) -> None:
        uploads = {"WANDB_FINISH_TIMEOUT": "1800"} if self._log_model else {}  # uploads of gigabytes take long
        for name, value in {**_SETTINGS, **uploads}.items():
            os.environ.setdefault(name, value)
        mode = os.environ.get("WANDB_MODE", "online").lower()  # W&B handles "disabled" and "offline" itself
        errors, offline = [], bool(self._offline)
        if not offline and mode == "online" and not _has_key():  # in a terminal, W&B would prompt for one
            errors, offline = [_NO_KEY], True
        for attempt in [True] if offline else [False, True]:
            try:
                self._experiment = self._begin(offline=attempt)
                break
            except Exception as error:  # as in `_try`
                errors.append(brief(error))
                _end_service()
        if self._experiment is None:
            self._give_up("; ".join(errors))
        elif errors == [_NO_KEY]:
            print(f"W&B keeps this run offline ({_NO_KEY}); logger=none turns W&B off", flush=True)
        elif errors:
            log.warning(
                "W&B runs offline (%s) and keeps the run in %s: check WANDB_API_KEY and the network, and upload it later with "
                "the command in the final message, or choose logger=none",
                "; ".join(errors),
                self._save_dir,
            )

    def _begin(self, *, offline: bool) -> Any:
        import wandb

        given = {k: v for k, v in self._wandb_init.items() if k not in ("anonymous", "resume")}
        with _no_log_errors():
            # Offline, only the ID joins the parts of a resumed run.
            run = wandb.init(**given, mode="offline") if offline else wandb.init(**given, resume="allow")
        for handler in logging.getLogger("wandb").handlers:
            # Otherwise it prints tracebacks if the disk is full, which `_check_room` detects.
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        run.define_metric(_AXIS)
        run.define_metric("*", step_metric=_AXIS, step_sync=True)
        self._check_room()
        return run

    def _define(self, metrics: Mapping[str, float]) -> None:
        for key in metrics.keys() - self._defined:
            self._defined.add(key)
            for start, summary in _SUMMARIES.items():
                if key.startswith(start):  # by full name, since W&B applies only one of two patterns
                    self.experiment.define_metric(key, step_metric=_AXIS, step_sync=True, summary=summary)

    def _log_checkpoints(self) -> None:
        saved, self._saved = self._saved, {}
        for alias, path in saved.items():
            self._try(self._log_checkpoint, path, alias)

    def _log_checkpoint(self, path: Path, alias: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model", metadata={"file": path.name})
        artifact.add_file(str(path), name="model.ckpt")
        self.experiment.log_artifact(artifact, aliases=[alias])

    def _try(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        _ = self.experiment  # starts the run
        if self._given_up:
            return
        try:
            self._check_room()
            call(*args, **kwargs)
        except Exception as error:  # W&B raises many types, and none should stop a run
            self._give_up(brief(error))

    def _check_room(self) -> None:
        """Check for disk space, since W&B's own process does not report write errors."""
        folder = Path(self._save_dir) / "wandb"
        if hasattr(os, "statvfs") and folder.is_dir() and (disk := os.statvfs(folder)).f_blocks and not disk.f_bavail:
            raise OSError(f"{folder}: no space left on the device")

    def _give_up(self, why: str) -> None:
        self._given_up = True
        log.warning(
            "W&B is disabled (%s): the run continues, and metrics.csv and samples/ hold the same data; check the disk space "
            "and permissions of %s, or choose logger=none",
            why,
            self._save_dir,
        )


def _end_service() -> None:
    """Stop W&B's service process, which holds the ID of a run that failed to start."""
    with suppress(Exception):
        import wandb

        wandb.teardown(exit_code=1)


@contextmanager
def _no_log_errors() -> Iterator[None]:
    """Suppress Python's tracebacks for W&B log files on a full disk."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _has_key() -> bool:
    """Whether W&B can log in without a prompt: with a key in the environment or netrc file, or a token file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    try:
        known = netrc(os.environ.get("NETRC"))
        return any(known.authenticators(host) is not None for host in ([own] if own else _HOSTS))
    except (OSError, NetrcParseError):
        return False
