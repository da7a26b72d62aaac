"""Writes lecture.ipynb from lecture.py, with its outputs: `python docs/build_lecture.py`, after lecture.py has changed."""

from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

SOURCE = Path(__file__).with_name("lecture.py")
NOTEBOOK = SOURCE.with_suffix(".ipynb")


def notebook() -> NotebookNode:
    """The notebook of lecture.py, not executed; its cells are numbered, so that two builds differ in outputs alone."""
    made = jupytext.reads(SOURCE.read_text(encoding="utf-8"), fmt="py:percent")
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
    made.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return made


def execute(made: NotebookNode, *, seconds: int) -> NotebookNode:
    """The notebook with its outputs.

    Raises:
        CellExecutionError: where a cell fails, an assertion included.
        CellTimeoutError: where a cell takes longer.
    """
    client = NotebookClient(made, timeout=seconds, kernel_name="python3", record_timing=False)
    client.create_kernel_manager().transport = "ipc"  # TCP can be listened to by others on the machine
    client.execute()
    return made


if __name__ == "__main__":
    nbformat.write(execute(notebook(), seconds=600), NOTEBOOK)
