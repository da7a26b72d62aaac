"""What the import contracts cannot say."""

import ast
import re

import ddpm_lightning
from tests.helpers.configs import ROOT


def test_public_names_are_importable_from_the_package():
    for name in ddpm_lightning.__all__:
        assert getattr(ddpm_lightning, name) is not None


PATHS = sorted((ROOT / "ddpm_lightning").rglob("*.py"))


def test_every_module_says_what_it_is():
    for path in PATHS:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
        assert path.name != "utils.py"


def test_nothing_outgrows_a_screen_or_its_file():
    assert len([path for path in PATHS if path.parent.name == "ddpm_lightning"]) <= 15
    for path in PATHS:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, f"{path} is asking to be two"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is asking to be two"


def test_callbacks_and_loggers_are_not_searched_for():
    for path in PATHS:
        assert not re.search(r"for \w+ in (self\.)?trainer\.callbacks", path.read_text()), path
        assert not re.search(r"isinstance\(\w*logger", path.read_text()) or path.parent.name == "runs", path


def test_the_environment_is_read_in_one_place():
    for path in PATHS:
        if path.name != "environment.py":
            assert "DDPM_" not in "".join(re.findall(r"environ.*", path.read_text())), path
