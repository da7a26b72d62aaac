"""What the import contracts cannot say."""

import ast
import subprocess
import sys

import ddpm_lightning
from tests.conftest import ROOT


def test_public_names_are_importable_from_the_package():
    for name in ddpm_lightning.__all__:
        assert getattr(ddpm_lightning, name) is not None


def test_the_command_line_needs_no_torch():
    code = (
        "import sys, ddpm_lightning.cli.entry; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'wandb')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_says_what_it_is_and_what_it_offers():
    for path in (ROOT / "ddpm_lightning").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} has no docstring"
        assert len(path.read_text().splitlines()) <= 330, f"{path} is asking to be two"
        assert path.name != "utils.py"
