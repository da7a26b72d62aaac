"""W&B never ends a run: no key, a broken one, no network, a full disk, and errors of any type each give one warning."""

import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from ddpm_lightning import runs
from tests.helpers.configs import TINY, WHOLE, config_of, train_config
from tests.helpers.resuming import interrupted
from tests.helpers.scripts import script
from tests.helpers.wandb_files import wandb_contents, wandb_records

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches"),
]

KEY = {"WANDB_API_KEY": 40 * "0"}

SOON = {"WANDB_INIT_TIMEOUT": "2", "WANDB_HTTP_TIMEOUT": "2", "WANDB_BASE_URL": "http://127.0.0.1:9"}


def trained(tmp_path, *overrides, env=None):
    """A tiny run in a process, which has to end well; its one warning, and its time."""
    started = time.monotonic()
    done = script("train.py", *TINY, "hydra.run.dir=run", *overrides, cwd=tmp_path, env=env, timeout=120)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    (warning,) = [line for line in done.stdout.splitlines() if "W&B" in line and line.startswith("WARNING: ")]
    assert done.stdout.count("WARNING") == 1
    assert "logger=none" in warning or "did not receive the whole run" in warning
    print(f"{seconds:.1f} s: {warning}")
    return warning, done.stdout, seconds


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"WANDB_API_KEY": "broken"}, "API key must have 40"),
        ({**KEY, **SOON}, "CommError"),
    ],
    ids=["broken key", "no network"],
)
def test_what_cannot_be_sent_is_kept(tmp_path, env, says):
    warning, said, seconds = trained(tmp_path, env=env)
    assert says in warning
    assert "runs offline" in warning
    assert "offline; upload with: wandb sync run/wandb/offline-run-" in said
    assert [row["trainer/global_step"] for row in wandb_contents(tmp_path / "run")[0] if "train/loss" in row] == [2, 4]
    assert seconds < 60


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of its own for W&B's folder, which is full when the run begins, or soon."""
    folder = tmp_path / "run" / "wandb"
    folder.mkdir(parents=True)

    def of(size):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], check=False)
        if done.returncode:
            pytest.skip("no disk can be mounted here")
        mounted.append(folder)
        return folder

    mounted = []
    yield of
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize(("size", "used"), [(64, 64), (64, 20)], ids=["full", "soon full"])
def test_a_full_disk(tmp_path, tiny_disk, size, used):
    folder = tiny_disk(size)
    (folder / "of someone else").write_bytes(bytes(1024 * used))
    warning, said, _ = trained(tmp_path, "logger.wandb.offline=true")
    assert "is disabled" in warning
    assert "wandb sync" not in said


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("a file")
    assert "W&B is disabled" in trained(tmp_path)[0]


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs to begin; then it is gone."""

    protocol_version = "HTTP/1.1"
    logged = threading.Event()
    gone = False

    def log_message(self, *args):
        """Nothing."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "file_stream" in self.path:
            Server.gone = True
            Server.logged.set()
        if Server.gone:
            self.close_connection = True
            return
        query = json.loads(body).get("query", "") if body[:1] == b"{" else ""
        bucket = {"id": "1", "name": "r", "displayName": "r", "description": "", "config": "{}", "historyLineCount": 0}
        bucket["project"] = {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}}
        data = {"upsertBucket": {"bucket": bucket, "inserted": True}} if "upsertBucket" in query else {"model": None}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_a_network_that_dies_during_the_run(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {**KEY, "WANDB_FINISH_TIMEOUT": "4", "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    warning, _, seconds = trained(tmp_path, env=env)
    server.shutdown()
    server.server_close()
    assert Server.logged.is_set()
    assert "W&B did not receive the whole run (TimeoutError" in warning
    assert "`wandb sync run/wandb/run-" in warning
    assert seconds < 60


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline") / "run"
    wandb_on = ["logger=wandb", "logger.wandb.offline=true", "logger.wandb.log_model=true"]
    runs.train(train_config(folder, *wandb_on, "trainer.max_steps=6"))
    return folder


def test_one_axis_and_summaries_by_least_and_last(offline_run):
    metrics = [record.metric for record in wandb_records(offline_run) if record.HasField("metric")]
    named = {metric.name or metric.glob_name: metric for metric in metrics}
    assert [metric.name for metric in metrics if metric.name == "trainer/global_step"] == ["trainer/global_step"]
    assert all(m.step_metric == "trainer/global_step" for name, m in named.items() if name != "trainer/global_step")
    assert {"*", "val/loss", "val/bits_per_dim", "train/loss", "train/images_per_second"} <= named.keys()
    history = wandb_contents(offline_run)[0]
    steps = [row["trainer/global_step"] for row in history]
    assert steps == sorted(steps)
    assert [row["_step"] for row in history] == list(range(len(history)))  # none dropped
    summary = {}
    for record in wandb_records(offline_run):
        for item in record.summary.update:
            summary["/".join([item.key, *item.nested_key]).strip("/")] = json.loads(item.value_json)
    for key, which, best in (("val/loss", "min", min), ("train/loss", "min", min), ("train/grad_norm", "max", max)):
        values = [row[key] for row in history if key in row]
        assert len(values) == 3
        assert summary[key] == {which: pytest.approx(best(values)), "last": pytest.approx(values[-1])}
    assert summary["train/lr"] == pytest.approx(2e-3)


def test_checkpoints_become_artifacts(offline_run):
    artifacts = [
        record.request.log_artifact.artifact
        for record in wandb_records(offline_run)
        if record.HasField("request") and record.request.HasField("log_artifact")
    ]
    artifacts += [record.artifact for record in wandb_records(offline_run) if record.HasField("artifact")]
    models = [artifact for artifact in artifacts if artifact.type == "model"]
    assert [{*artifact.aliases} for artifact in models] == [{"latest", "best"}, {"latest"}]
    sizes = {(offline_run / "checkpoints" / name).stat().st_size for name in ("best.ckpt", "last.ckpt")}
    assert {entry.size for artifact in models for entry in artifact.manifest.contents} == sizes


def test_a_run_of_an_earlier_version_goes_on(offline_run, tmp_path):
    folder = interrupted(offline_run, tmp_path / "run", 4)
    for path in (folder / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["config"]["logger"]["wandb"]["_target_"] = "lightning.pytorch.loggers.WandbLogger"
        del checkpoint["config"]["logger"]["wandb"]["entity"]
        torch.save(checkpoint, path)
    runs.train(config_of(f"resume={folder}"))
    newest = max(folder.glob("wandb/offline-run-*"))
    history = wandb_contents(folder, newest.name)[0]
    assert {row["trainer/global_step"] for row in history} == {6}
    assert wandb_contents(folder, newest.name)[3] == [0]


PANELS = {
    *("train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "train/ema_decay", "train/wall_seconds"),
    *(
        "train/loss_spikes",
        "val/loss",
        "val/bits_per_dim",
        "val/bits_decoder",
        "mse_at_log_snr/-05",
        "mse_at_log_snr/+00",
    ),
    *("samples/grid", "samples/raw_grid", "samples/trajectory", "samples/trajectory_animation"),
    *("samples/neighbors", "samples/log_snr", "samples/schedule", "samples/forward_strip"),
}


def test_a_sweep_of_nine_is_nine_runs_of_one_group(tmp_path):
    """Three schedules by three seeds, of which one fails at its second step, where a folder lies in its picture's place."""
    obstacle = tmp_path / "sweep" / "4_schedule_cosine,seed_1" / "samples" / "grid_0000002.png"
    obstacle.mkdir(parents=True)
    swept = ["schedule=linear,cosine,sigmoid", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    done = script("train.py", "-m", *WHOLE, *swept, cwd=tmp_path, timeout=600)
    assert done.returncode == 1
    assert "1 of the sweep's jobs failed" in done.stderr
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    assert len(folders) == 9
    ids, names, groups, tags = set(), set(), set(), []
    for number, folder in enumerate(folders):
        history, config, _, exits = wandb_contents(folder)
        failed = number == 4
        assert folder.name.startswith(f"{number}_schedule_")
        assert json.loads((folder / "summary.json").read_text())["status"] == ("failed" if failed else "finished")
        assert exits == [int(failed)]
        (run,) = {r.run.run_id: r.run for r in wandb_records(folder) if r.HasField("run")}.values()
        ids.add(run.run_id)
        names.add(run.display_name)
        groups.add(run.run_group)
        tags.append(next(tag for tag in run.tags if tag.startswith("schedule=")).removeprefix("schedule="))
        steps = [row["trainer/global_step"] for row in history]
        assert steps == sorted(steps)
        assert steps[-1] == (2 if failed else 4)
        keys = {"/".join(key.split("/")[:2]) for row in history for key in row}
        if failed:
            assert {"train/loss", "samples/schedule"} <= keys  # what it had by then is there
        else:
            assert keys >= PANELS, PANELS - keys
        assert config["seed"] == number % 3
        assert f"seed={number % 3}" in config["overrides"]
        assert {"git_commit", "data_fingerprint", "parameters", "callbacks", "optimizer"} <= config.keys()
    assert (len(ids), len(names), len(groups)) == (9, 9, 1)
    assert tags == ["linear"] * 3 + ["cosine"] * 3 + ["sigmoid"] * 3
