"""The site: `sphinx-build -W docs site`."""

import re
from typing import Any

import ddpm_lightning

project = "ddpm_lightning"
author = "the ddpm_lightning developers"
version = release = ddpm_lightning.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
html_theme = "furo"
html_title = f"ddpm_lightning {version}"
nb_execution_mode = "off"  # notebooks come with their outputs
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"  # a name in backticks links to its entry
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
suppress_warnings = ["ref.python"]  # a class has one entry, and several modules export it


def plain(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are formulas and prose: |x| is an absolute value in them, and *shape an argument."""
    lines[:] = [re.sub(r"([|*])", r"\\\1", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", plain, priority=100)  # before the sections are read
