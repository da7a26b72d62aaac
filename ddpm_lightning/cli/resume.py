"""`resume=` on the command line, before Hydra reads it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ddpm_lightning import environment
from ddpm_lightning.cli import menu
from ddpm_lightning.cli.launch import agreed, is_sweep, split_flags, value_of
from ddpm_lightning.cli.sweeps import planned
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.records.yaml import Vocabulary, quoted, recorded_sweep
from ddpm_lightning.run_folder import (
    SWEEP,
    has_finished,
    hold,
    is_going_on,
    refuse_pipes,
    runs_within,
    unfinished_runs,
)
from ddpm_lightning.terminal import loading

__all__ = ["complete_arguments"]


def complete_arguments(argv: Sequence[str]) -> list[str]:
    """The command line with what `resume=` leaves unsaid: the folder, and the overrides that the run was started with.

    `resume=auto` is the newest unfinished run, or the one that `hydra.run.dir` names; with `-m` it is the newest sweep with
    unfinished jobs. Otherwise it names the folder of a run or a sweep. Of what a folder records, only names of our own and
    plain values are put on the command line, see `records.yaml.Vocabulary`. A run's folder is held from here on.

    Raises:
        UserError: where there is no such run or sweep, another process uses its folder, or a sweep's record asks for more.
    """
    asked = value_of("resume", argv)
    if asked in (None, "null", "") or environment.started_by_lightning():  # with a complete command line
        return list(argv)
    if is_sweep(argv) or (Path(asked) / SWEEP).exists():
        return _complete_sweep(asked, argv)
    return _complete_run(asked, argv)


def _complete_run(asked: str, argv: Sequence[str]) -> list[str]:
    run_dir = value_of("run_dir", argv) or value_of("hydra.run.dir", argv)
    folder = Path(agreed("resume", lambda: str(_run_folder(asked, run_dir))))
    if environment.is_first():
        refuse_pipes(folder, and_links_out=True)
        hold(folder)
    with loading():  # torch is imported only when there is work
        from ddpm_lightning.runs.resume_point import newest_point

    flags, typed = split_flags(argv)
    typed = [override for override in typed if not override.startswith(("resume=", "hydra.run.dir=", "run_dir="))]
    before = _vocabulary("train", argv, hydra=False).replayable(newest_point(folder, warn=False).overrides)
    # Hydra's record of the overrides is left as it is: training adds to it when it has found nothing wrong.
    resume = [
        f"resume={quoted(folder)}",
        f"hydra.run.dir={quoted(folder)}",
        "hydra.output_subdir=null",
        "hydra.mode=RUN",
    ]
    return [*flags, *before, *typed, *resume]


def _complete_sweep(asked: str, argv: Sequence[str]) -> list[str]:
    """A sweep once more in its folder: its jobs see for themselves how far they came."""
    folder = _found("sweep", asked, SWEEP, _unfinished_sweeps)
    refuse_pipes(folder, and_links_out=True)
    sweep = recorded_sweep(folder)
    flags, typed = split_flags(argv)
    typed = [override for override in typed if not override.startswith("resume=")]
    before = [text for kind in ("hydra", "task") for text in sweep["overrides"][kind]]
    before = [text for text in before if not text.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    words = _vocabulary(sweep["job"].get("config_name"), argv, hydra=True)
    for text in before:
        if text not in typed and (why := words.objection(text)):
            raise UserError(
                f"{folder / SWEEP} records {text!r:.200}, which is not replayed from a file, since {why}: if you trust it, repeat it "
                f"on the command line together with resume={folder}"
            )
    more = [text for text in typed if text not in before]  # the jobs keep their order, and so their numbers
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    return ["-m", *flags, *before, *more, f"hydra.sweep.dir={quoted(folder)}"]


def _run_folder(asked: str, run_dir: str | None) -> Path:
    if asked == "auto" and run_dir is None and environment.srun_tasks() != 1:
        raise UserError("resume=auto requires hydra.run.dir=... under srun, since each task would search on its own")
    asked = run_dir if asked == "auto" and run_dir is not None else asked
    return _found("run", asked, "config.yaml", lambda: unfinished_runs("outputs", "multirun"))


def _found(kind: str, asked: str, record: str, unfinished: Callable[[], Iterable[Path]]) -> Path:
    """The folder that `resume=` names, or for auto the first unfinished one."""
    folder = next(iter(unfinished()), None) if asked == "auto" else Path(asked)
    if folder is None:
        raise UserError(
            f"resume=auto found no unfinished {kind}: start one without resume=auto, or name its folder with resume=..."
        )
    wrong = "" if (folder / record).exists() else f"has no {record}" if folder.exists() else "does not exist"
    if wrong and kind == "run" and (runs := runs_within(folder)):
        wrong = f"is a folder of {len(runs)} runs: give one of them, such as resume={runs[0]}"
    if wrong := wrong or "has a folder in place of train.log" * (folder / "train.log").is_dir():
        raise UserError(f"resume must be the folder of a {kind}, got {asked}, which {wrong}")
    return folder


def _unfinished_sweeps() -> Iterator[Path]:
    """The sweeps of train.py in multirun/ that do not run now and have not finished all their jobs; newest first."""
    for record in sorted(Path("multirun").glob(f"**/{SWEEP}"), key=lambda path: path.stat().st_mtime, reverse=True):
        sweep = recorded_sweep(record.parent)
        runs = [config.parent for config in record.parent.glob("*/config.yaml")]
        if any(map(is_going_on, [record.parent, *runs])) or sweep["job"].get("config_name") != "train":
            continue
        if sum(has_finished(run) for run in runs) < planned(sweep)[1]:
            yield record.parent


def _vocabulary(program: Any, argv: Sequence[str], *, hydra: bool) -> Vocabulary:
    """What a record may say: the words of our configs, and of the folders that the user has named on this command line."""
    confs = menu.folders(argv)
    require_one_of("the program in the folder's record", str(program)[:50], menu.programs())
    groups = {group.name: menu.choices(confs, group.name) for group in menu.groups(confs, program)}
    return Vocabulary(groups, {setting.key for setting in menu.settings(confs, program)}, hydra=hydra)
