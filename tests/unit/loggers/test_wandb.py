"""W&B's logger, with a stand-in for W&B."""

from unittest.mock import MagicMock

import pytest
import wandb
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning.callbacks import BestCheckpoint, NewestCheckpoint
from ddpm_lightning.loggers import WandbLogger
from ddpm_lightning.loggers.wandb import _SETTINGS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches"),
]


def test_each_wait_has_a_bound():
    assert float(_SETTINGS["WANDB_INIT_TIMEOUT"]) + 10 <= 30  # seconds, W&B's own first question with them
    assert 0 < float(_SETTINGS["WANDB_FINISH_TIMEOUT"]) <= 60


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com", "own.example", None])
@pytest.mark.parametrize("offline", [None, False, True])
def test_it_is_online_where_there_is_a_key_and_never_asks_for_one(tmp_path, monkeypatch, host, offline):
    begun = []
    monkeypatch.setattr(wandb, "init", lambda **given: begun.append(given) or MagicMock())
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if host == "own.example":
        monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}/wandb")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine {host} login user password {40 * '0'}\n" if host else "")
    logger = WandbLogger("p", save_dir=tmp_path, offline=offline, id="x")
    assert logger.experiment is not None
    (given,) = begun
    online = host is not None and not offline
    assert (given.get("mode"), given.get("resume")) == ((None, "allow") if online else ("offline", None))
    assert (given["id"], given["dir"], given["project"]) == ("x", str(tmp_path), "p")


def test_other_ranks_never_start_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(wandb, "init", lambda **kwargs: pytest.fail("W&B was started"))
    logger = WandbLogger("p", save_dir=tmp_path, offline=True, log_model="all")
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_image("a", [], step=1)
    logger.log_video("a", [], step=1)
    logger.after_save_checkpoint(NewestCheckpoint(tmp_path))
    logger.finalize("success")
    assert logger.finish(0) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("log_model", [True, "all", False])
def test_which_checkpoints_are_logged(tmp_path, log_model):
    logger, logged = WandbLogger("p", save_dir=tmp_path, log_model=log_model), []
    logger._log_checkpoint = lambda path, alias: logged.append((path.name, alias))
    logger._experiment = object()
    best, newest = BestCheckpoint(tmp_path), NewestCheckpoint(tmp_path)
    for callback in (best, newest, newest):
        logger.after_save_checkpoint(callback)
    logger.finalize("success")
    once = [("best.ckpt", "best"), ("last.ckpt", "latest")]
    assert logged == {True: once, "all": [*once, once[1]], False: []}[log_model]


@pytest.mark.parametrize("options", [{"log_model": "some"}, {"offline": "perhaps"}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        WandbLogger("p", **options)
