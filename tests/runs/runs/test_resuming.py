"""A run that goes on equals one that was never interrupted, to the bit."""

import json
import shutil
import signal

import pytest
import torch
from omegaconf import OmegaConf

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.run_folder import only_one_run, unfinished_runs
from tests.helpers.configs import config_of, train_config
from tests.helpers.resuming import assert_equal, assert_same_run, interrupted, rows, state

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 8, 9])
def test_it_goes_on_from_any_step_as_if_it_had_not_stopped(whole, tmp_path, step):
    folder = interrupted(whole, tmp_path / "run", step)
    runs.train(config_of(f"resume={folder}"))
    assert_same_run(whole, folder)
    assert not list(folder.glob("**/.*.ckpt*"))


def test_a_finished_run_goes_on_with_more_steps(tmp_path, whole):
    longer = OmegaConf.merge(OmegaConf.load(whole / "config.yaml"), {"trainer": {"max_steps": 12}})
    shutil.copytree(whole, tmp_path / "run")
    OmegaConf.update(longer, "run_dir", str(tmp_path / "anew"))
    held = OmegaConf.to_container(longer)
    moved = OmegaConf.create(json.loads(json.dumps(held).replace(str(whole), str(tmp_path / "anew"))))
    runs.train(moved)
    last = tmp_path / "run" / "checkpoints" / "step_0000010.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["config"]["trainer"]["max_steps"] = 12  # what typing it does
    torch.save(checkpoint, last)
    runs.train(config_of(f"resume={tmp_path / 'run'}"))
    one, two = (
        state(tmp_path / name) for name in ("anew", "run")
    )  # metrics.csv has the row that it ended with besides
    for key in ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(one[key], two[key], key)


def test_nothing_saved_yet_begins_anew(whole, tmp_path, caplog):
    folder = interrupted(whole, tmp_path / "run", step=0)
    runs.train(config_of(f"resume={folder}"))
    assert "no checkpoint was saved yet" in caplog.text
    assert_same_run(whole, folder)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(whole, tmp_path, caplog):
    folder = interrupted(whole, tmp_path / "run", step=6)
    newest = folder / "checkpoints" / "step_0000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:5000])
    runs.train(config_of(f"resume={folder}"))
    assert f"{newest} cannot be loaded" in caplog.text
    assert_same_run(whole, folder)


def test_no_checkpoint_can_be_read(whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", step=2)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="has no checkpoint that can be read: start a new run"):
        runs.train(config_of(f"resume={folder}"))


def test_another_network_is_refused_by_the_names_that_differ(whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", step=2)
    for path in (folder / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["config"]["denoiser"]["model"]["base_channels"] = 16
        torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"holds a different network: \d+ of its weights differ .*denoiser.model"):
        runs.train(config_of(f"resume={folder}"))


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("optimizer", "os.system"),
        ("lr_scheduler", "builtins.eval"),
        ("data", "torch.hub.load"),
        ("logger", "subprocess.run"),
        ("trainer", "ddpm_lightning.runs.training.subprocess.run"),
        ("loss", "lightning.pytorch.Trainer.__init__.__globals__"),
    ],
)
def test_a_config_that_names_code_of_others_is_refused_and_not_run(whole, tmp_path, key, target):
    folder, trace = interrupted(whole, tmp_path / "run", step=2), tmp_path / "trace"
    for path in (folder / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["config"][key] = {"_target_": target, "command": f"touch {trace}"}
        torch.save(checkpoint, path)
    with pytest.raises(UserError, match=f"asks for {target}.*refused"):
        runs.train(config_of(f"resume={folder}"))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("node", "key", "path"),
    [
        ("checkpoint", "dirpath", "{tmp}/elsewhere"),
        ("checkpoint", "dirpath", "{run}/../elsewhere"),
        ("sample_grid", "folder", "../../elsewhere"),
    ],
)
def test_a_config_that_writes_elsewhere_is_refused(whole, tmp_path, node, key, path):
    folder = interrupted(whole, tmp_path / "run", step=2)
    for file in (folder / "checkpoints").iterdir():
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["config"]["callbacks"][node][key] = path.format(tmp=tmp_path, run=folder)
        torch.save(checkpoint, file)
    with pytest.raises(
        UserError, match=f"asks to write to callbacks\\.{node}\\.{key}=.*outside its run folder, which is refused"
    ):
        runs.train(config_of(f"resume={folder}"))
    assert not list(tmp_path.glob("**/elsewhere"))


@pytest.mark.parametrize(
    ("key", "node", "says"),
    [
        (
            "schedule",
            {"_target_": "ddpm_lightning.schedules.linear", "_args_": [10]},
            "positional arguments, so it is refused",
        ),
        (
            "logger",
            {
                "wandb": {
                    "_target_": "lightning.pytorch.loggers.WandbLogger",
                    "settings": {"base_url": "http://elsewhere"},
                }
            },
            "sets settings of W&B's logger, so it is refused",
        ),
        (
            "logger",
            {"wandb": {"_target_": "ddpm_lightning.loggers.WandbLogger", "id": "of-another-run"}},
            "sets id of W&B's logger, so it is refused",
        ),
        (
            "callbacks",
            {"a": [{"_target_": "ddpm_lightning.callbacks.EMA", "dir": "/elsewhere"}]},
            r"asks to write to callbacks\.a\.0\.dir=",
        ),
    ],
)
def test_a_config_that_says_more_than_ours_is_refused(whole, tmp_path, key, node, says):
    folder = interrupted(whole, tmp_path / "run", step=2)
    for file in (folder / "checkpoints").iterdir():
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["config"][key] = node
        torch.save(checkpoint, file)
    with pytest.raises(UserError, match=says):
        runs.train(config_of(f"resume={folder}"))


def test_a_run_without_validation_is_saved_at_every_step_asked_for(tmp_path):
    options = ["data.val_fraction=0", "trainer.max_steps=6", "callbacks.checkpoint.every_n_train_steps=2"]
    runs.train(train_config(tmp_path, *options))
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*.ckpt"))
    assert saved == ["step_0000002.ckpt", "step_0000004.ckpt", "step_0000006.ckpt"]


def test_what_a_killed_save_left_is_removed(whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", step=4)
    (folder / "checkpoints" / ".step_0000005.ckpt.123").write_bytes(b"half")
    (folder / ".metrics.csv.123").write_bytes(b"half")
    runs.train(config_of(f"resume={folder}"))
    assert not list(folder.glob("**/.*.123"))
    assert_same_run(whole, folder)


def test_a_folder_takes_one_run(whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", step=2)
    with pytest.raises(UserError, match="already holds a run: resume it with resume="):
        runs.train(train_config(folder))
    (tmp_path / "free").mkdir()
    with only_one_run(tmp_path / "free"):
        with pytest.raises(UserError, match="is used by another run"):
            runs.train(train_config(tmp_path / "free"))
        assert unfinished_runs(str(tmp_path)) == [folder]
    with only_one_run(folder):
        assert unfinished_runs(str(tmp_path)) == []


def test_signals_end_a_run_with_a_checkpoint_of_that_step(whole, tmp_path):
    from lightning.pytorch import Callback

    class Signal(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        from ddpm_lightning.runs import build

        built = build.build_callbacks

        def with_signal(*args):
            return [Signal(), *built(*args)]

        patch.setattr(build, "build_callbacks", with_signal)
        config = OmegaConf.load(whole / "config.yaml")
        config = OmegaConf.create(
            json.loads(json.dumps(OmegaConf.to_container(config)).replace(str(whole), str(tmp_path / "run")))
        )
        config.callbacks.checkpoint.every_n_train_steps = 100
        with pytest.raises(SystemExit) as raised:
            runs.train(config)
    assert raised.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert state(tmp_path / "run")["global_step"] == 5
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    runs.train(config_of(f"resume={tmp_path / 'run'}"))
    assert_same_run(whole, tmp_path / "run")


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(tmp_path, monkeypatch):
    from ddpm_lightning.module import DDPM

    step = DDPM.training_step

    def broken(self, batch, batch_idx):
        outputs = step(self, batch, batch_idx)
        if self.trainer.global_step == 2:
            outputs = {key: value * float("nan") if key != "t" else value for key, value in outputs.items()}
        return outputs

    monkeypatch.setattr(DDPM, "training_step", broken)
    with pytest.raises(
        UserError, match=r"became NaN or infinite at step 3; the newest intact checkpoint is .*step_0000002.ckpt; try"
    ):
        runs.train(train_config(tmp_path, "trainer.max_steps=6"))
    assert state(tmp_path)["global_step"] == 2
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_spikes_are_counted(tmp_path, monkeypatch):
    from ddpm_lightning.module import DDPM

    step = DDPM.training_step

    def spiky(self, batch, batch_idx):
        outputs = step(self, batch, batch_idx)
        if self.trainer.global_step in (2, 4):
            outputs["losses"] = outputs["losses"] * 7
        return outputs

    monkeypatch.setattr(DDPM, "training_step", spiky)
    runs.train(train_config(tmp_path, "trainer.max_steps=6"))
    counts = [row["train/loss_spikes"] for row in rows(tmp_path) if row["train/loss"]]
    assert counts == ["0.0", "1.0", "2.0"]
