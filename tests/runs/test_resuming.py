"""A run that goes on equals one that was never interrupted, to the bit."""

import csv
import json
import shutil
import signal

import pytest
import torch
from omegaconf import OmegaConf

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.run_folder import only_one_run, unfinished_runs
from ddpm_lightning.runs.trust import check_targets
from tests.conftest import ROOT, config_of, train_config

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")

TIMINGS = ("train/wall_seconds", "train/images_per_second")


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


def state(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def assert_equal(one, two, path=""):
    """To the bit, and of the same types, all the way down."""
    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_equal(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{path}/{i}")
    else:
        assert one == two, path


def assert_same_run(one, two):
    first, second = state(one), state(two)
    for key in ("state_dict", "ema_state_dict", "optimizer_states", "lr_schedulers", "global_step", "loss_guard"):
        assert_equal(first[key], second[key], key)
    for key in ("Randomness", "SampleGrid", "BestCheckpoint"):
        assert_equal(first["callbacks"][key], second["callbacks"][key], key)
    assert first["loops"]["fit_loop"]["state_dict"] == second["loops"]["fit_loop"]["state_dict"]
    assert rows(one) == rows(two)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (one, two))
    assert ours["best"] == theirs["best"]


def interrupted(whole, folder, step):
    """The run as it lay there when it was killed some time after it had saved this step."""
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if path.name in ("last.ckpt", "best.ckpt") or int(path.stem.removeprefix("step_")) > step:
            path.unlink()
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["each", "accumulated"])
def whole(request, tmp_path_factory):
    """Ten steps over three of Lightning's epochs, a checkpoint at each, validations at every second batch."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.train(
        train_config(
            folder,
            f"trainer.accumulate_grad_batches={request.param}",
            "data.batch_size=200",
            f"trainer.val_check_interval={2 * request.param}",
            "trainer.max_steps=10",
            "trainer.log_every_n_steps=3",
            "callbacks.checkpoint.every_n_train_steps=1",
            "callbacks.trajectory=null",
            "lr_scheduler.total_iters=7",
        )
    )
    return folder


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
    assert "nothing had been saved yet" in caplog.text
    assert_same_run(whole, folder)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(whole, tmp_path, caplog):
    folder = interrupted(whole, tmp_path / "run", step=6)
    newest = folder / "checkpoints" / "step_0000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:5000])
    runs.train(config_of(f"resume={folder}"))
    assert f"{newest} is no checkpoint, or a damaged one" in caplog.text
    assert_same_run(whole, folder)


def test_no_checkpoint_can_be_read(whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", step=2)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 checkpoints can be read"):
        runs.train(config_of(f"resume={folder}"))


def test_another_network_is_refused_by_the_names_that_differ(whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", step=2)
    for path in (folder / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["config"]["denoiser"]["model"]["base_channels"] = 16
        torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"is of another network: \d+ of its weights differ .*denoiser.model"):
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
        UserError, match=f"asks to write to callbacks\\.{node}\\.{key}=.*outside of its run's folder: refused"
    ):
        runs.train(config_of(f"resume={folder}"))
    assert not list(tmp_path.glob("**/elsewhere"))


@pytest.mark.parametrize(
    ("key", "node", "says"),
    [
        (
            "schedule",
            {"_target_": "ddpm_lightning.schedules.linear", "_args_": [10]},
            "arguments without a name: refused",
        ),
        (
            "logger",
            {
                "wandb": {
                    "_target_": "lightning.pytorch.loggers.WandbLogger",
                    "settings": {"base_url": "http://elsewhere"},
                }
            },
            "sets settings of W&B's logger: refused",
        ),
        (
            "logger",
            {"wandb": {"_target_": "ddpm_lightning.loggers.WandbLogger", "id": "of-another-run"}},
            "sets id of W&B's logger: refused",
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


def test_every_target_that_we_ship_may_be_resumed():
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        group = path.relative_to(ROOT / "conf").parts[0]
        if group in ("experiment", "sweep", "hydra") or path.stem == "custom":  # the last is given by hand, and refused
            continue
        check_targets({group: plain_config(path)}, "run")


def plain_config(path):
    """A file of conf/ with the files of its defaults list below it, and without what is taken from other groups."""
    node = OmegaConf.to_container(OmegaConf.load(path))
    merged = {}
    for part in node.pop("defaults", []):
        if isinstance(part, dict):
            (key, name), *_ = part.items()
            merged[key] = plain_config(path.parent / key / f"{name}.yaml")
        elif part != "_self_":
            merged |= plain_config(path.parent / f"{part}.yaml")
    return without_interpolations(merged | node)


def without_interpolations(node):
    if isinstance(node, dict):
        return {key: without_interpolations(child) for key, child in node.items()}
    if isinstance(node, list):
        return [without_interpolations(child) for child in node]
    return "taken" if isinstance(node, str) and "${" in node else node


def test_a_part_in_the_place_of_another_is_refused():
    """A data set reads files by libraries that may run code: it is no network."""
    loader = {"_target_": "ddpm_lightning.data.datasets.huggingface", "root": "pandas"}
    network = {"_target_": "ddpm_lightning.models.UNet"}
    for role, node in (
        ("denoiser", {"_target_": "ddpm_lightning.denoiser.Denoiser", "model": loader}),
        ("denoiser", loader),
        ("run", {"model": loader}),
        ("run", {"callbacks": {"a": loader}}),
        ("run", {"callbacks": {"a": {"_target_": "ddpm_lightning.callbacks.EMA", "decay": loader}}}),
        ("run", {"data": network}),
        ("run", {"seed": loader}),
        ("run", {"callbacks": {"a": {"_target_": "ddpm_lightning.loggers.WandbLogger"}}}),
        ("run", {"logger": {"a": {"_target_": "ddpm_lightning.callbacks.EMA"}}}),
        ("sampler", {"_target_": "ddpm_lightning.samplers.reverse_step"}),
        ("features", {"_target_": "ddpm_lightning.metrics.features.custom", "net": network}),
        ("data", {"_target_": "ddpm_lightning.data.datasets.image_folder", "root": "/"}),
    ):
        with pytest.raises(UserError, match=r"asks for ddpm_lightning\..*in this place: refused"):
            check_targets(node, role)


def test_a_folder_takes_one_run(whole, tmp_path):
    folder = interrupted(whole, tmp_path / "run", step=2)
    with pytest.raises(UserError, match="holds a run already: go on with it by resume="):
        runs.train(train_config(folder))
    (tmp_path / "free").mkdir()
    with only_one_run(tmp_path / "free"):
        with pytest.raises(UserError, match="another run is going on in this folder"):
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
        from ddpm_lightning.runs import training

        build = training.build_callbacks
        patch.setattr(training, "build_callbacks", lambda *args, **kwargs: [Signal(), *build(*args, **kwargs)])
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
        UserError, match=r"became NaN or infinite at step 3; the newest whole checkpoint is .*step_0000002.ckpt; try"
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
