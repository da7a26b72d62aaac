"""What evaluate.py wrote into the runs of a sweep, as a report compares it."""

import json
import os

import pytest
from scipy import stats

from ddpm_lightning.report.evaluated import evaluations
from ddpm_lightning.report.reading import read_runs, settings_of
from ddpm_lightning.report.writing import compare, write_report
from tests.helpers.reports import fabricate, rows_of

FID = {"linear": (8.0, 8.4, 8.1), "cosine": (5.0, 5.5, 5.2)}


def evaluate(run, fid, *, name="a", age=0, network="n", **protocol):
    """Write what evaluate.py writes."""
    protocol = {
        **{"checkpoint": str(run), "weights": "ema", "weights_fingerprint": str(fid), "data_seed": 1},
        **{"sampler": {"_target_": "ddpm_lightning.samplers.DDIM", "num_steps": 50}, "steps": 50, "labels": None},
        **{"num_samples": 1500, "seeds": [0], "reference": "train", "reference_images": 1617},
        **{"features": "own classifier", "features_fingerprint": network, "guidance_scale": 1.0},
        **protocol,
    }
    held_out = {"value": 0.5, "of": "180 held-out images in the samples' place"}
    metrics = {"fid": {"value": fid}, "recall": {"value": 1 / fid}, "fid_of_held_out": held_out}
    path = run / "evaluations" / f"ddim_50_{name}" / f"evaluation_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": metrics, "protocol": protocol}))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


@pytest.fixture
def sweep(tmp_path):
    for number, (name, values) in enumerate(FID.items()):
        for seed, fid in enumerate(values):
            evaluate(fabricate(tmp_path, 10 * number + seed, f"schedule={name}", f"seed={seed}"), fid)
    return tmp_path


def test_the_seeds_are_the_repeats(sweep):
    text = write_report(sweep)[1].read_text()
    p = stats.ttest_rel(FID["linear"], FID["cosine"]).pvalue
    assert text.splitlines()[2].startswith("**`schedule=cosine`** is best by FID: 5.23 ")
    assert text.splitlines()[2].endswith(f"significantly lower than `schedule=linear` (p = {p:.2g}).")
    rows = rows_of(text, "Evaluation")
    assert [row[:2] for row in rows] == [["`cosine`", "3"], ["`linear`", "3"]]
    low, high = stats.t.interval(0.95, 2, loc=stats.tmean(FID["linear"]), scale=stats.sem(FID["linear"]))
    assert rows[1][2] == f"{stats.tmean(FID['linear']):.2f} \\[{low:.2f}, {high:.2f}\\]"
    assert "`ddim` in 50 steps, 1,500 samples, EMA weights, 1,617 train images as reference" in text
    assert "180 held-out images in the samples' place have FID 0.5; FID is higher with fewer images." in text
    bold = next(section for section in compare(sweep).page.sections if section.heading == "Evaluation").table.rows
    assert [row.bold for row in bold] == [{2, 3}, set()]  # recall is higher where FID is lower


def test_one_protocol_is_compared_at_a_time(sweep):
    runs = sorted(sweep.glob("*_schedule*"))
    for run in runs[:4]:
        evaluate(run, 99.0, name="b", guidance_scale=2.0, labels=[0, 1])
    evaluate(runs[0], 1000.0, name="c", age=10)  # an earlier one of the same protocol, of another checkpoint
    page = compare(sweep).page
    one, two = (section for section in page.sections if section.heading.startswith("Evaluation"))
    assert (one.heading, two.heading) == ("Evaluation 1", "Evaluation 2")
    assert "labels [0, 1], guidance scale 2.0" in two.lead
    assert [row.cells[1] for row in one.table.rows] == [3, 3]
    assert sorted(row.cells[1] for row in two.table.rows) == [1, 3]
    assert max(row.cells[2].value for row in one.table.rows) < 10
    assert page.verdicts[0].startswith("Evaluation 1: **`schedule=cosine`** is best by FID")


def test_values_by_different_networks_are_not_compared(sweep):
    evaluate(sorted(sweep.glob("*_schedule*"))[0], 1.0, network="other")
    (found,) = evaluations(settings_of(read_runs(sweep)))
    assert [ranking.incomparable for ranking in found.rankings] == [["features_fingerprint"]] * 2
    assert found.verdicts == ["FID cannot be compared: the settings differ in `features_fingerprint`."]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[", "[1]", "{}", '{"metrics": 1, "protocol": {}}', '{"metrics": {}, "protocol": {}}'),
        '{"metrics": {"fid": {"value": "x"}}, "protocol": {"sampler": 1}}',
        '{"metrics": {"fid": {"value": NaN}, "kid": 3}, "protocol": {"sampler": {"num_steps": []}}}',
    ],
)
def test_what_is_no_evaluation_is_left_out(tmp_path, content):
    run = fabricate(tmp_path, 0)
    evaluate(run, 1.0).write_text(content)
    (run / "evaluations" / "x").mkdir()
    (run / "evaluations" / "x" / "evaluation_x.json").symlink_to("nowhere")
    assert evaluations(settings_of(read_runs(tmp_path))) == []
