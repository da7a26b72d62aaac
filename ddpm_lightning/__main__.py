"""Train, sample and evaluate; plot noise schedules, evaluate likelihood, train feature classifiers, export models, build reports."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning import environment
from ddpm_lightning.cli import own_packages
from ddpm_lightning.cli.entry import sentence
from ddpm_lightning.cli.mistakes import near_names
from ddpm_lightning.cli.pipes import outlive_readers
from ddpm_lightning.errors import UserError, brief, typed_as_options
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.terminal import Activity, loading

__all__ = ["main"]

_PROGRAMS = {
    "train": "train a diffusion model; the same as ddpm-train and train.py",
    "sample": "sample images from a checkpoint; the same as ddpm-sample and sample.py",
    "evaluate": "compare a checkpoint's samples with its dataset; the same as ddpm-evaluate and evaluate.py",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; a user's error is printed as one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in _PROGRAMS:  # a process of its own, which Lightning can start once more for each rank
        command = [sys.executable, "-m", f"ddpm_lightning.cli.{argv[0]}", *argv[1:]]
        if sys.platform == "win32":  # where an exec returns at once
            return subprocess.call(command)
        os.execv(sys.executable, command)
    outlive_readers()
    options = vars(_parser().parse_args(argv))
    run = options.pop("run")
    environment.update(script=os.path.abspath(sys.argv[0]), program="", trust=options.pop("trust", []))
    own_packages.allow(environment.trusted())
    try:
        for line in run(**options):
            print(line, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # what lies in a folder may be a stranger's
        if environment.shows_traceback():
            raise
        print(f"error: {brief(error)}; DDPM_TRACEBACK=1 shows where it failed", file=sys.stderr)
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with 2, and the nearest command or option where there is none of this name."""
        commands = next((a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)), {})
        options = [text for parser in commands.values() for text in parser._option_string_actions]
        typed = re.search(r"invalid choice: '(\S+)'|unrecognized arguments: ([^\s=]+)", message)
        others = typed and {*(commands if typed[1] else options)} - {*typed.groups()}
        near = typed and others and near_names(typed[1] or typed[2], [*others])
        self.exit(2, f"error: {message}: {f'did you mean {near[0]}? ' if near else ''}see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    installed = Path(sys.argv[0]).stem == "ddpm"
    parser = _Parser(prog="ddpm" if installed else "python -m ddpm_lightning", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[..., Iterable[Any]], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    for name, about in _PROGRAMS.items():  # listed here, and run before this parser
        commands.add_parser(name, help=about)

    schedules = command("schedules", _schedules, "plot alpha_bar, log SNR and beta of all noise schedules side by side")
    schedules.add_argument(
        "--out", type=Path, default=Path("schedules.png"), metavar="FILE.png", help="output file (default: %(default)s)"
    )
    schedules.add_argument(
        "--num-steps", type=int, default=1000, metavar="T", help="number of timesteps (default: %(default)s)"
    )

    _add_checkpoint_commands(command)

    about = "train the feature classifier of evaluate.py on the labels of a dataset, and cache it"
    features = command("features", _features, about)
    features.add_argument("--config-dir", "-cd", type=Path, metavar="FOLDER", help="config folder of your own")
    features.add_argument(
        "overrides", nargs="+", metavar="data=NAME", help="the dataset, and other overrides of evaluate.py"
    )

    _add_report_commands(command)
    return parser


def _add_report_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Those that compare runs."""
    about = "compare runs, such as those of a sweep, in report.html and report.md; build W&B dashboards"
    report = command("report", _report, about)
    report.add_argument("folders", nargs="*", metavar="folder", help="run, sweep, or folder of these")
    where = "folder for the report (default: the folder, or for several, reports/<day>/<time>)"
    report.add_argument("--out", type=Path, metavar="FOLDER", help=where)
    _add_trust(report)
    wandb = "also build the dashboard of the W&B project; without a folder, only the dashboard"
    report.add_argument("--wandb", action="store_true", help=wandb)
    report.add_argument("--project", metavar="NAME", help="W&B project (default: the runs' own, or ddpm_lightning)")
    report.add_argument("--entity", metavar="NAME", help="W&B entity (default: the runs' own, or the account's)")

    about = "evaluate every finished run of a sweep as evaluate.py does, and add the results to the sweep's report"
    evaluate = command("evaluate-sweep", _evaluate_sweep, about)
    evaluate.add_argument("folder", help="sweep, or another folder of runs")
    settings = (
        "settings of evaluate.py, as in num_samples=1500 sampler=ddim, and its flags, such as --config-dir FOLDER"
    )
    evaluate.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY=VALUE", help=settings)


def _add_checkpoint_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Those that read a checkpoint."""
    about = "evaluate bits per dimension on held-out images of a checkpoint's dataset, term by term and by t"
    likelihood = command("likelihood", _likelihood, about)
    likelihood.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    _add_trust(likelihood)
    likelihood.add_argument("--weights", default="ema", metavar="ema|raw", help="default: %(default)s")
    likelihood.add_argument("--num-images", type=int, metavar="N", help="number of images (default: all)")
    likelihood.add_argument(
        "--variance",
        metavar="small|large",
        help="of the reverse process (default: learned if the network predicts it, else small)",
    )
    likelihood.add_argument(
        "--method",
        default="bound",
        metavar="bound|continuous|ode",
        help="the bound in T steps, in continuous time, or the likelihood of the deterministic sampler's ODE (default: %(default)s)",
    )
    likelihood.add_argument("--split", default="validation", metavar="validation|test", help="default: %(default)s")

    about = "learn the few time steps and the coefficients that suit a checkpoint best, for sampler=learned"
    times = command("times", _times, about)
    times.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    _add_trust(times)
    times.add_argument("--steps", type=int, default=8, metavar="N", help="number of steps (default: %(default)s)")
    times.add_argument(
        "--sampler",
        default="learned",
        metavar="NAME",
        help="learned, or a deterministic choice of sampler= whose times alone are searched for (default: %(default)s)",
    )
    times.add_argument("--weights", default="ema", metavar="ema|raw", help="default: %(default)s")
    times.add_argument(
        "--seconds", type=float, default=100.0, metavar="S", help="time to search (default: %(default)s)"
    )

    about = "reconstruct EMA weights of any width from the snapshots of callbacks=post_hoc, as a checkpoint"
    ema = command("ema", _ema, about)
    ema.add_argument("folder", type=Path, metavar="run", help="run folder, or a checkpoint in it")
    ema.add_argument(
        "--std",
        type=float,
        nargs="+",
        required=True,
        help="widths relative to the length of the training, such as 0.05",
    )
    ema.add_argument(
        "--step", type=int, metavar="N", help="as if training had ended at this snapshot (default: the last)"
    )

    export = command("export", _export, "export the model of a checkpoint as a diffusers folder or as safetensors")
    export.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    _add_trust(export)
    export.add_argument("folder", type=Path, help="output folder, new or empty")
    export.add_argument("--weights", default="ema", metavar="ema|raw", help="default: %(default)s")
    export.add_argument(
        "--format", dest="form", default="diffusers", metavar="diffusers|safetensors", help="default: %(default)s"
    )


def _add_trust(command: argparse.ArgumentParser) -> None:
    about = "packages of your own that the checkpoint may name, as in --trust mylab"
    command.add_argument(
        "--trust", metavar="PACKAGE", action="extend", type=lambda text: text.split(","), default=[], help=about
    )


def _schedules(out: Path, num_steps: int) -> Iterator[Path]:
    require_one_of("the suffix of --out", out.suffix, [".png"])
    with loading():  # imported late, since torch is slow
        from ddpm_lightning.plots import draw_schedules
    with Activity("Plotting"):
        draw_schedules(out, num_steps=num_steps)
    yield out


def _likelihood(checkpoint: Path, **options: Any) -> Iterator[Path]:
    with loading():
        from ddpm_lightning.evaluation.bits import measure_bits_per_dim
    yield measure_bits_per_dim(checkpoint, **options)


def _ema(folder: Path, std: Sequence[float], *, step: int | None) -> Iterator[str]:
    with loading():
        from ddpm_lightning.runs.post_hoc import save_ema
    for width in std:
        with typed_as_options("std", "step"):
            path, distance = save_ema(folder, std=width, step=step)
        yield f"{path}  (differs from the profile of this width by {distance:.1%})"


def _times(checkpoint: Path, *, steps: int, sampler: str, weights: str, seconds: float) -> Iterator[Any]:
    with loading():
        from ddpm_lightning.runs.learned_times import find_times

    with typed_as_options("steps", "seconds", "weights"):
        path = find_times(checkpoint, steps=steps, sampler=sampler, weights=weights, seconds=seconds)
    yield path
    learned = "" if sampler == "learned" else " sampler.times=learned"
    raw = "" if weights == "ema" else f" weights={weights}"
    taken = f"ckpt_path={checkpoint} sampler={sampler}{learned} sampler.num_steps={steps}{raw}"
    yield f"Next: {environment.command('sample')} {taken}"


def _features(overrides: Sequence[str], **options: Any) -> Iterator[str]:
    with loading():
        from ddpm_lightning.evaluation.features import train_classifier
    yield train_classifier(overrides, **options)


def _export(checkpoint: Path, folder: Path, **options: Any) -> Iterator[Path]:
    with loading():
        from ddpm_lightning.runs.export import export
    with Activity("Exporting the model"):
        export(checkpoint, folder, **options)
    yield folder


def _report(folders: Sequence[str], *, out: Path | None, wandb: bool, **options: Any) -> Iterable[Any]:
    if not wandb and (not folders or any(options.values())):
        raise UserError("report requires a folder of runs or --wandb; --project and --entity require --wandb")
    paths = [_folder(folder) for folder in folders]
    with loading():
        from ddpm_lightning.report import report_with_dashboard, write_report
    if len(paths) > 1 and out is None:
        out = Path(f"reports/{datetime.now():%Y-%m-%d/%H-%M-%S}")
    with Activity("Writing the report"):
        return [*report_with_dashboard(*paths, out=out, **options)] if wandb else write_report(*paths, out=out)


def _evaluate_sweep(folder: str, overrides: Sequence[str]) -> Iterator[str]:
    from ddpm_lightning.cli.evaluate_sweep import evaluate_sweep

    return evaluate_sweep(_folder(folder), overrides)


def _folder(text: str) -> Path:
    if not text:
        raise UserError("folder must be a run, a sweep, or a folder of these, got ''")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
