"""What is neither training nor sampling: `python -m ddpm_lightning schedules | likelihood | features | export | report`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning.cli.entry import sentence
from ddpm_lightning.errors import UserError, brief

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; what the user can mend is printed as one sentence."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # what lies in a folder may be a stranger's
        if "DDPM_TRACEBACK" in os.environ:
            raise
        print(f"error: {brief(error)}; DDPM_TRACEBACK=1 shows where it failed", file=sys.stderr)
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}: see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ddpm_lightning", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="command")
    about = "draw alpha_bar, log SNR and beta of all schedules side by side"
    schedules = commands.add_parser("schedules", help=about, description=about, allow_abbrev=False)
    schedules.add_argument("--out", type=Path, default=Path("schedules.png"), metavar="FILE.png", help="%(default)s")
    schedules.add_argument("--num-steps", type=int, default=1000, metavar="T", help="%(default)s")
    schedules.set_defaults(run=_schedules)

    about = "bits per dimension of a checkpoint on its run's validation images, term by term and by t"
    likelihood = commands.add_parser("likelihood", help=about, description=about, allow_abbrev=False)
    likelihood.add_argument("checkpoint", type=Path)
    likelihood.add_argument("--weights", default="ema", metavar="ema|raw", help="%(default)s")
    likelihood.add_argument("--num-images", type=int, metavar="N", help="all")
    likelihood.add_argument("--variance", metavar="small|large", help="the learned one, or small")
    likelihood.set_defaults(run=_likelihood)

    about = "train the classifier that evaluate.py compares by, on a data set's own labels, and keep it"
    features = commands.add_parser("features", help=about, description=about, allow_abbrev=False)
    features.add_argument("overrides", nargs="+", metavar="data=NAME", help="and other overrides of evaluate.py")
    features.set_defaults(run=_features)

    about = "write a checkpoint's model as a folder of diffusers, or as safetensors"
    export = commands.add_parser("export", help=about, description=about, allow_abbrev=False)
    export.add_argument("checkpoint", type=Path)
    export.add_argument("folder", type=Path)
    export.add_argument("--weights", default="ema", metavar="ema|raw", help="%(default)s")
    export.add_argument("--format", default="diffusers", metavar="diffusers|safetensors", help="%(default)s")
    export.set_defaults(run=_export)

    about = (
        "compare the runs of a sweep, or of any folder: report.html and report.md are written into it; W&B dashboards"
    )
    report = commands.add_parser("report", help=about, description=about, allow_abbrev=False)
    report.add_argument("folder", type=Path, nargs="?")
    wandb = "lay out the dashboard of the runs' W&B project, too; without a folder, only this"
    report.add_argument("--wandb", action="store_true", help=wandb)
    report.add_argument("--project", metavar="NAME", help="of --wandb; the runs' own, or ddpm_lightning")
    report.add_argument("--entity", metavar="NAME", help="of --wandb; the runs' own, or the account's")
    report.set_defaults(run=_report)
    return parser


def _schedules(arguments: argparse.Namespace) -> None:
    from ddpm_lightning.plots import draw_schedules  # torch and matplotlib are imported only when there is work

    if arguments.out.suffix != ".png":
        raise UserError(f"--out {arguments.out} is no PNG: give a name that ends in .png")
    draw_schedules(arguments.out, num_steps=arguments.num_steps)
    print(arguments.out)


def _likelihood(arguments: argparse.Namespace) -> None:
    from ddpm_lightning.evaluation.bits import measure_bits_per_dim

    options = {"weights": arguments.weights, "num_images": arguments.num_images, "variance": arguments.variance}
    print(measure_bits_per_dim(arguments.checkpoint, **options))


def _features(arguments: argparse.Namespace) -> None:
    from ddpm_lightning.evaluation.classifiers import train_classifier

    print(train_classifier(arguments.overrides))


def _export(arguments: argparse.Namespace) -> None:
    from ddpm_lightning.runs.export import export

    export(arguments.checkpoint, arguments.folder, weights=arguments.weights, form=arguments.format)
    print(arguments.folder)


def _report(arguments: argparse.Namespace) -> None:
    if arguments.folder is None and not arguments.wandb:
        raise UserError("report has nothing to do: give a folder of runs, or --wandb for a W&B project's dashboard")
    if (arguments.project or arguments.entity) and not arguments.wandb:
        raise UserError("--project and --entity say where --wandb lays out its dashboard: give it, too")
    from ddpm_lightning.report import report_with_dashboard, write_report

    if not arguments.wandb:
        print(*write_report(arguments.folder), sep="\n")
        return
    for line in report_with_dashboard(arguments.folder, project=arguments.project, entity=arguments.entity):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
