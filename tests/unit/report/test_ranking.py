"""The verdicts and the title of a report, for all numbers of settings and seeds."""

from pathlib import Path

import pytest

from ddpm_lightning.report.ranking import Metric, Ranking
from ddpm_lightning.report.reading import Run, Setting
from ddpm_lightning.report.writing import title_of

DIGITS = "ddpm_lightning.data.datasets.digits"


def setting(name, *values, data=DIGITS):
    """A setting with a value for each of its seeds, or with unknown values."""
    config = {"data": {"dataset": {"_target_": data}}}
    runs = [
        Run(Path(f"{name}{seed}"), {**config, "seed": seed}, {}, {"best": {"m": value}}, "finished")
        for seed, value in enumerate(values)
    ]
    return Setting(dict(pair.split("=") for pair in name.split()), runs)


def ranking(*settings, lower=True):
    return Ranking(Metric("m", lambda setting: setting.mean("best.m"), (), lower), settings)


@pytest.mark.parametrize(("seeds", "mean"), [(1, "2.3 (one seed)"), (2, "2.305 over 2 seeds")])
def test_fewer_than_three_seeds_have_no_verdict(seeds, mean):
    said = ranking(setting("a=1", *(2.5, 2.51)[:seeds]), setting("a=2", *(2.3, 2.31)[:seeds])).verdict
    assert (
        said == f"**No verdict** on m, since a test requires at least 3 seeds per setting: `a=2` is lowest with {mean}."
    )


def test_a_setting_with_too_few_seeds_spoils_no_other_test():
    found = ranking(setting("a=1", 2.5, 2.7, 2.6), setting("a=2", 1.0, 1.21, 1.1), setting("a=3", 3.0))
    assert "`a=2` is lowest" in found.verdict
    assert "but `a=3` has too few seeds for a test; it is significantly lower than `a=1`" in found.verdict
    assert found.tested == 1


def test_the_best_one_has_the_highest_value_where_higher_is_better():
    found = ranking(setting("a=1", 0.5, 0.6, 0.52), setting("a=2", 0.1, 0.21, 0.11), lower=False)
    assert found.verdict.startswith("**`a=1`** is best by m: 0.54 ")
    assert "significantly higher than `a=2`" in found.verdict


def test_many_settings_are_counted():
    found = ranking(*(setting(f"a={i}", *(i + (seed + i) % 3 / 100 for seed in range(3))) for i in range(4)))
    largest = max(pair.p for pair in found.pairs[:3])
    assert found.verdict.endswith(f", significantly lower than 3 other settings (all p ≤ {largest:.2g}).")
    found = ranking(
        *(setting(f"a={i}", *values) for i, values in enumerate([(1, 2, 3), (2, 3, 1.5), (3, 1, 3), (2, 3, 2)]))
    )
    assert ", but its lead over 3 other settings (all p ≥ 1) may be chance." in found.verdict
    found = ranking(setting("a=1", 1.0, 1.0, 1.0), setting("a=2", 2.0, 2.0, 2.0))
    assert found.verdict.endswith("significantly lower than `a=2` (p < 0.0001).")


def test_a_setting_alone_and_none_at_all():
    assert ranking(setting("a=1", 2.0)).verdict == "m: 2 (one seed)."
    alone = ranking(setting("a=1", None), setting("a=2", 2.0)).verdict
    assert alone == "m: 2 (one seed) with `a=2`, the only setting with this metric."
    assert ranking(setting("a=1", None)).verdict == ""


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ([("s=linear", 1), ("s=cosine", 1)], "Which s? linear, cosine × 1 seed on digits"),
        ([("s=linear", 1), ("s=cosine", 2)], "Which s? linear, cosine × 1–2 seeds on digits"),
        (
            [(f"s={s} p={p}", 3) for s in ("linear", "cosine") for p in ("v", "x0")],
            "Which s and p? linear, cosine × v, x0 × 3 seeds on digits",
        ),
        ([("s=linear p=v", 1), ("s=cosine p=x0", 1)], "Which s and p? 2 settings × 1 seed on digits"),
        ([(f"lr=1.23456e-{i:02d}", 1) for i in range(1, 9)], "Which lr? 8 settings × 1 seed on digits"),
        ([("a=1 b=1 c=1 d=1", 1), ("a=2 b=2 c=2 d=2", 1)], "Which a, b and 2 more? 2 settings × 1 seed on digits"),
        ([("", 3)], "One setting × 3 seeds on digits"),
    ],
)
def test_the_title_is_the_question(settings, title):
    assert title_of([setting(name, *[1.0] * seeds) for name, seeds in settings]) == title


def test_the_title_names_no_dataset_where_they_differ():
    found = [setting("data=digits", 1.0), setting("data=moons", 1.0, data="sklearn.datasets.make_moons")]
    assert title_of(found) == "Which data? digits, moons × 1 seed"
