"""Sweeps with each launcher, composed."""

import pytest
from hydra import compose, initialize_config_dir

from tests.helpers.configs import ROOT


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "submitit_slurm"])
@pytest.mark.parametrize("sweep", sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml")))
def test_presets_and_launchers_compose(launcher, sweep):
    name = "evaluate" if sweep == "samplers" else "train"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra = compose(name, [f"hydra/launcher={launcher}", f"sweep={sweep}"], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    assert hydra.runtime.choices["hydra/launcher"] == launcher
    assert hydra.sweeper._target_.endswith("OptunaSweeper" if sweep == "optuna" else "BasicSweeper")
