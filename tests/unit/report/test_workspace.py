"""The dashboard of a W&B project and the report that a sweep leaves there: what they show is what is logged, and what fails is a sentence."""

import json
import sys

import pytest
from omegaconf import OmegaConf

from ddpm_lightning.__main__ import main
from ddpm_lightning.report import report_sweep
from ddpm_lightning.report.publishing import differing_keys, publish
from ddpm_lightning.report.reading import part, read_runs, settings_of
from ddpm_lightning.report.workspace import Sweep, workspace
from ddpm_lightning.report.writing import compare
from tests.helpers.reports import fabricate
from tests.helpers.workspace import fabricate_sweep

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return fabricate_sweep(tmp_path_factory.mktemp("multirun") / "day" / "time")


def test_the_only_axis_is_the_optimisers_step():
    made = workspace("me", "p")
    spec = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]
    assert spec["settings"]["xAxis"] == "trainer/global_step"
    sections = spec["panelBankConfig"]["sections"]
    assert {s["localPanelSettings"]["xAxis"] for s in sections} == {"trainer/global_step"}
    plots = [p for s in sections for p in s["panels"] if p["viewType"] == "Run History Line Plot"]
    assert {plot["config"]["xAxis"] for plot in plots} == {"trainer/global_step"}
    assert [section["name"] for section in sections] == [
        *(
            "Loss",
            "Loss by quartile of t",
            "Quality",
            "Terms of the bound",
            "Samples",
            "From noise to image",
            "Nearest training images",
        ),
        *("Noise-prediction error vs. log SNR", "Forward process", "Optimizer", "Speed", "Report of a sweep"),
    ]


def test_a_sweeps_dashboard_draws_a_curve_for_each_setting(sweep):
    keys = differing_keys(settings_of(read_runs(sweep)))
    assert keys == ["schedule._target_"]
    (shown,) = workspace("me", "p", Sweep("day_time", keys))._to_model().spec.section.run_sets
    assert [(f["key"]["name"], f["op"], f["value"]) for f in shown.filters["filters"]] == [("group", "=", "day_time")]
    assert [(key.section, key.name) for key in shown.grouping] == [("config", "schedule.value._target_")]
    (shown,) = workspace("me", "p")._to_model().spec.section.run_sets
    assert (shown.filters["filters"], shown.grouping) == ([], [])
    assert "config:schedule.value._target_" in shown.run_feed.column_order


def test_settings_are_told_apart_by_their_configs(tmp_path):
    fabricate(tmp_path, 0, "model=unet_tiny", "optimizer.lr=1e-3", "experiment=digits")
    fabricate(tmp_path, 1, "model=unet_small", "optimizer.lr=1e-4", "experiment=digits")
    keys = differing_keys(settings_of(read_runs(tmp_path)))
    assert keys[0].startswith("model.")
    assert keys[1:] == ["optimizer.lr"]


@pytest.mark.parametrize(
    "choices",
    [
        ("loss=simple", "loss=min_snr"),
        ("sampler=ddim", "sampler=dpmpp_2m", "sampler=dpmpp_2m_sde"),
        ("experiment=digits", "experiment=digits_cosine_v"),
    ],
)
def test_no_two_settings_share_a_curve(tmp_path, choices):
    """Where keys are missing in some, one class is chosen twice, or what was typed is no key at all."""
    for number, choice in enumerate(choices):
        fabricate(tmp_path, number, choice)
    settings = settings_of(read_runs(tmp_path))
    keys = differing_keys(settings)
    values = {repr([part(setting.runs[0].config, key) for key in keys]) for setting in settings}
    assert len(values) == len(settings) == len(choices)


def test_without_wandb_nothing_is_published(tmp_path):
    run = fabricate(tmp_path, 0)
    assert report_sweep(run) == ["val/loss: 0.1 (one seed).", str(run / "report.html"), str(run / "report.md")]
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "change", [{"_target_": "os.abort.WandbLogger"}, {"settings": "x"}, {"offline": {"_target_": "os.abort"}}]
)
def test_a_strangers_logger_is_refused(sweep, tmp_path, change):
    run = fabricate(tmp_path, 0)
    config = OmegaConf.load(run / "config.yaml")
    node = next(OmegaConf.load(path).logger.wandb for path in sweep.glob("0_*/config.yaml"))
    config.logger = {"wandb": {**node, **change}}
    OmegaConf.save(config, run / "config.yaml")
    said = publish(compare(run)).where
    assert said.startswith("did not receive the report (UserError: ")
    assert "refused" in said


def test_whatever_fails_ends_in_words(sweep, monkeypatch):
    def fails(*args, **kwargs):
        raise ConnectionResetError("two\nlines")

    monkeypatch.setattr("ddpm_lightning.report.publishing.build_loggers", fails)
    assert report_sweep(sweep)[3] == "W&B: did not receive the report (ConnectionResetError: two lines)"


def test_a_package_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "ddpm_lightning.report.workspace", raising=False)
    monkeypatch.delattr("ddpm_lightning.report.workspace", raising=False)
    assert main(["report", "--wandb"]) == 1
    assert capsys.readouterr().err == (
        "error: --wandb requires the package wandb-workspaces: pip install 'ddpm_lightning[workspaces]'\n"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "report requires a folder of runs or --wandb; "),
        (
            ["x", "--project", "p"],
            "report requires a folder of runs or --wandb; --project and --entity require --wandb",
        ),
    ],
)
def test_what_report_is_for(options, says, capsys):
    assert main(["report", *options]) == 1
    assert capsys.readouterr().err.startswith(f"error: {says}")
