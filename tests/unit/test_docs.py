import re
from importlib import import_module

import pytest

import ddpm_lightning
from tests.helpers.configs import ROOT

PAGES = {path.stem: path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md")}
MODULES = [name for text in PAGES.values() for name in re.findall(r"automodule:: (\S+)", text)]
PUBLIC = [name for name in dir(ddpm_lightning) if not name.startswith("_")]
TARGETS = sorted(
    {
        target
        for path in (ROOT / "conf").rglob("*.yaml")
        for target in re.findall(r"_target_: (ddpm_lightning\.\S+)", path.read_text())
        if not target.startswith(("ddpm_lightning.cli.", "ddpm_lightning.evaluation.", "ddpm_lightning.sharding."))
    }
)


def documented(thing):
    """Whether a page describes it: a class or function under any of its names."""
    return any(getattr(module, name) is thing for module in map(import_module, MODULES) for name in module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name):
    found = getattr(ddpm_lightning, name)
    if hasattr(found, "__path__") or hasattr(found, "__spec__"):  # a module
        assert found.__name__ in MODULES
    else:
        assert documented(found)
        assert f"[`{name}`]" in PAGES["index"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_part_that_a_config_names_is_in_the_reference(target):
    path, _, name = target.rpartition(".")
    assert documented(getattr(import_module(path), name))


def test_every_page_is_in_the_contents():
    contents = re.search(r"```{toctree}\n(.*?)```", PAGES["index"], re.DOTALL)[1].split()
    assert sorted(contents) == sorted({*PAGES} - {"index"})
