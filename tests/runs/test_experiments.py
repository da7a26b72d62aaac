"""Two steps of every preset that trains for days."""

import pytest
import torch

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.build import build_module
from tests.helpers.configs import TINY, train_config
from tests.helpers.experiments import LONG, PUBLISHED, pictures, preset


def tiny(name):
    small = [o for o in TINY if not o.startswith("data.batch_size")]
    if name == "lecture":
        small = [o for o in small if not o.startswith("callbacks.raw_grid")]
    if name == "imagenet64_dit":
        small = [o for o in small if not o.startswith("model.")]
        small += ["model.hidden_size=32", "model.depth=1", "model.num_heads=2"]
    if name == "celeba64":
        small.append("data.dataset.crop=null")  # the pictures are smaller
    return [*small, "data.batch_size=4", "trainer.max_steps=2"]


@pytest.mark.parametrize("name", sorted(LONG))
def test_a_preset_is_trained_for_two_steps(name, tmp_path):
    folder = tmp_path / "run"
    config = train_config(folder, f"experiment={name}", *pictures(tmp_path / "set"), tiny=tiny(name))
    assert config.trainer.gradient_clip_val == PUBLISHED[name]["trainer.gradient_clip_val"]
    build_module(config)
    runs.train(config)
    assert (folder / "summary.json").exists()
    held = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert ("ema_state_dict" in held) == (name != "lecture")


def test_the_lectures_closing_words_ask_for_its_raw_weights(tmp_path, capsys):
    runs.train(train_config(tmp_path / "run", "experiment=lecture", *pictures(tmp_path / "set"), tiny=tiny("lecture")))
    assert capsys.readouterr().out.rstrip().endswith("last.ckpt weights=raw")


def test_imagenet_asks_for_its_folder_in_one_sentence():
    with pytest.raises(UserError, match=r"^data\.root has no default: give it on the command line, as in data\.root="):
        runs.train(preset("imagenet64_dit"))
