"""Weights & Biases, which no run waits for and no run fails with."""

import logging
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning.errors import brief
from ddpm_lightning.ranges import require_one_of

__all__ = ["WandbLogger"]

log = logging.getLogger(__name__)

_AXIS = "trainer/global_step"

# Of W&B's own settings what it is started with, where the environment does not say otherwise: seconds until it is
# given up at the start and at the end, and silence, since what a user should know is said here.
_SETTINGS = {
    "WANDB_SILENT": "true",
    "WANDB_INIT_TIMEOUT": "15",
    "WANDB_FINISH_TIMEOUT": "60",
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}

# By whose names W&B has kept its keys; the newer ones take the older's.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")

# What a run's summary keeps of the metrics whose names begin so; of all others the last value.
_SUMMARIES = {
    "val/": "min,last",
    "train/loss": "min,last",
    "mse_at_log_snr/": "min,last",
    "train/images_per_second": "max,last",
    "train/grad_norm": "max,last",
}


class WandbLogger(LightningWandbLogger):
    """Lightning's logger, whose failures end in one warning, and not in the run's end.

    Where W&B's servers cannot be used, for want of a key or of a network, the run is kept offline; where its files cannot be written either, the
    run goes on without it. The only axis is `trainer/global_step`. Each wait has a bound: `WANDB_INIT_TIMEOUT` and
    `WANDB_FINISH_TIMEOUT` seconds.

    Args:
        project: the project.
        name: the run's name.
        save_dir: W&B's files go to `<save_dir>/wandb`.
        offline: whether nothing is sent; None for where no key is found.
        log_model: whether checkpoints become artifacts: True for the best and the last at the end, "all" for each when it is saved.
        group: the runs' group.
        job_type: what the run does, where that is not training.
        tags: the run's tags.
        entity: the team; None for the account's own.
        id: the run's id, by which its parts are joined.

    Raises:
        UserError: for another value of log_model or offline.
    """

    def __init__(
        self,
        project: str,
        *,
        name: str | None = None,
        save_dir: str | Path = ".",
        offline: bool | None = None,
        log_model: bool | Literal["all"] = False,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        entity: str | None = None,
        id: str | None = None,
    ):
        require_one_of("log_model", log_model, (True, False, "all"))
        require_one_of("offline", offline, (True, False, None), hint="null is offline where no key is found")
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
        """W&B's run on rank zero, started when it is first asked for; a dummy on other ranks, and once W&B was given up."""
        if self._experiment is None and not self._given_up:
            self._start()
        return self._experiment

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
        """Take note of a checkpoint: its callback has a `file`, and an `alias` for it."""
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
        """End the run, and say where it is to be seen, or which command uploads it; None where there is none."""
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
        uploads = {"WANDB_FINISH_TIMEOUT": "1800"} if self._log_model else {}  # gigabytes take their time
        for name, value in {**_SETTINGS, **uploads}.items():
            os.environ.setdefault(name, value)
        mode = os.environ.get("WANDB_MODE", "online").lower()  # "disabled" and "offline" are W&B's own affair
        errors, offline = [], bool(self._offline)
        if not offline and mode == "online" and not _has_key():  # where there is a terminal, W&B would ask, and wait
            errors, offline = ["no API key found"], True
        for attempt in [True] if offline else [False, True]:
            try:
                self._experiment = self._begin(offline=attempt)
                break
            except Exception as error:  # as in `_try`
                errors.append(brief(error))
                _end_service()
        if self._experiment is None:
            self._give_up("; ".join(errors))
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
            # Offline, the id alone joins the parts of a run that goes on.
            run = wandb.init(**given, mode="offline") if offline else wandb.init(**given, resume="allow")
        for handler in logging.getLogger("wandb").handlers:
            # Or it prints pages where a disk is full; `_check_room` finds that out.
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        run.define_metric(_AXIS)
        run.define_metric("*", step_metric=_AXIS, step_sync=True)
        self._check_room()
        return run

    def _define(self, metrics: Mapping[str, float]) -> None:
        for key in metrics.keys() - self._defined:
            self._defined.add(key)
            for start, summary in _SUMMARIES.items():
                if key.startswith(start):  # by its whole name: of two patterns W&B takes but one
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
        _ = self.experiment  # which starts it
        if self._given_up:
            return
        try:
            self._check_room()
            call(*args, **kwargs)
        except Exception as error:  # W&B's package raises errors of many types, and none of them is worth a run
            self._give_up(brief(error))

    def _check_room(self) -> None:
        """W&B writes in a process of its own, and says nothing where it cannot."""
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
    """End W&B's own process, which holds the id of a run that it could not begin, and what it had begun."""
    with suppress(Exception):
        import wandb

        wandb.teardown(exit_code=1)


@contextmanager
def _no_log_errors() -> Iterator[None]:
    """Python prints a traceback for each line that a log file does not take, and W&B's may lie on a full disk."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _has_key() -> bool:
    """Whether W&B could log in without asking: by a key in the environment or in the netrc file, or by a token's file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    try:
        known = netrc(os.environ.get("NETRC"))
        return any(known.authenticators(host) is not None for host in ([own] if own else _HOSTS))
    except (OSError, NetrcParseError):
        return False
