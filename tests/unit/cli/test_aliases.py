"""The table of other names: what each stands for is there, and no row hides what can be typed."""

from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ddpm_lightning.cli import menu
from ddpm_lightning.cli.aliases import ALIASES
from ddpm_lightning.cli.mistakes import meant
from tests.helpers.command_line import CONF, SCRIPTS


def names(program):
    return {group.name for group in menu.groups([CONF], program)}, {
        setting.key: setting for setting in menu.settings([CONF], program)
    }


@pytest.mark.parametrize("program", SCRIPTS)
def test_what_is_meant_is_there(program):
    """Each choice has a file; each key stands in the config of the choices beside it."""
    groups, settings = names(program)

    @cache
    def config(*chosen):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(program, [*chosen], return_hydra_config=True)

    for typed in ALIASES[program]:
        found, note = meant(program, f"{typed}7" if typed.endswith("=") else typed)
        assert found or note, typed
        words = [word.partition("=") for word in found.split() if word != "-m"]
        assert all(equals and value for _, equals, value in words), typed
        chosen = [(key, value) for key, _, value in words if key in groups and value not in ("7", "...")]
        for key, value in chosen:
            assert value in menu.choices([CONF], key), typed
        keys = [key for key, *_ in words if key not in groups]
        composed = config(*(f"{key}={value}" for key, value in chosen if keys))
        for key, _, value in words:
            if key in settings:
                assert value in ("7", "...", *(settings[key].values or [value])), typed
            elif key not in groups:
                parent, _, last = key.rpartition(".")
                assert last in {*OmegaConf.select(composed, parent)}, typed  # also where its value is missing


@pytest.mark.parametrize("program", SCRIPTS)
def test_no_row_stands_for_what_can_be_typed(program):
    groups, settings = names(program)
    for typed in ALIASES[program]:
        key, equals, value = typed.partition("=")
        assert typed == typed.lower().replace("-", "_")
        if equals and not value:
            assert key not in groups | settings.keys(), typed
        elif key in groups:
            assert value not in menu.choices([CONF], key), typed
        elif key in settings:
            assert value not in settings[key].values, typed


def test_a_name_may_stand_for_another_and_long_values_are_left_out():
    assert meant("train", "device=cuda") == ("trainer=gpu", "")
    assert meant("sample", f"path={'x' * 300}") == ("ckpt_path=...", "")
    assert meant("train", "unheard_of=3") == ("", "")
