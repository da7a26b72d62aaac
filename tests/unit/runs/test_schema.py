"""Twelve wrong values for every setting of conf/: each is refused in a sentence that names the setting, or stands in the table below."""

import re
from collections import defaultdict
from functools import partial
from inspect import signature
from typing import get_type_hints

import numpy as np
import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation import pipeline
from ddpm_lightning.runs import sampling
from ddpm_lightning.runs.build import build_module
from ddpm_lightning.runs.build_callbacks import build_callbacks
from ddpm_lightning.runs.checks import check_config
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.schema import Evaluation, Sampling, Training, check_types, settings_of
from tests.helpers.configs import ROOT, WHOLE, choices, config_of
from tests.unit.test_bad_values import build_all

WRONG = {
    "text": "perhaps",
    "null": None,
    "nan": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "1e400": float("1e400"),
    "list": ["x"],
    "mapping": {"a": 1},
    "true": True,
    "empty": "",
    "digit": "٣",
    "huge": 10**30,
}

# Which of them a setting takes: the names of the values, and behind the bar the settings.
ACCEPTED = """
# A switch.
true | data.flip data.on_device model.attention_out_bias model.checkpointing model.fast_cpu model.fast_gpu model.resblock_updown
true | model.scale_shift_norm model.xavier_init model.zero_init sample:overwrite schedule.rescale schedule.schedule.rescale
true | callbacks.ema.warmup loss.times.continuous sampler.continuous train:compile train:learned_variance
null true | optimizer.fused trainer.benchmark trainer.deterministic trainer.enable_model_summary trainer.enable_progress_bar
# Nothing of that kind, or all of it.
null | callbacks.ema.std callbacks.forward_strip.times callbacks.trajectory.num_frames callbacks.trajectory.viewer_frames
null | data.dataset.condition data.dataset.crop data.num_classes data.value_range evaluate:bits_images
null | evaluate:guidance_interval sample:guidance_interval train:guidance_interval loss.space
null | evaluate:bits_variance evaluate:reference_images loss.variance model.condition_channels model.condition_size model.head_channels
null | model.time_hidden_channels sampler.dynamic_threshold sampler.num_steps sampler.times trainer.check_val_every_n_epoch
# -1 is Lightning's "all" or "without end"; times and log SNR may be negative.
null -1 | trainer.max_epochs
-1 huge | callbacks.checkpoint.save_top_k
-1 | schedule.first schedule.last
-1 | loss.times.mean schedule.end schedule.max_log_snr schedule.min_log_snr schedule.mu schedule.start trainer.num_sanity_val_steps
# Any whole number is a seed; any positive one is a factor, or the steps between two.
huge | callbacks.forward_strip.seed callbacks.generation_metrics.seed callbacks.log_snr.seed callbacks.neighbors.seed callbacks.raw_grid.seed
huge | callbacks.sample_grid.seed callbacks.scatter.seed callbacks.trajectory.seed data.dataset.seed evaluate:seed sample:seed
huge | callbacks.generation_metrics.batch_size callbacks.generation_metrics.every_n_steps callbacks.loss_guard.spike
huge | loss.distance.delta loss.vlb_weight loss.weighting.k schedule.tau
null huge | callbacks.checkpoint.every_n_minutes callbacks.checkpoint.every_n_train_steps callbacks.log_snr.every_n_steps
null huge | callbacks.neighbors.every_n_steps callbacks.raw_grid.every_n_steps callbacks.sample_grid.every_n_steps
null huge | callbacks.scatter.every_n_steps callbacks.trajectory.every_n_steps evaluate:data_seed sampler.clip
huge | sampler.s_churn sampler.s_noise sampler.s_tmin
null huge | sampler.s_tmax trainer.gradient_clip_val trainer.limit_train_batches trainer.limit_val_batches
# Paths and names; a number is one, too.
text -1 digit huge | train:run_dir
text null -1 digit huge | callbacks.generation_metrics.cache_dir evaluate:cache_dir evaluate:ckpt_path evaluate:condition
text null -1 digit huge | evaluate:data_root evaluate:out_dir sample:ckpt_path sample:condition sample:out_dir
text null -1 digit huge | train:init_from train:resume
text null -1 digit huge | features.weights logger.tensorboard.name logger.wandb.entity logger.wandb.group logger.wandb.name
text null -1 empty digit huge | logger.tensorboard.version
text -1 digit huge | logger.wandb.project
null true | logger.wandb.offline
list | logger.wandb.tags
# Refused when the logger is built, before a folder is made: tests/processes/cli/test_sweeps.py.
text -1 true digit huge | logger.wandb.log_model
# Refused when the classifier is made, before anything is sampled: tests/runs/evaluation/test_pipeline.py.
-1 huge | features.num_steps features.seed
list | evaluate:trust sample:trust train:trust
# What only the checkpoint knows, refused when it is read: tests/runs/test_bad_input.py.
-1 huge | evaluate:guidance_scale sample:guidance_scale evaluate:guidance_rescale sample:guidance_rescale
text null -1 digit huge | evaluate:autoguidance sample:autoguidance
text null -1 list digit huge | evaluate:labels sample:labels
text -1 digit huge | evaluate:device evaluate:weights sample:device sample:format sample:weights
text -1 true digit huge | evaluate:compile sample:compile
"""

# What a choice needs beside it.
BESIDE = {
    "model=mlp": ["data=two_moons", "callbacks=points"],
    "loss=hybrid": ["learned_variance=true"],
    "schedule=alpha_bar": ["schedule.alpha_bar=[0.8,0.4,0.001]", "sampler.num_steps=2"],
    "schedule=betas": ["schedule.betas=[0.1,0.2,0.9]", "sampler.num_steps=2"],
    "schedule=linear_zero_snr": ["prediction=v"],
    "schedule=flow": ["prediction=flow"],
    "schedule=learned": ["loss=vdm"],
    "loss=vdm": ["schedule=learned"],
    "sampler=edm": ["sampler.spacing=trailing"],
    "callbacks=scatter": ["data=two_moons", "model=mlp", "model.hidden_size=8"],
    "callbacks=points": ["data=two_moons", "model=mlp", "model.hidden_size=8"],
    "callbacks=generation_metrics": ["callbacks=fid"],
    "data=arrays": ["data.root=ARRAYS", "data.channels=1", "data.image_size=[8,8]"],
    "data=image_folder": ["data.root=IMAGES", "data.image_size=[8,8]"],
    **{f"data={name}": ["model=mlp", "callbacks=points"] for name in ("two_moons", "checkerboard", "swiss_roll")},
    "data=digits_low_resolution": ["model.condition_channels=1"],
}
OTHERS = {
    "model": ["unet_tiny", "dit_tiny", "mlp"],
    "data": ["digits", "two_moons", "arrays", "image_folder", "digits_low_resolution"],
    "trainer": ["auto"],
    "sampler": [choice for choice in choices("sampler") if choice != "learned"],  # it first asks for what is learned
    "callbacks": ["fid", "points"],
}
GROUPS = [
    "model",
    "schedule",
    "loss",
    "loss/times",
    "sampler",
    "optimizer",
    "lr_scheduler",
    "trainer",
    "callbacks",
    "data",
]
PLACES = {"loss/times": "loss.times"}


def groups():
    for group in GROUPS:
        for choice in OTHERS.get(group, choices(group)):
            yield group, choice


def leaves(node, prefix):
    """The keys of what is set in a part, without what is named from elsewhere in conf/."""
    for name in map(str, node):
        if name.startswith("_") or OmegaConf.is_interpolation(node, name):
            continue
        value = None if OmegaConf.is_missing(node, name) else node[name]
        if isinstance(value, DictConfig):
            yield from leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


@pytest.fixture
def roots(tmp_path):
    np.save(tmp_path / "arrays.npy", np.zeros((12, 1, 8, 8), np.float32))
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.new("L", (8, 8), i).save(tmp_path / "images" / f"{i}.png")
    return {"ARRAYS": str(tmp_path / "arrays.npy"), "IMAGES": str(tmp_path / "images")}


def composed(group, choice, roots):
    """A tiny run with this choice."""
    beside = list(BESIDE.get(f"{group}={choice}", []))
    for name, path in roots.items():
        beside = [text.replace(name, path) for text in beside]
    other_model = any(text.startswith("model=") for text in [*beside, f"{group}={choice}"])
    dropped = ("callbacks.", *(["model."] if other_model else []), f"{group}.")
    tiny = [text for text in WHOLE if not text.startswith(dropped)]
    return config_of(*tiny, "logger=none", "run_dir=never/written", f"{group}={choice}", *beside)


def outcomes(config, key, call):
    """The names of the wrong values that are taken, after all others were refused in a sentence with the key."""
    node_key, _, name = key.rpartition(".")
    node = OmegaConf.select(config, node_key) if node_key else config
    before = OmegaConf.to_container(node, resolve=False)[name]
    for called, value in WRONG.items():
        node[name] = value
        try:
            call(config)
            yield called
        except UserError as error:
            said = str(error)
            assert "\n" not in said
            assert re.search(rf"\b{name}\b", said), f"{key}={called}: {said}"
        finally:
            node[name] = before


def accepted():
    table = defaultdict(list)
    for line in (line for line in ACCEPTED.splitlines() if "|" in line):
        names, _, keys = line.partition("|")
        for key in keys.split():
            table[key] += names.split()
    return table


def taker(target, key):
    """The class or function that takes this setting; "parent" where it is handed on unread, and looked at once for all."""
    named = target is None or key.rpartition(".")[2] in signature(get_object(target)).parameters
    return target if named else "parent"


def build_part(group):
    """The calls of training, those that look at a setting of the group first, so that most wrong values end there."""
    made = {
        "callbacks": lambda config: build_callbacks(config, build("sampler", config.sampler)),
        "trainer": lambda config: build("trainer", config.trainer, logger=False, callbacks=[]),
        "data": lambda config: (build_module(config), build("data", config.data).setup()),
    }.get(group, build_module)
    return lambda config: (check_config(config), made(config), build_all(config))


@pytest.mark.parametrize("group", GROUPS)
def test_wrong_values_of_parts(group, roots):
    table, seen, wrong = accepted(), set(), []
    for choice in OTHERS.get(group, choices(group)):
        config = composed(group, choice, roots)
        place = group.replace("/", ".")
        part = OmegaConf.select(config, place)
        for key in leaves(part, place):
            target = taker(OmegaConf.select(config, key.rpartition(".")[0]).get("_target_"), key)
            if (target, key) not in seen:
                seen.add((target, key))
                found = [*outcomes(config, key, build_part(group))]
                if sorted(found) != sorted(table[key]):
                    wrong.append(f"{choice}: {key}: {' '.join(found)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "program", "check"),
    [
        ("train", Training, build_all),
        ("sample", Sampling, sampling._check),
        ("evaluate", Evaluation, pipeline._check),
    ],
)
def test_wrong_values_of_programs(name, program, check):
    table, wrong = accepted(), []
    config = config_of("run_dir=never/written") if name == "train" else config_of(name=name)
    groups_of = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    own = {str(key) for key in config} - groups_of - {"hydra", "denoiser"}
    assert own == {*get_type_hints(program)}
    for key in sorted(own):
        found = [*outcomes(config, key, check)]
        if sorted(found) != sorted(table[f"{name}:{key}"]):
            wrong.append(f"{name}:{key}: {' '.join(found)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("choice", ["features/classifier", "features/inception", "logger/tensorboard", "logger/wandb"])
def test_wrong_values_of_what_is_built_later(choice):
    """Of networks that need files and loggers that write: their types, and ranges where they have some."""
    group, _, name = choice.partition("/")
    if group == "features":
        config, check = config_of(f"features={name}", name="evaluate"), pipeline._check
    else:
        config, check = config_of(f"logger={name}", "run_dir=never/written"), partial(check_types, program=Training)
    table, wrong = accepted(), []
    for key in leaves(config[group], group):
        found = [*outcomes(config, key, check)]
        if sorted(found) != sorted(table[key]):
            wrong.append(f"{choice}: {key}: {' '.join(found)}")
    assert not wrong, "\n".join(wrong)


def test_every_setting_of_a_part_has_a_type():
    for group in [*GROUPS, "features", "logger"]:
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            for target, node in parts(OmegaConf.load(path)):
                kinds = settings_of(target)
                assert not {name for name in node if not name.startswith("_") and name != "defaults"} - {*kinds}, path


def parts(node):
    if isinstance(node, DictConfig):
        if "_target_" in node and not OmegaConf.is_missing(node, "_target_"):
            yield node["_target_"], [str(name) for name in node]
        for name in node:
            if not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name):
                yield from parts(node[name])
