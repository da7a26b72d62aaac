import re
import shlex
import sys
from importlib import import_module

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import ddpm_lightning
from tests.helpers.configs import ROOT, choices, config_of

sys.path.insert(0, str(ROOT / "docs"))
import public_names

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
GUIDES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
GROUPS = sorted({path.parent.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").glob("*/**/*.yaml")})
PROGRAM = r"^(?:python (train|sample|evaluate)\.py|torchrun .*?(train|evaluate)\.py)( .*|)$"


def commands():
    """The command lines of train.py, sample.py and evaluate.py in the guides, each as "program overrides"; none that repeats others."""
    found, seen = [], set()
    for line in sorted(line for text in GUIDES.values() for line in code_lines(text)):
        if "-sc" in line or "<Tab>" in line or not (match := re.match(PROGRAM, line)):
            continue
        words = shlex.split(re.sub(r"<(\w+)>", r"\1", match[3]), comments=True)
        typed = [word for word in words if "=" in word and not word.startswith(("-", "sweep=", "hydra.", "hydra/"))]
        program = match[1] or match[2]
        if new := {(program, word) for word in typed} - seen:
            seen |= new
            found.append(shlex.join([program, *typed]))
    return found


def code_lines(text):
    """The lines of a page's code blocks, whole where they are continued."""
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from re.sub(r" *\\\n *", " ", block).splitlines()


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


def test_the_table_of_public_names_has_their_docstrings():
    assert public_names.corrected(PAGES["index"]) == PAGES["index"], "python docs/public_names.py"


def test_every_page_is_in_the_contents():
    contents = re.search(r"```{toctree}\n(.*?)```", PAGES["index"], re.DOTALL)[1].split()
    assert sorted(contents) == sorted({*PAGES} - {"index"})


@pytest.mark.parametrize("group", [group for group in GROUPS if not group.startswith("hydra")])
def test_every_choice_is_listed(group):
    sections = re.split(r"^## ", GUIDES["docs/options.md"], flags=re.MULTILINE)
    (section,) = (part for part in sections if f"`{group}=`" in part.splitlines()[0])
    assert [choice for choice in choices(group) if f"`{choice}`" not in section] == []


def test_the_readme_is_two_screens():
    assert len(GUIDES["README.md"].splitlines()) <= 120


@pytest.mark.parametrize("page", sorted(GUIDES))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", GUIDES[page]):
        if not target.startswith("https:"):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), target
            assert not anchor or file.suffix != ".md" or anchor in slugs(file.read_text()), target


def slugs(text):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_guide_is_in_the_contents():
    contents = re.findall(r"```{toctree}\n(.*?)```", GUIDES["docs/index.md"], re.DOTALL)
    listed = {line for block in contents for line in block.split() if not line.startswith(":")}
    pages = {path.removeprefix("docs/").removesuffix(".md") for path in GUIDES if path != "README.md"}
    assert pages - {"index"} <= listed


@pytest.mark.parametrize("command", commands())
def test_every_command_has_a_config(command):
    program, *typed = shlex.split(command)
    overrides = [
        f"{override.input_line.partition('=')[0]}={first_value(override)}"
        for override in OverridesParser.create().parse_overrides(typed)
    ]
    assert config_of(*overrides, name=program)


def first_value(override):
    """The first of a sweep's values, as it is typed."""
    if not override.is_sweep_override():
        return override.input_line.partition("=")[2]
    return next(override.sweep_string_iterator()) if override.is_discrete_sweep() else 0.001
