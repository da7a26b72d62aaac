"""The folder of configs that the command line offers."""

from tests.helpers.configs import ROOT

CONF = ROOT / "conf"

SCRIPTS = ("train", "sample", "evaluate")


def files(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))
