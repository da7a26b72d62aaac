"""The page that a sweep ends in: its numbers, its claims, and that it needs nothing but itself."""

import base64
import csv
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats

from ddpm_lightning.__main__ import main
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import cells, grid, save_png
from ddpm_lightning.report import write_report
from ddpm_lightning.report.figures import curves, last_samples
from ddpm_lightning.report.ranking import validations, winner
from ddpm_lightning.report.reading import read_runs, settings_of
from ddpm_lightning.report.writing import compare
from ddpm_lightning.sheets import by_label, captions_of
from tests.helpers.reports import fabricate, rows_of

BITS = {
    "linear": (2.50, 2.90, 2.55),
    "cosine": (2.30, 2.69, 2.36),  # below linear with every seed, though the deviations overlap
    "sigmoid": (2.33, 2.67, 2.38),  # now above cosine, now below
}


P_LINEAR = f"{3 * stats.ttest_rel(BITS['linear'], BITS['cosine']).pvalue:.2g}"  # the smallest of three, by Holm


def verdict(name, settings):
    return next((ranking.verdict for ranking in validations(settings) if ranking.metric.name == name), None)


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


def test_a_sweep_ends_with_its_verdict(sweep):
    """By the metric that was asked for, or else one that compares."""
    settings = settings_of(read_runs(sweep))
    assert winner("val/bits_per_dim", settings) == winner("val/loss", settings) == verdict("val/bits_per_dim", settings)
    assert winner("val/loss", settings[3:]) == ""
    alone = settings_of(settings[1].runs)
    assert winner("val/bits_per_dim", alone) == "`val/bits_per_dim`: 2.45 [1.93, 2.97] over 3 seeds."


def test_the_table_has_the_best_setting_first_and_its_lead(pages):
    rows = rows_of(pages[1], "Results by `val/bits_per_dim` (lower is better)")
    assert [row[0] for row in rows] == ["`cosine`", "`sigmoid`", "`linear`"]  # the interrupted job's 1.0 is no result
    for (name, *row), p in zip(rows, ("–", "0.58", P_LINEAR), strict=True):
        values = np.array(BITS[name.strip("`")])
        low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
        text = f"{values.mean():.2f} \\[{low:.2f}, {high:.2f}\\]"
        assert row[:2] == ["3", text]
        assert float(row[2].split()[0]) == pytest.approx(1.1 * values.mean(), abs=0.006)  # the last one, as fabricated
        delta = np.mean(values - BITS["cosine"])
        assert row[3] == "–" if name == "`cosine`" else row[3].startswith(f"{delta:.2g}")
        assert row[4] == p


def test_all_pairs_are_listed_with_their_tests(sweep, pages):
    (section,) = [s for s in compare(sweep).page.sections if s.details]
    assert section.details[0] == "How differences are tested, and all pairs"
    table = section.details[2]
    assert [row.cells[:2] for row in table.rows] == [
        ["`schedule=sigmoid` − `schedule=cosine`", "paired"],
        ["`schedule=linear` − `schedule=cosine`", "paired"],
        ["`schedule=linear` − `schedule=sigmoid`", "paired"],
    ]
    raw = [
        stats.ttest_rel(BITS[a], BITS[b]).pvalue
        for a, b in [("sigmoid", "cosine"), ("linear", "cosine"), ("linear", "sigmoid")]
    ]
    assert [row.cells[3] for row in table.rows] == pytest.approx(raw, rel=1e-6)
    assert raw[1] < raw[2] < raw[0]
    corrected = [max(raw[0], 2 * raw[2]), 3 * raw[1], 2 * raw[2]]  # Holm: three tests, then two, then one
    assert [row.cells[4] for row in table.rows] == pytest.approx(corrected, rel=1e-6)
    assert [row.bold for row in table.rows] == [{4} if p < 0.05 else set() for p in corrected]
    assert "corrected by Holm's method for 3 pairs of settings" in section.note
    assert section.note.endswith("although the intervals of two settings overlap.")


def test_the_answer_claims_no_more_than_the_tests(sweep, pages):
    settings = settings_of(read_runs(sweep))
    bits = verdict("val/bits_per_dim", settings)
    assert bits == (
        "**No clear winner** by `val/bits_per_dim`: `schedule=cosine` is lowest, 2.45 [1.93, 2.97] over 3 seeds, but its lead over "
        f"`schedule=sigmoid` (p = 0.58) may be chance; it is significantly lower than `schedule=linear` (p = {P_LINEAR})."
    )
    assert pages[1].splitlines()[2] == bits.replace("[", "\\[").replace("]", "\\]")
    two = verdict("val/bits_per_dim", settings[:2])
    p = stats.ttest_rel(BITS["cosine"], BITS["linear"]).pvalue  # one test needs no correction
    assert two == (
        "**`schedule=cosine`** is best by `val/bits_per_dim`: 2.45 [1.93, 2.97] over 3 seeds, significantly lower than "
        f"`schedule=linear` (p = {p:.2g})."
    )
    assert verdict("val/loss", settings) == "`val/loss` cannot be compared: the settings differ in `schedule`."
    assert verdict("val/fid", settings) is None
    assert verdict("val/bits_per_dim", settings[3:]) is None


def test_the_page_says_when_and_with_what_the_runs_were_trained(tmp_path):
    said = {"git_commit": 40 * "a", "versions": {"torch": "2.9.0", "python": "3.12.1", "ddpm_lightning": "0.1.0"}}
    fabricate(tmp_path, 0, "seed=0", ended="2026-01-02T10:00:00+00:00", **said)
    fabricate(tmp_path, 1, "seed=1", ended="2026-01-03T11:22:33+00:00", **said)
    fabricate(tmp_path, 2, "seed=2", status="interrupted", git_commit={"odd": 1}, versions=3)
    page = compare(tmp_path).page
    assert [*page.facts][:-1] == [
        *("2 of 3 runs finished", "trained on 2026-01-02 to 2026-01-03", "commit `aaaaaaaaaaaa`"),
        *("ddpm_lightning 0.1.0", "torch 2.9.0", "Python 3.12.1"),
    ]
    assert re.fullmatch(r"page written on \d{4}-\d\d-\d\d \d\d:\d\d UTC by ddpm_lightning [\d.]+", page.facts[-1])
    rows = [row.cells[3:] for row in page.sections[-1].table.rows]
    assert rows == [
        ["finished", "2026-01-02 10:00", "aaaaaaaaaaaa"],
        ["finished", "2026-01-03 11:22", "aaaaaaaaaaaa"],
        ["interrupted", None, None],
    ]


def test_any_runs_are_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = fabricate(Path("outputs"), 0, "schedule=linear", ended="2026-01-02T10:00:00")
    again = fabricate(Path("elsewhere"), 5, "schedule=linear", best={"val/loss": 0.7}, ended="2026-01-02T11:00:00")
    fabricate(Path("elsewhere"), 6, "schedule=cosine")
    assert main(["report", str(one), "elsewhere", str(again), "--out", "here"]) == 0
    assert capsys.readouterr().out == "here/report.html\nhere/report.md\n"
    text = (tmp_path / "here" / "report.md").read_text()
    assert "`../outputs/0_schedule_linear`" in text
    rows = rows_of(text, "Results by `val/loss` (lower is better)")
    assert rows == [
        ["`linear`", "1", "0.7", "0.77"],
        ["`cosine`", "1", "0.1", "0.11"],
    ]  # the later run of a seed counts
    assert f"report outputs/0_schedule_linear elsewhere {again} --out here`" in text
    assert main(["report", "outputs", "elsewhere"]) == 0
    assert re.fullmatch(r"reports/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d/report.html", capsys.readouterr().out.split()[0])


def test_every_table_is_a_file_and_in_the_page(sweep, pages):
    written = {path.name for path in (sweep / "tables").iterdir()}
    names = ["results_val_bits_per_dim", "pairs_val_bits_per_dim", "results_val_loss", "not_finished", "cost", "runs"]
    assert written == {f"{name}.{form}" for name in names for form in ("csv", "tex")}
    with (sweep / "tables" / "results_val_bits_per_dim.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["best validation"]) for row in rows] == pytest.approx(
        [np.mean(BITS[row["schedule"]]) for row in rows]
    )
    for form in ("csv", "tex"):
        for name in names:
            (link,) = re.findall(rf'download="{name}.{form}" href="data:text/[^,]+,([^"]*)"', pages[0])
            assert unquote(link) == (sweep / "tables" / f"{name}.{form}").read_text()
            assert f"`tables/{name}.{form}`" in pages[1]


def test_tables_are_not_written_through_a_link(tmp_path):
    run, outside = fabricate(tmp_path / "sweep", 0), tmp_path / "outside"
    outside.mkdir()
    (run / "tables").symlink_to(outside)
    with pytest.raises(UserError, match="tables is a link to"):
        write_report(run)
    assert not list(outside.iterdir())


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
    assert "train -m schedule=linear,cosine,sigmoid,laplace seed=0,1,2`" in pages[1]
    assert ["`4_schedule_cosine,seed_1`", "`schedule=cosine`", "1", "finished", "–", "–"] in rows_of(
        pages[1], "How it was made"
    )


def test_the_page_needs_nothing_but_itself(pages):
    html = pages[0]
    assert not re.search(r"https?://(?!www.w3.org/2000/svg)|<script [^t]|<link|@import|url\(", html)
    sources = re.findall(r'src="([^"]+)"', html)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    pictures = [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))) for s in sources]
    assert len(pictures) == 11  # a row for each run
    # three metrics by step and by time, the first quarter's loss, two curves of the schedules
    assert len(re.findall('<script type="application/json">', html)) == 9
    assert "width=device-width" in html


def test_curves_are_means_over_the_seeds_by_step_and_time(sweep):
    drawn = {(plot.title, plot.x_label): plot.curves for plot in curves(settings_of(read_runs(sweep)))}
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
    for number, job in enumerate((one, two)):
        fabricate(tmp_path, number, job, best={metric: 1.0})
    (ranking,) = [r for r in validations(settings_of(read_runs(tmp_path))) if r.metric.name == metric]
    assert ranking.incomparable == keys


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
        assert printed.err.startswith("error: the folder must contain runs of train.py")
    assert not list(tmp_path.glob("**/report.*"))


def test_a_report_that_cannot_be_written_leaves_the_sweep_alone(tmp_path, capsys):
    from ddpm_lightning.cli.sweeps import Report

    Report().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "gone")}}}))
    assert "the report cannot be written: " in capsys.readouterr().err
