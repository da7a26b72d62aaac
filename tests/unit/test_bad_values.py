"""Absurd values are refused in one sentence by the constructor or the check that knows them, in milliseconds: no training, no folder."""

import copy
import re
from contextlib import nullcontext
from functools import cache

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from ddpm_lightning.cli.entry import sentence
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.build import build_module
from ddpm_lightning.runs.build_callbacks import build_callbacks
from ddpm_lightning.runs.checks import check_config
from ddpm_lightning.runs.instantiate import build
from tests.helpers.configs import WHOLE, config_of

# An absurd value or more for each number in conf/; the sentence names the last key and its value.
REFUSED = """
seed=-1
seed=nan
seed=1.5
seed=99999999999999
label_dropout=2
label_dropout=-1
label_dropout=null
label_dropout=some
guidance_scale=2
guidance_scale=null
data.num_classes=10 guidance_scale=-1
data.num_classes=10 guidance_scale=inf
learned_variance=perhaps
compile=perhaps
optimized_metric=val/los
optimized_metric=val/fid

callbacks=fid callbacks.generation_metrics.num_samples=9
callbacks=fid callbacks.generation_metrics.every_n_steps=0
callbacks=fid callbacks.generation_metrics.batch_size=few
callbacks=fid callbacks.generation_metrics.seed=-1
callbacks=fid callbacks.generation_metrics.guidance_scale=-1

schedule.num_steps=-1
schedule.num_steps=0
schedule.num_steps=1000000000000
schedule.num_steps=null
schedule.num_steps=1e3
schedule.beta_start=0
schedule.beta_start=nan
schedule.beta_start=small
schedule.beta_end=2
schedule.beta_end=null
schedule=linear_zero_snr prediction=v schedule.schedule.beta_end=-0.1
schedule=cosine schedule.s=-0.1
schedule=cosine schedule.s=1e12
schedule=cosine schedule.max_beta=1.5
schedule=cosine schedule.max_beta=most
schedule=constant schedule.beta=0
schedule=laplace schedule.mu=nan
schedule=laplace schedule.b=0
schedule=laplace schedule.b=null
schedule=sigmoid schedule.start=5
schedule=sigmoid schedule.end=end
schedule=sigmoid schedule.tau=0
schedule=sigmoid schedule.clip_min=1
schedule=quadratic schedule.beta_start=-1
schedule=sigmoid_beta schedule.beta_end=inf
schedule=shifted_cosine schedule.noise_d=0
schedule=shifted_cosine schedule.noise_d=1.5
schedule=shifted_cosine schedule.min_log_snr=20
schedule=shifted_cosine schedule.max_log_snr=1e12
schedule=betas schedule.betas=0.1
schedule=alpha_bar schedule.alpha_bar=[]

model.base_channels=-8
model.base_channels=many
model.base_channels=null
model.base_channels=1000000
model.channel_multipliers=[]
model.channel_multipliers=2
model.channel_multipliers=[1,-1]
model.num_res_blocks=0
model.num_res_blocks=1000000000000
model.num_res_blocks=1.5
model.attention_levels=[7]
model.attention_levels=null
model.num_heads=0
model.num_heads=3
model.num_heads=null
model.head_channels=5
model.head_channels=-1
model.time_hidden_channels=0
model.dropout=1
model.dropout=nan
model.dropout=none
model.norm_groups=0
model.norm_groups=3
model.norm_eps=-1
model.norm_eps=null
model.downsample_padding=2
model.frequency_shift=-1
model=dit_tiny model.patch_size=0
model=dit_tiny model.hidden_size=30
model=dit_tiny model.hidden_size=1000000000000
model=dit_tiny model.depth=-1
model=dit_tiny model.depth=1000000000000
model=dit_tiny model.num_heads=5
model=dit_tiny model.mlp_ratio=0
model=dit_tiny model.mlp_ratio=wide
model=dit_tiny model.dropout=1.5

data.channels=2
data.channels=0
data.channels=1000000000000
data.image_size=8
data.image_size=[8]
data.image_size=[8,0]
data.image_size=[1000000,1000000]
data.num_classes=7
data.num_classes=0
data.num_classes=1000000000000
data.batch_size=0
data.batch_size=1000000000000
data.batch_size=null
data.val_fraction=1
data.val_fraction=-0.1
data.val_fraction=0.9999
data.val_fraction=half
data.seed=-1
data=webdataset data.root=nowhere data.dataset.workers=-1
data=webdataset data.root=nowhere data.dataset.workers=many
data=webdataset data.root=nowhere data.dataset.buffer=0
data=webdataset data.root=nowhere data.dataset.val_shards=-1
data=webdataset data.root=nowhere data.dataset.max_damaged=2
data=webdataset data.dataset.sizes=nowhere data.root=nothing

optimizer.lr=-1
optimizer.lr=fast
optimizer.lr=nan
optimizer.lr=1e12
optimizer.lr=null
optimizer.betas=[0.9]
optimizer.betas=[0.9,1.5]
optimizer.betas=0.9
optimizer.weight_decay=-1
optimizer.weight_decay=inf
+optimizer.eps=-1
+optimizer.eps=nan
lr_scheduler.start_factor=0
lr_scheduler.start_factor=null
lr_scheduler.end_factor=-1
lr_scheduler.end_factor=nan
lr_scheduler.total_iters=0
lr_scheduler.total_iters=-1
lr_scheduler.total_iters=1.5
lr_scheduler.total_iters=null
lr_scheduler=constant lr_scheduler.factor=-1
lr_scheduler=constant lr_scheduler.total_iters=-1

loss.offset_noise=-1
loss.offset_noise=strong
loss.input_perturbation=1e12
loss.input_perturbation=null
loss=huber loss.distance.delta=0
loss=huber loss.distance.delta=nan
loss=min_snr loss.weighting.gamma=-5
loss=min_snr loss.weighting.gamma=null
loss=p2 loss.weighting.gamma=-1
loss=p2 loss.weighting.k=0
loss=hybrid learned_variance=true loss.vlb_weight=-1
loss=bound loss.weighting.variance=tiny
loss=vlb loss.variance=tiny
loss=vlb loss/times=importance loss.times.num_steps=10
loss=vlb loss/times=importance loss.times.history=0
loss=vlb loss/times=importance loss.times.history=1000000000000
loss=vlb loss/times=importance loss.times.uniform=-1
loss=vlb loss/times=importance loss.times.uniform=null
loss/times=log_normal loss.times.mean=1e12
loss/times=log_normal loss.times.mean=mean
loss/times=log_normal loss.times.std=0

sampler.num_steps=-1
sampler.num_steps=1001
sampler.num_steps=2.5
sampler.eta=2
sampler.eta=null
sampler.clip=0
sampler.clip=nan
sampler.clip=hard
sampler.dynamic_threshold=2
sampler=dpmpp_2m sampler.eta=-1
sampler=ancestral sampler.variance=learned
sampler=ancestral sampler.variance=tiny

callbacks.ema.decay=1.5
callbacks.ema.decay=null
callbacks.loss_guard.spike=0
callbacks.loss_guard.spike=null
callbacks.sample_grid.num_samples=0
callbacks.sample_grid.num_samples=1000000000000
callbacks.sample_grid.num_samples=2.5
callbacks.sample_grid.every_n_steps=0
callbacks.sample_grid.every_n_steps=1.5
callbacks.sample_grid.seed=-1
callbacks.sample_grid.seed=0.5
callbacks.sample_grid.guidance_scale=-1
callbacks.trajectory.num_samples=null
callbacks.trajectory.num_columns=1
callbacks.trajectory.num_columns=2.5
callbacks.trajectory.every_n_steps=-1
callbacks.trajectory.num_frames=1
callbacks.trajectory.num_frames=many
callbacks.trajectory.viewer_frames=1
callbacks.trajectory.viewer_frames=many
callbacks.forward_strip.num_images=0
callbacks.forward_strip.num_columns=1
callbacks.forward_strip.times=[-1]
callbacks.forward_strip.times=[0.5]
callbacks.forward_strip.seed=-1
callbacks.sample_grid.weights=best
callbacks.raw_grid.num_samples=0
callbacks.raw_grid.every_n_steps=0.5
callbacks.raw_grid.seed=-1
callbacks.raw_grid.guidance_scale=-1
callbacks.neighbors.num_samples=0
callbacks.neighbors.num_neighbors=0
callbacks.neighbors.num_neighbors=1.5
callbacks.neighbors.every_n_steps=0
callbacks.neighbors.seed=-1
callbacks.log_snr.num_images=0
callbacks.log_snr.num_images=all
callbacks.log_snr.batch_size=0
callbacks.log_snr.every_n_steps=0
callbacks.log_snr.seed=-1
callbacks.checkpoint.every_n_train_steps=0
callbacks.checkpoint.every_n_train_steps=1.5
callbacks.checkpoint.every_n_minutes=-1
callbacks.checkpoint.every_n_minutes=inf
callbacks.checkpoint.save_top_k=0
callbacks.checkpoint.save_top_k=null

trainer.max_steps=-5
trainer.max_steps=0
trainer.max_steps=many
trainer.max_steps=1000000000000
trainer.max_epochs=0
trainer.max_epochs=1.5
trainer.devices=0
trainer.devices=1.5
trainer.devices=-1
trainer.devices=100000
trainer.devices=null
trainer.num_nodes=0
trainer.num_nodes=2
trainer.precision=7
trainer.precision=bf16-true
trainer.accumulate_grad_batches=0
trainer.accumulate_grad_batches=two
trainer.gradient_clip_val=-1
trainer.gradient_clip_val=inf
trainer.gradient_clip_val=much
trainer.log_every_n_steps=0
trainer.log_every_n_steps=null
trainer.val_check_interval=0
trainer.val_check_interval=1.5
trainer.val_check_interval=null
trainer.check_val_every_n_epoch=0
trainer.limit_train_batches=0
trainer.limit_train_batches=1.5
trainer.limit_train_batches=all
trainer.limit_val_batches=-1
trainer.num_sanity_val_steps=-2
trainer.num_sanity_val_steps=some
trainer.use_distributed_sampler=true
+trainer.overfit_batches=1
+trainer.overfit_batches=0.5
"""


# What is wrong with two settings together, or with what is no number.
EXPLAINED = {
    "features=custom": "features=custom only works in evaluate.py",
    "trainer.strategy=fast": "trainer: ",
    "prediction=score": "prediction must be epsilon, x0, v, flow or edm, got 'score'",
    "model.in_channels=3": "data.image_size=[8, 8], data.channels=1: the images have 1 channels, but the model has in_channels=3",
    "model.base_channels=30": "model.base_channels must be a multiple of norm_groups=4, got 30",
    "sampler.num_steps=1001": "sampler.num_steps must be an integer from 1 to 1000, got 1001",
    "data.num_classes=7": "data.num_classes must be at least 10, or null, got 7: the labels range from 0 to 9",
    "loss=hybrid": "learned_variance",
    "schedule=betas": "schedule.betas has no default",
    "schedule=linear_zero_snr": "prediction must be x0, v or flow, got 'epsilon': the schedule has zero terminal SNR",
    "data=two_moons": "the model UNet is for images, but the data are points (data.channels=2, data.image_size=[1, 1]): choose model=mlp",
}


@cache
def composed(*overrides):
    given = [o for o in WHOLE if not ("model=dit_tiny" in overrides and o.startswith("model."))]
    if any(o.startswith("lr_scheduler=") for o in overrides):
        given.remove("lr_scheduler.total_iters=2")
    return config_of(*given, "logger=none", "run_dir=never/written", *overrides)


def config_with(line):
    """The config of a line of overrides; those of values are put into a cached one, since composing takes most of the time."""
    *chosen, last = line.split()
    override = OverridesParser.create().parse_override(last)
    if override.key_or_group in ("features", "loss", "schedule", "data"):
        return composed(*chosen, last)
    config = copy.deepcopy(composed(*chosen))
    with open_dict(config) if last.startswith("+") else nullcontext():
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


def build_all(config):
    """The calls of training, in their order."""
    check_config(config)
    build_module(config)
    build_callbacks(config, build("sampler", config.sampler))
    build("data", config.data).setup()
    build("trainer", config.trainer, logger=False, callbacks=[])


def refusal(config):
    """The sentence that a run of this config is refused with."""
    with pytest.raises(UserError) as refused:
        build_all(config)
    assert "\n" not in str(refused.value)
    return sentence(refused.value)


@pytest.mark.parametrize("line", [line for line in REFUSED.splitlines() if line])
def test_an_absurd_value_is_refused(line):
    config = config_with(line)
    said = refusal(config)
    key = line.split()[-1].lstrip("+").partition("=")[0]
    last, value = key.rpartition(".")[2], OmegaConf.select(config, key)
    told = re.search(rf"\b{last}(\[\d\])? must be .+, got ", said)
    assert told or f"{last}={value}" in said or f"{last} must" in said, said


@pytest.mark.parametrize("line", EXPLAINED)
def test_what_does_not_go_together_is_explained(line):
    assert EXPLAINED[line] in refusal(config_with(line))
