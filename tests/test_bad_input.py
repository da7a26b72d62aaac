"""What cannot be is refused in one sentence, before training or sampling begins, and leaves nothing behind."""

import re
import time

import pytest
from omegaconf import OmegaConf

from ddpm_lightning import runs
from ddpm_lightning.cli.entry import sentence
from ddpm_lightning.errors import UserError
from tests.conftest import TINY, config_of, script

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
callbacks.sample_grid.weights=best
callbacks.raw_grid.num_samples=0
callbacks.raw_grid.every_n_steps=0.5
callbacks.raw_grid.seed=-1
callbacks.raw_grid.guidance_scale=-1
callbacks.neighbours.num_samples=0
callbacks.neighbours.num_neighbours=0
callbacks.neighbours.num_neighbours=1.5
callbacks.neighbours.every_n_steps=0
callbacks.neighbours.seed=-1
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
"""

# What is wrong with two settings together, or with what is no number.
EXPLAINED = {
    "features=custom": "features=custom is for evaluate.py",
    "trainer.strategy=fast": "trainer: ",
    "prediction=score": "prediction=score is unknown: choose one of epsilon, x0, v",
    "model.in_channels=3": "data.image_size=[8, 8], data.channels=1: the images have 1 channels, the model takes in_channels=3",
    "model.base_channels=30": "30 channels cannot be split into norm_groups=4",
    "sampler.num_steps=1001": "sampler.num_steps=1001 is more than the schedule's T=1000: give at most 1000",
    "data.num_classes=7": "data.num_classes=7, but the set's labels go from 0 to 9: give data.num_classes=10, or null",
    "loss=hybrid": "loss: the hybrid loss trains a learned variance, and the denoiser has none",
    "schedule=betas": "schedule.betas has no default",
    "schedule=linear_zero_snr": "prediction=epsilon cannot be used with zero terminal SNR: choose prediction=v or x0",
    "init_from=nowhere": "nowhere does not exist",
    "data=two_moons": "model._target_=ddpm_lightning.models.UNet is for images, and data.channels=2, data.image_size=[1, 1] "
    "are points: choose model=mlp",
}
WAY_OUT = r"\b(give|given|choose|leave|change|must|start|take)\b"


def tiny(folder, overrides):
    given = [o for o in TINY if not ("model=dit_tiny" in overrides and o.startswith("model."))]
    if any(o.startswith("lr_scheduler=") for o in overrides):
        given.remove("lr_scheduler.total_iters=2")
    return config_of(*given, "logger=none", f"run_dir={folder}", *overrides)


def refusal(call):
    """The one sentence that a call is refused with."""
    started = time.monotonic()
    with pytest.raises(UserError) as raised:
        call()
    said = sentence(raised.value)
    print(f"{time.monotonic() - started:.1f} s: {said}")
    assert "\n" not in str(raised.value)
    return said


def names(config, override):
    """`key=value` as a sentence has it."""
    key = override.lstrip("+").partition("=")[0]
    return f"{key.rpartition('.')[2]}={OmegaConf.select(config, key)}"


@pytest.mark.parametrize("line", [line for line in REFUSED.splitlines() if line])
def test_no_training_begins(line, tmp_path):
    config = tiny(tmp_path / "run", line.split())
    said = refusal(lambda: runs.train(config))
    key = line.split()[-1].lstrip("+").partition("=")[0].rpartition(".")[2]
    if not re.search(rf"\b{key} must be .+, got ", said):
        assert names(config, line.split()[-1]) in said
        assert re.search(WAY_OUT, said) or "lies outside" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("override", EXPLAINED)
def test_no_training_begins_with_what_does_not_go_together(override, tmp_path):
    assert EXPLAINED[override] in refusal(lambda: runs.train(tiny(tmp_path / "run", [override])))
    assert not any(tmp_path.iterdir())


SAMPLING = {
    "num_samples=0": "num_samples=0 will not do",
    "num_samples=1.5": "num_samples=1.5 will not do",
    "num_samples=1000000000000": "num_samples=1000000000000 will not do",
    "num_samples=null": "num_samples=None will not do",
    "batch_size=-1": "batch_size=-1 will not do",
    "batch_size=inf": "batch_size=inf will not do",
    "seed=-1": "seed=-1 is no seed",
    "seed=nan": "seed=nan is no seed",
    "seed=null": "seed=None is no seed",
    "guidance_scale=-1": "guidance_scale=-1 will not do",
    "guidance_scale=nan": "guidance_scale=nan will not do",
    "guidance_scale=2": "guidance_scale=2 needs a model that was trained with labels",
    "labels=[1]": "labels=[1]: the model was trained without labels",
    "format=gif": "format=gif is unknown: choose grid, png or npz",
    "weights=best": "weights=best is unknown: choose ema or raw",
    "device=tpu": "device=tpu is not on this machine",
    "sampler.num_steps=0": "sampler: num_steps=0",
    "sampler.num_steps=2000": "sampler.num_steps=2000 is more than the schedule's T=1000",
    "sampler.spacing=even": "sampler: spacing=even is unknown",
    "sampler.eta=-0.5": "sampler: eta=-0.5",
    "sampler.eta=nan": "sampler: eta=nan",
    "sampler.clip=nan": "sampler: clip=nan",
    "sampler.dynamic_threshold=0": "sampler: dynamic_threshold=0",
    "out_dir=FILE": "cannot be made (File exists): give another folder",
    "out_dir=FILE/below": "cannot be made (Not a directory): give another folder",
    "ckpt_path=FILE": "is no checkpoint",
    "ckpt_path=nowhere": "ckpt_path=nowhere does not exist",
}


@pytest.mark.parametrize("override", SAMPLING)
def test_no_sampling_begins(override, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("of someone else")
    config = config_of(f"ckpt_path={tiny_run}", "out_dir=out", "sampler=ddim", override, name="sample")
    assert SAMPLING[override] in refusal(lambda: runs.sample(config))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("FILE", "of someone else")]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("schedule=null", "a config group cannot be null: choose one of its files"),
        ("~optimizer", "optimizer"),
        ("schedule.num_steps=[", "schedule.num_steps=[ cannot be read: close what is open"),
        ("trainer.strategy=fast", "trainer: "),
        ("hydra.run.dir=FILE/run", "FILE/run: Not a directory: give another path"),
        ("run_dir=FILE/run", "FILE/run: Not a directory: give another path"),
        ("schedule.num_steps=many", "schedule: num_steps=many is no number of diffusion steps: give"),
    ],
)
def test_the_command_line_says_it_in_one_line(args, says, tmp_path):
    (tmp_path / "FILE").write_text("of someone else")
    result = script("train.py", *args.split(), *TINY, cwd=tmp_path, timeout=30)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("FILE", "of someone else")]
