"""The dashboard of a W&B project and the report that a sweep leaves there: what they show is what is logged, and what fails is a sentence."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from ddpm_lightning.report import report_sweep
from ddpm_lightning.report.workspace import workspace
from tests.helpers.configs import ROOT, TINY
from tests.helpers.forked import start_all
from tests.helpers.scripts import run_folders, script
from tests.helpers.wandb_files import wandb_records
from tests.helpers.workspace import fabricate_sweep, keys_of, names_logged, panels_of

KEY = 40 * "0"

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    return names_logged(tmp_path_factory.mktemp("logged"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return fabricate_sweep(tmp_path_factory.mktemp("multirun") / "day" / "time")


@pytest.fixture(scope="module")
def published(sweep):
    """The lines that a sweep ends in, and what W&B has kept of its report."""
    lines = report_sweep(sweep)
    return lines, wandb_records(sweep / "report")


def test_every_panel_shows_what_is_logged(logged, published):
    ours = {item.nested_key[0] for r in published[1] for item in r.history.item}
    panels = panels_of(workspace("me", "p"))
    assert all(map(keys_of, panels))
    shown = {key for panel in panels for key in keys_of(panel)}
    assert shown <= logged | ours


def test_a_sweeps_report_is_a_run_of_its_group(sweep, published):
    lines, records = published
    assert lines[1:3] == [str(sweep / "report.html"), str(sweep / "report.md")]
    assert lines[3].startswith("W&B: offline; upload with: wandb sync ")
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.display_name, run.job_type, run.run_group, run.project) == (
        "report",
        "report",
        "day_time",
        "ddpm_lightning",
    )
    history = {(*i.nested_key,): json.loads(i.value_json) for r in records for i in r.history.item}
    assert history["report/curves", "captions"][:2] == ["train/loss by step", "train/loss by wall time"]
    assert history["report/samples", "captions"] == [
        f"Samples of schedule={name}, seed {seed}" for name in ("linear", "cosine") for seed in (0, 1)
    ]
    assert {key[0] for key in history if key[0].startswith("report/")} == {
        *(f"report/{name}" for name in ("results", "samples", "curves", "noise_prediction_error_vs_log_snr")),
        *(f"report/{name}" for name in ("loss_by_quartile_of_t", "schedules")),
    }
    artifacts = [r.artifact for r in records if r.HasField("artifact")]
    (page,) = [artifact for artifact in artifacts if artifact.type == "report"]
    assert [entry.path for entry in page.manifest.contents] == ["report.html"]
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def test_its_table_and_summary_are_numpys(sweep, published):
    (file,) = sweep.glob("report/wandb/offline-run-*/files/media/table/report/results*.table.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["schedule"], row["seeds"]) for row in rows] == [("linear", 2), ("cosine", 2)]
    for row, values in zip(rows, [(2.5, 2.9), (2.3, 2.6)], strict=True):
        expected = [np.mean(values), np.std(values, ddof=1)]
        np.testing.assert_allclose([row["val/bits_per_dim"], row["val/bits_per_dim deviation"]], expected)
    summary = {i.key: json.loads(i.value_json) for r in published[1] for i in r.summary.update}
    best = {key: value for key, value in summary.items() if key.startswith("best/")}
    assert best.pop("best/val/bits_per_dim") == pytest.approx(2.45)
    assert best.pop("best/val/bits_per_dim_deviation") == pytest.approx(np.std((2.3, 2.6), ddof=1))
    assert best == {"best/val/bits_per_dim_seeds": 2, "best/val/bits_per_dim_setting": "schedule=cosine"}  # no val/loss


def test_a_sweep_that_logs_to_wandb_reports_to_it(tmp_path):
    options = ("logger=wandb", "logger.wandb.offline=true", "prediction=v,epsilon", "trainer=cpu")
    done = script("train.py", "-m", *TINY, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = run_folders(tmp_path, "multirun")
    said = done.stdout.splitlines()[-1]
    assert said.startswith(
        f"W&B: offline; upload with: wandb sync {folders[0].parent.relative_to(tmp_path)}/report/wandb/"
    )
    groups = {
        next(r.run.run_group for r in wandb_records(folder) if r.HasField("run"))
        for folder in (*folders, folders[0].parent / "report")
    }
    assert groups == {"_".join(folders[0].parts[-3:-1])}


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as a dashboard needs."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list] = []
    project: ClassVar[dict] = {"allViews": {"edges": []}}
    error = None

    def log_message(self, *args):
        """Nothing."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = json.loads(body) if body[:1] == b"{" else {"query": ""}
        data = {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "allViews" in asked["query"]:
            data = {"project": Server.project}
        elif "upsertView" in asked["query"]:
            Server.asked.append(asked["variables"])
            data = {"upsertView": {"view": {"id": "view-1", "name": asked["variables"]["name"]}, "inserted": True}}
        answer = {"data": data}
        if Server.error and "upsertView" in asked["query"]:
            answer = {"data": None, "errors": [{"message": Server.error}]}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server():
    Server.asked, Server.project, Server.error = [], {"allViews": {"edges": []}}, None
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def lay_out(folder, *options, **env):
    """Exit code, what was printed, its error, and the seconds."""
    argv = ["-m", "ddpm_lightning", "report", *options, "--wandb"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    env = {**clean, "PYTHONPATH": str(ROOT), "NETRC": str(folder / "none"), **env}
    (done,) = start_all([{"argv": argv, "cwd": str(folder), "env": env}])
    return done["code"], done["out"], done["err"], done["seconds"]


def test_the_dashboard_is_laid_out_and_laid_out_again(server, tmp_path):
    code, said, error, _ = lay_out(tmp_path, "--project", "mine", WANDB_BASE_URL=server, WANDB_API_KEY=KEY)
    assert (code, error) == (0, "")
    assert said.startswith(f"{server}/me/mine?nw=")
    (first,) = Server.asked
    assert (first["entityName"], first["projectName"], first["displayName"]) == ("me", "mine", "ddpm_lightning")
    assert "id" not in first
    assert json.loads(first["spec"])["section"]["settings"]["xAxis"] == "trainer/global_step"
    node = {"id": "view-1", "displayName": "ddpm_lightning", "spec": first["spec"]}
    Server.project = {"allViews": {"edges": [{"node": node}]}}
    assert lay_out(tmp_path, "--project", "mine", WANDB_BASE_URL=server, WANDB_API_KEY=KEY)[:3] == (0, said, "")
    assert (Server.asked[1]["id"], Server.asked[1]["name"]) == ("view-1", first["name"])


def test_a_folders_dashboard_is_its_sweeps(server, sweep, tmp_path):
    code, said, error, _ = lay_out(tmp_path, str(sweep), WANDB_BASE_URL=server, WANDB_API_KEY=KEY)
    assert code == 0, error
    lines = said.splitlines()
    assert [line.partition(":")[0].rpartition("/")[2] for line in lines[:3]] == ["report.html", "report.md", "W&B"]
    assert lines[3].startswith(f"{server}/me/ddpm_lightning?nw=")
    assert Server.asked[0]["displayName"] == "ddpm_lightning: day_time"


@pytest.mark.parametrize(
    ("project", "refusal", "says"),
    [(None, None, "not found"), ({"allViews": {"edges": []}}, "permission denied", "permission denied")],
)
def test_a_project_that_is_refused(server, tmp_path, project, refusal, says):
    Server.project, Server.error = project, refusal
    code, said, error, _ = lay_out(tmp_path, "--project", "gone", WANDB_BASE_URL=server, WANDB_API_KEY=KEY)
    assert (code, said) == (1, "")
    assert error.startswith("error: W&B did not save the dashboard of --project gone of --entity me (")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({}, "W&B has no API key: `wandb login`, or set WANDB_API_KEY"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid"),
        (
            {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "W&B did not save the dashboard of --project ddpm_lightning (",
        ),
    ],
)
def test_no_key_and_no_network_are_said_in_seconds(tmp_path, env, says):
    code, said, error, seconds = lay_out(tmp_path, **env)
    assert (code, said) == (1, "")
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert seconds < 60  # ten of them W&B's, the others this machine's
