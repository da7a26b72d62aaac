"""What users type who know other programs, or type in haste: each is answered by the right next step."""

import pytest

from tests.helpers.forked import start_all

# What is typed, and what the answer must contain.
TRAIN = {
    # other names of the field's
    "sampler=plms": "did you mean sampler=ipndm (its improved form)? (choose from ancestral, ddim,",
    "sampler=euler_a": "did you mean sampler=ddim sampler.eta=1 (Euler's method with fresh noise in each step)?",
    "sampler=dpm++": "did you mean sampler=dpmpp_2m?",
    "sampler=DPM-Solver++": "did you mean sampler=dpmpp_2m?",
    "sampler=DDIM": "did you mean sampler=ddim?",
    "schedule=squaredcos_cap_v2": "did you mean schedule=cosine?",
    "schedule=scaled_linear": "did you mean schedule=quadratic?",
    "noise_schedule=cosine": "did you mean schedule=cosine?",
    "beta_schedule=squaredcos_cap_v2": "did you mean schedule=cosine?",
    "prediction=eps": "prediction must be epsilon, x0, v, flow or edm, got 'eps': did you mean prediction=epsilon?",
    "prediction=v_prediction": "did you mean prediction=v?",
    "prediction=noise": "did you mean prediction=epsilon?",
    "prediction_type=v_prediction": "did you mean prediction=v?",
    "loss=mse": "did you mean loss=simple (the squared error)?",
    "model=unet": "did you mean model=unet_tiny (unet_small for 28x28 and 32x32 images, unet_ddpm as in the paper)?",
    "dataset=cifar10": "did you mean data=cifar10?",
    "data=cifar": "did you mean data=cifar10?",
    "data=fashion-mnist": "did you mean data=fashion_mnist?",
    "optimizer=Adam": "did you mean optimizer=adam?",
    "T=500": "did you mean schedule.num_steps=500?",
    "timesteps=500": "did you mean schedule.num_steps=500?",
    # settings that lie deeper
    "steps=50": "did you mean trainer.max_steps=50 (training steps; sampler.num_steps=50 for sampling steps, schedule.num_steps=50 for T)?",
    "sampling_steps=": "did you mean sampler.num_steps=...?",
    "max_steps=10": "did you mean trainer.max_steps=10?",
    "trainer.max_step=10": "did you mean trainer.max_steps=10?",
    "epochs=10": "did you mean trainer.max_epochs=10 trainer.max_steps=-1?",
    "dropout=0.1": "did you mean model.dropout=0.1?",
    "batch_size=32": "did you mean data.batch_size=32?",
    "lr=1e-4": "did you mean optimizer.lr=1e-4?",
    "learning_rate=1e-4": "did you mean optimizer.lr=1e-4?",
    "lr_warmup=500": "did you mean lr_scheduler.total_iters=500?",
    "ema=0.999": "did you mean callbacks.ema.decay=0.999?",
    "ema_decay=0.999": "did you mean callbacks.ema.decay=0.999?",
    "grad_clip=1": "did you mean trainer.gradient_clip_val=1?",
    "num_samples=64": "did you mean callbacks.sample_grid.num_samples=64",
    "num_workers=4": "did you mean data.dataset.workers=4 (data=webdataset only)?",
    # devices, precision, loggers
    "gpus=2": "did you mean trainer=ddp trainer.devices=2?",
    "devices=2": "did you mean trainer=ddp trainer.devices=2?",
    "trainer=gpu2": "did you mean trainer=ddp trainer.devices=2?",
    "device=cuda": "did you mean trainer=gpu?",
    "device=cpu": "did you mean trainer=cpu?",
    "cuda": "cuda must be KEY=VALUE, without spaces: did you mean trainer=gpu?",
    "precision=bf16": "did you mean trainer.precision=bf16-mixed?",
    "trainer.precision=bf16": "did you mean trainer.precision=bf16-mixed?",
    "fp16": "did you mean trainer.precision=16-mixed?",
    "wandb=true": "did you mean logger=wandb?",
    "wandb=false": "did you mean logger=none?",
    "logger=tb": "did you mean logger=tensorboard?",
    # runs
    "resume": "did you mean resume=auto?",
    "resume=true": "resume must be auto or the folder of a run, got true: did you mean resume=auto?",
    "checkpoint=outputs/a/b": "did you mean resume=outputs/a/b (resumes a run's folder; init_from=outputs/a/b loads only its weights)?",
    "ckpt=outputs/a/b": "did you mean resume=outputs/a/b",
    "output_dir=here": "did you mean hydra.run.dir=here?",
    "config=mine.yaml": "did you mean experiment=mine.yaml (a file of conf/experiment/, or of the folder that --config-dir names)?",
    "seeds=0,1": "did you mean -m seed=0,1?",
    # how it is typed
    "--schedule cosine": "there is no flag --schedule cosine: did you mean schedule=cosine?",
    "-schedule=cosine": "there is no flag -schedule=cosine: did you mean schedule=cosine?",
    "schedule cosine": "schedule cosine must be KEY=VALUE, without spaces: did you mean schedule=cosine?",
    "schedule = cosine": "schedule = cosine must be KEY=VALUE, without spaces: did you mean schedule=cosine?",
    "schedule= cosine": "did you mean schedule=cosine?",
    "schedule:cosine": "did you mean schedule=cosine?",
    "--lr 1e-4": "did you mean optimizer.lr=1e-4?",
    "--batch-size 32": "did you mean data.batch_size=32?",
    "--batch-size=32": "did you mean data.batch_size=32?",
    "--gpus 2": "did you mean trainer=ddp trainer.devices=2?",
    "--trainer.max_steps 9": "did you mean trainer.max_steps=9?",
    "--max_steps 9": "did you mean trainer.max_steps=9?",
    "--channel-multipliers [1,2]": "did you mean model.channel_multipliers=[1,2]?",
    "seed=0-2": "seed must be an integer, got '0-2': write -m seed=range(0,3) for one job per value",
    "data.value_range=[0,1]": "with this data: it is a setting of data=arrays, huggingface, image_folder",
    "--wandb": "did you mean logger=wandb?",
    "--verbose": "there is no flag --verbose: give settings as in sampler.num_steps=20; --help lists them",
}
SAMPLE = {
    "steps=50": "did you mean sampler.num_steps=50?",
    "num_inference_steps=50": "did you mean sampler.num_steps=50?",
    "sampler=plms": "did you mean sampler=ipndm (its improved form)?",
    "eta=0.5": "did you mean sampler=ddim sampler.eta=0.5?",
    "path=outputs/a/b": "did you mean ckpt_path=outputs/a/b?",
    "ckpt=last.ckpt": "did you mean ckpt_path=last.ckpt?",
    "checkpoint=last.ckpt": "did you mean ckpt_path=last.ckpt?",
    "guidance=3": "did you mean guidance_scale=3?",
    "cfg=3": "did you mean guidance_scale=3?",
    "class=3": "did you mean labels=[3]?",
    "label=3": "did you mean labels=[3]?",
    "out=here": "did you mean out_dir=here?",
    "output=here": "did you mean out_dir=here?",
    "n=16": "did you mean num_samples=16?",
    "-n 16": "did you mean num_samples=16?",
    "format=jpg": "format must be grid, html, png, tiff, npz or npy, got 'jpg': did you mean format=png?",
    "device=gpu": "did you mean device=cuda?",
    "model=unet_tiny": "the checkpoint holds its own model",
    "schedule.num_steps=9": "did you mean sampler.num_steps=9",
}
EVALUATE = {
    "split=test": "did you mean reference=validation?",
    "n=1000": "did you mean num_samples=1000?",
    "sampler=DPM++": "did you mean sampler=dpmpp_2m?",
    "features=fid": "did you mean features=inception?",
}
LINES = [
    (f"{name}.py {line}", said)
    for name, lines in (("train", TRAIN), ("sample", SAMPLE), ("evaluate", EVALUATE))
    for line, said in lines.items()
]


@pytest.mark.parametrize("part", range(4))
def test_each_is_told_with_what_was_meant(part, tmp_path):
    lines = LINES[part::4]
    results = start_all([{"argv": line.split(), "cwd": str(tmp_path), "seconds": 30} for line, _ in lines])
    for (line, expected), result in zip(lines, results, strict=True):
        assert result["code"] == 1, (line, result)
        (said,) = result["err"].splitlines()
        assert said.startswith("error: "), line
        assert expected in said, line
        assert len(said.partition(" (choose from ")[0]) <= 300, line
        assert result["out"] == "", line
    assert not any(tmp_path.iterdir())
