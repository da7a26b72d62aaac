"""The site: `sphinx-build -W docs site`."""

import re
from typing import Any

import ddpm_lightning

project = "ddpm_lightning"
author = "the ddpm_lightning developers"
version = release = ddpm_lightning.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb", "sphinx-mathjax-offline"]
html_theme = "furo"
html_show_copyright = False
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


def themed(_app: Any, _name: str, source: list[str]) -> None:
    """A picture for light and dark, which GitHub shows as HTML, becomes two images, of which the theme shows one."""
    pattern = (
        r'<picture>\n *<source media="[^"]*dark[^"]*" srcset="(.*?)">\n *<img alt="(.*?)" src="(.*?)">\n</picture>'
    )
    image = "```{image} %s\n:alt: %s\n:class: only-%s\n```\n"

    def both(found: re.Match[str]) -> str:
        dark, alt, light = found.groups()
        return image % (light, alt, "light") + "\n" + image % (dark, alt, "dark")

    source[0] = re.sub(pattern, both, source[0])


def setup(app: Any) -> None:
    app.connect("source-read", themed)
    app.connect("autodoc-process-docstring", plain, priority=100)  # before the sections are read
