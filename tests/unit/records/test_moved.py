"""A run that was made before classes moved is sampled, resumed and read after it."""

import shutil
from pathlib import Path

import pytest
from hydra.utils import get_object

from ddpm_lightning.records.moved import _MOVED, _OLD, rename_targets
from ddpm_lightning.report.reading import read_runs
from tests.helpers.configs import ROOT

BEFORE = ROOT / "tests" / "fixtures" / "run_before_the_wings"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BEFORE, tmp_path / "run"))


def test_it_is_reported(folder):
    (run,) = read_runs(folder)
    assert run.config["logger"]["tensorboard"]["_target_"] == "ddpm_lightning.loggers.TensorBoardLogger"


def test_every_new_name_is_there():
    assert all(callable(get_object(new)) for new in _MOVED.values())
    assert not any(_OLD.search(new) for new in _MOVED.values())


def test_other_names_stay_and_shared_parts_end():
    node = {"a": ["x=ddpm_lightning.sweeps.Jobs", "my.ddpm_lightning.sweeps.Jobs", "ddpm_lightning.sweeps.Jobs2"]}
    node["itself"] = node
    rename_targets(node)
    assert node["a"] == [
        "x=ddpm_lightning.cli.sweeps.Jobs",
        "my.ddpm_lightning.sweeps.Jobs",
        "ddpm_lightning.sweeps.Jobs2",
    ]


def test_the_american_spelling_of_a_callback():
    node = {"_target_": "ddpm_lightning.callbacks.Neighbours", "num_neighbours": 3}
    config = {"callbacks": {"ema": None, "neighbours": node}, "mine": {"num_neighbours": 1}}
    rename_targets(config)
    new = {"_target_": "ddpm_lightning.callbacks.Neighbors", "num_neighbors": 3}
    assert config == {"callbacks": {"ema": None, "neighbors": new}, "mine": {"num_neighbours": 1}}
    typed = ["callbacks.neighbours.num_neighbours=3", "~callbacks.neighbours", "data.root=callbacks.neighbours"]
    rename_targets(typed)
    assert typed == ["callbacks.neighbors.num_neighbors=3", "~callbacks.neighbors", "data.root=callbacks.neighbours"]
