"""The page that a sweep ends in: its numbers, its claims, and that it needs nothing but itself."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats

from ddpm_lightning.__main__ import main
from ddpm_lightning.images import cells, grid, save_png
from ddpm_lightning.report import write_report
from ddpm_lightning.report.comparison import Distance, Mean
from ddpm_lightning.report.figures import curves, last_samples
from ddpm_lightning.report.ranking import incomparable, verdict, winner
from ddpm_lightning.report.reading import read_runs, settings_of
from ddpm_lightning.sheets import by_label, captions_of
from tests.helpers.reports import fabricate, rows_of

BITS = {
    "linear": (2.50, 2.90, 2.55),
    "cosine": (2.30, 2.69, 2.36),  # below linear with every seed, though the deviations overlap
    "sigmoid": (2.33, 2.67, 2.38),  # now above cosine, now below
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three schedules with three seeds each, one job that was interrupted, one killed, and one that left no folder."""
    folder = tmp_path_factory.mktemp("multirun") / "09-00-00"
    number = 0
    for name, values in BITS.items():
        for seed, value in enumerate(values):
            fabricate(folder, number, f"schedule={name}", f"seed={seed}", best={"val/bits_per_dim": value})
            number += 1
    fabricate(folder, 9, "schedule=laplace", "seed=0", status="interrupted", best={"val/bits_per_dim": 1.0})
    fabricate(folder, 10, "schedule=laplace", "seed=1", status=None)
    failed = {
        10: {"overrides": "schedule=laplace seed=1", "why": "exit code -9"},
        11: {"overrides": "schedule=<odd> seed=0", "why": "lost | found"},
    }
    (folder / "failed_jobs").mkdir()
    for job, note in failed.items():
        (folder / "failed_jobs" / f"{job}.json").write_text(json.dumps(note))
    sweep = {"hydra": {"overrides": {"task": ["schedule=linear,cosine,sigmoid,laplace", "seed=0,1,2"]}}}
    OmegaConf.save(OmegaConf.create(sweep), folder / "multirun.yaml")
    return folder


@pytest.fixture(scope="module")
def pages(sweep):
    html, markdown = write_report(sweep)
    assert (html, markdown) == (sweep / "report.html", sweep / "report.md")
    return html.read_text(), markdown.read_text()


def test_jobs_that_differ_in_their_seed_only_are_one_setting(sweep):
    settings = settings_of(read_runs(sweep))
    assert [setting.name for setting in settings] == [
        f"schedule={n}" for n in ("linear", "cosine", "sigmoid", "laplace")
    ]
    assert [[run.seed for run in setting.runs] for setting in settings] == [[0, 1, 2]] * 3 + [[0, 1]]
    assert [run.status for run in settings[3].runs] == ["interrupted", "killed"]


def test_a_sweep_ends_with_its_best_setting(sweep):
    """By the metric that was asked for, or else one that compares; a single setting has no other to be better than."""
    settings = settings_of(read_runs(sweep))
    best = "Best val/bits_per_dim (lower is better): 2.45 ± 0.21 over 3 seeds with schedule=cosine"
    assert winner("val/bits_per_dim", settings) == winner("val/loss", settings) == best
    assert winner("val/bits_per_dim", settings_of(settings[1].runs)) == "val/bits_per_dim: 2.45 ± 0.21 over 3 seeds"
    assert winner("val/loss", settings[3:]) == ""


def test_the_table_holds_mean_and_deviation_and_how_far_the_best_is(pages):
    rows = {row[0]: row[1:] for row in rows_of(pages[1], "Results")}
    for name, values in BITS.items():
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        text = f"{mean:.2f} ± {deviation:.2f}"
        assert rows[name][:2] == ["3", f"**{text}**" if name == "cosine" else text]
    assert rows["cosine"][2] == "–"
    assert rows["linear"][2] == "+0.2 clear"  # as all three seeds say, whatever the deviations
    assert rows["sigmoid"][2] == "+0.01 within"
    assert rows["laplace"] == ["0", "–", "–", "–"]  # the interrupted job's 1.0 is no result


def test_the_answer_claims_no_more_than_the_spread_allows(sweep, pages):
    settings = settings_of(read_runs(sweep))
    first = pages[1].splitlines()[2]
    p = stats.ttest_rel(BITS["cosine"], BITS["sigmoid"]).pvalue
    assert first == (
        "`val/bits_per_dim`: **`schedule=cosine`** is lowest, 2.45 ± 0.21 over 3 seeds: 0.01 below `schedule=sigmoid`, within the "
        f"spread (p = {p:.2g}); 0.2 below `schedule=linear`, more than the spread "
        f"(p = {stats.ttest_rel(BITS['cosine'], BITS['linear']).pvalue:.2g}). There is no clear winner."
    )
    two = verdict("val/bits_per_dim", settings[:2])
    assert two.startswith(
        "`val/bits_per_dim`: **`schedule=cosine`** is best, 2.45 ± 0.21 over 3 seeds: 0.2 below `schedule=linear`"
    )
    assert re.search(r"`schedule=linear`, more than the spread \(p = 0\.00\d+\)\.$", two)
    assert verdict("val/loss", settings) == "`val/loss` cannot be compared: the settings differ in `schedule`."
    assert verdict("val/fid", settings) is None
    assert verdict("val/bits_per_dim", settings[3:]) is None


def test_one_seed_has_no_spread(tmp_path):
    for number, (name, value) in enumerate({"linear": 2.5, "cosine": 2.3}.items()):
        fabricate(tmp_path, number, f"schedule={name}", best={"val/bits_per_dim": value})
    said = verdict("val/bits_per_dim", settings_of(read_runs(tmp_path)))
    assert said == (
        "`val/bits_per_dim`: **`schedule=cosine`** is lowest, 2.3 (one seed): 0.2 below `schedule=linear`. More seeds are needed to tell."
    )


@pytest.mark.parametrize("shift", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_tests_are_scipys(n, shift):
    draw = np.random.default_rng(n)
    a, b = draw.normal(size=n), draw.normal(shift, 0.5, size=n)
    paired = Distance.between(Mean(dict(enumerate(a))), Mean(dict(enumerate(b))))
    assert paired.delta == pytest.approx(np.mean(b - a))
    assert paired.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6)
    apart = Distance.between(Mean(dict(enumerate(a))), Mean({100 + i: v for i, v in enumerate([*b, 0.7])}))
    assert apart.p == pytest.approx(stats.ttest_ind(a, [*b, 0.7], equal_var=False).pvalue, rel=1e-6)


def test_deviations_are_numpys():
    for n in range(2, 9):
        values = np.random.default_rng(n).lognormal(size=n)
        mean = Mean(dict(enumerate(values)))
        np.testing.assert_allclose([mean.mean, mean.deviation], [np.mean(values), np.std(values, ddof=1)], rtol=1e-12)


def test_means_of_the_same_and_of_single_values():
    assert str(Mean({0: 2.0, 1: 2.0})) == "2 ± 0"
    assert str(Mean({0: 1234.5, 1: 1240.5})) == "1,237.5 ± 4.2"
    assert str(Mean({0: 0.123456})) == "0.1235"
    same = Mean({0: 2.0, 1: 2.0})
    assert Distance.between(same, same).clear is False
    assert Distance.between(same, Mean({0: 2.5, 1: 2.5})).clear is True
    assert Distance.between(same, Mean({0: 3.0})).clear is None


def test_what_has_not_finished_is_listed(pages):
    rows = rows_of(pages[1], "Not finished")
    assert rows == [
        ["`9_schedule_laplace,seed_0`", "interrupted", "after 100 steps"],
        ["`10_schedule_laplace,seed_1`", "killed", "exit code -9"],
        ["job 11", "failed", r"`schedule=<odd> seed=0`: lost \| found"],
    ]
    assert "<code>schedule=&lt;odd&gt; seed=0</code>: lost | found" in pages[0]


def test_the_cost_and_the_origin(pages):
    assert [row[1:] for row in rows_of(pages[1], "Cost")] == [
        [f"{seconds}", "1,000", "284,513", "100", "1", "50"] for seconds in (21, 24, 27)
    ] + [[*["–"] * 5, "50"]]
    assert "`python train.py -m schedule=linear,cosine,sigmoid,laplace seed=0,1,2`" in pages[1]
    assert ["`4_schedule_cosine,seed_1`", "schedule=cosine", "1", "finished"] in rows_of(pages[1], "How it was made")


def test_the_page_needs_nothing_but_itself(pages):
    html = pages[0]
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    sources = re.findall(r'src="([^"]+)"', html)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    pictures = [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))) for s in sources]
    plots = [picture for picture in pictures if picture.height > 300]
    # three metrics by step and by time, the first quarter's loss, two curves of the schedules; then a row for each run
    assert (len(plots), len(pictures) - len(plots)) == (9, 11)
    for plot in plots:
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 50
    assert "width=device-width" in html


def test_curves_are_means_over_the_seeds_by_step_and_time(sweep, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "ddpm_lightning.report.figures.draw_curves",
        lambda curves, **kw: drawn.setdefault((kw["title"], kw["x_label"]), curves),
    )
    list(curves(settings_of(read_runs(sweep))))
    linear = drawn["val/bits_per_dim", "step"][0]
    assert (linear.name, linear.number, list(linear.x)) == ("schedule=linear", 0, [50, 100])
    np.testing.assert_allclose(linear.y, [2 * np.mean(BITS["linear"]), np.mean(BITS["linear"])])
    np.testing.assert_allclose([linear.low[1], linear.high[1]], [2.5, 2.9])
    np.testing.assert_allclose(drawn["val/bits_per_dim", "wall time in s"][0].x, [5, 10])  # from training's rows


def test_samples_are_the_first_of_the_grid_in_their_order(tmp_path):
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 8, 8) * 10
    plain = fabricate(tmp_path, 0, "data.channels=3", images=images)
    labelled = fabricate(tmp_path, 1, "data.num_classes=10", "callbacks.sample_grid.num_samples=15")
    sheet = by_label(images[:15], captions_of(range(10)))
    save_png(sheet.pixels, labelled / "samples" / "grid_0000100.png", sheet.facts)
    for run in read_runs(tmp_path):
        count = {plain: 12, labelled: 14}[run.folder]
        with Image.open(io.BytesIO(last_samples(run, count=count))) as image:
            row = np.array(image)
        assert row.shape == (4 + 64 + 4, 4 + count * (64 + 4), 3)
        assert row[9, 9::68, 0].tolist() == [10 * i for i in range(count)]


def test_cells_are_what_a_grid_was_made_of():
    images = torch.randint(256, (7, 3, 5, 40), dtype=torch.uint8)
    found = cells(grid(images, columns=3), (5, 40))
    assert torch.equal(found[:7], images)
    assert found.shape[0] == 9
    assert torch.equal(cells(grid(images[:1]), (5, 40)), images[:1])  # which torchvision gives no frame


def test_settings_are_told_apart_by_what_was_typed_or_else_by_the_config(tmp_path):
    fabricate(tmp_path, 0, "schedule=linear", "optimizer.lr=1e-3")
    fabricate(tmp_path, 1, "optimizer.lr=2e-3", "prediction=epsilon")  # the default, typed
    settings = settings_of(read_runs(tmp_path))
    assert [setting.values for setting in settings] == [{"optimizer.lr": "1e-3"}, {"optimizer.lr": "2e-3"}]
    for path in tmp_path.glob("*/summary.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "overrides": []}))
    settings = settings_of(read_runs(tmp_path))
    assert [setting.name for setting in settings] == ["optimizer.lr=0.001", "optimizer.lr=0.002"]


@pytest.mark.parametrize(
    ("one", "two", "metric", "keys"),
    [
        ("prediction=v", "prediction=epsilon", "val/loss", ["prediction"]),
        ("prediction=v", "prediction=epsilon", "val/bits_per_dim", []),
        ("loss=min_snr", "loss=simple", "val/loss", ["loss"]),
        ("loss/times=stratified", "loss/times=uniform", "val/loss", []),  # validation draws t uniformly
        ("optimizer.lr=1e-3", "optimizer.lr=1e-4", "val/loss", []),
        ("data.val_fraction=0.1", "data.val_fraction=0.2", "val/bits_per_dim", ["data.val_fraction"]),
        ("features.num_steps=5", "features.num_steps=6", "val/fid", ["features"]),
    ],
)
def test_a_metric_is_compared_where_it_means_the_same(tmp_path, one, two, metric, keys):
    fabricate(tmp_path, 0, one)
    fabricate(tmp_path, 1, two)
    assert incomparable(metric, settings_of(read_runs(tmp_path))) == keys


def test_a_run_alone_has_a_report(tmp_path, capsys):
    run = fabricate(tmp_path, 0, "schedule=cosine", "seed=3", best={"val/bits_per_dim": 2.5})
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n{run / 'report.md'}\n"
    text = (run / "report.md").read_text()
    assert "`val/bits_per_dim`: 2.5 (one seed)." in text
    assert "`val/loss`: 0.1 (one seed)." in text
    assert "Schedules" not in text


def test_nothing_to_compare_is_said_in_a_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.yaml").write_text("a: [1, 2")
    (tmp_path / "file").touch()
    for name in ("no", "empty", "strange", "file"):
        assert main(["report", str(tmp_path / name)]) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert printed.err.startswith(f"error: {tmp_path / name} must be a folder with runs of train.py")
    assert not list(tmp_path.glob("**/report.*"))


def test_a_report_that_cannot_be_written_leaves_the_sweep_alone(tmp_path, capsys):
    from ddpm_lightning.cli.sweeps import Report

    Report().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "gone")}}}))
    assert "the report cannot be written: " in capsys.readouterr().err
