"""What a resumed run's config keeps of an older version's."""

from ddpm_lightning.records.moved import rename_targets
from ddpm_lightning.runs.changes import without_handed

CONFIG = {
    "sampler": {"num_steps": 50},
    "data": {"channels": 1, "image_size": [8, 8], "num_classes": None},
    "callbacks": {
        "grid": {"sampler": {"num_steps": 50}, "shape": [1, 8, 8], "num_classes": None, "seed": 0},
        "other": {"sampler": {"num_steps": 20}, "num_classes": 3},
        "dropped": None,
    },
}


def test_callbacks_follow_the_runs_own_sampler_where_they_had_a_copy_of_it():
    callbacks = without_handed(CONFIG)["callbacks"]
    assert callbacks == {"grid": {"seed": 0}, "other": CONFIG["callbacks"]["other"], "dropped": None}
    assert "sampler" in CONFIG["callbacks"]["grid"]  # the checkpoint's own is left as it is


def test_odd_configs_are_left_as_they_are():
    for config in ({}, {"callbacks": 1}, {"callbacks": {}, "data": {"image_size": 8}}):
        assert without_handed(config) == config


def test_an_override_of_a_key_that_is_handed_now_adds_it():
    overrides = ["callbacks.grid.num_classes=3", "callbacks.grid.seed=3", "callbacks.grid.sampler.eta=1"]
    rename_targets(overrides)
    assert overrides == ["++callbacks.grid.num_classes=3", "callbacks.grid.seed=3", "callbacks.grid.sampler.eta=1"]
