"""W&B never ends a run: errors of any type give one warning."""

import json

import pytest
import wandb

from ddpm_lightning import runs
from tests.helpers.configs import train_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches"),
]


@pytest.mark.parametrize("error", [KeyError("surprise"), RuntimeError("two\nlines"), ConnectionResetError()])
@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_errors_of_any_type_at_any_time(tmp_path, monkeypatch, caplog, error, where):
    class Run:
        disabled, offline, url, id, dir = False, True, "", "x", str(tmp_path / "wandb" / "files")

        def __getattr__(self, name):
            def call(*args, **kwargs):
                if name == where:
                    raise error

            return self if name == "config" else call

    def init(**kwargs):
        if where == "init":
            raise error
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda exit_code: None)
    runs.train(train_config(tmp_path, "logger=wandb", "logger.wandb.offline=true"))
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert type(error).__name__ in warning
    assert "\n" not in warning
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
