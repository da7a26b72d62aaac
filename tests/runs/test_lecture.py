"""docs/lecture.ipynb runs to its end, where every assertion in it holds, and is the one that docs/lecture.py makes."""

import re
import sys

import nbformat
import pytest

from tests.helpers.configs import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import build_lecture


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter libraries
def test_the_lecture_runs(monkeypatch):
    """With networks that have hardly trained, and few samples: its assertions compare formulas and code, which hold for any."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # its kernel shares the cores with other tests
    short, replaced = build_lecture.notebook(), 0
    for cell in short.cells:
        for pattern, few in ((r"(?<!\w)steps=\d+", "steps=25"), (r"(randn|seeded)\(\d{3}(?=[,)])", r"\1(20")):
            cell.source, found = re.subn(pattern, few, cell.source)
            replaced += found
    assert replaced == 9
    made = build_lecture.execute(short, seconds=600)
    printed = "".join(output.get("text", "") for cell in made.cells for output in cell.get("outputs", ()))
    assert printed.count("largest difference") >= 9
    assert "Traceback" not in printed


def test_the_stored_notebook_is_the_one_of_the_script_and_has_its_outputs():
    stored, made = nbformat.read(build_lecture.NOTEBOOK, as_version=4), build_lecture.notebook()
    assert [cell.source for cell in stored.cells] == [cell.source for cell in made.cells], (
        "python docs/build_lecture.py"
    )
    outputs = [output for cell in stored.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 10
