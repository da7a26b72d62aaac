"""A part of each kind is added by one file and one YAML in a copy of the project, then trained with, resumed and sampled from."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.helpers.configs import ROOT

PARTS = {
    "ddpm_lightning/models/tiny.py": """
        from torch import Tensor, nn

        __all__ = ["Tiny"]


        class Tiny(nn.Module):
            num_classes = None

            def __init__(self, channels: int, width: int):
                super().__init__()
                self.layers = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

            def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
                return self.layers(x)
        """,
    "conf/model/tiny.yaml": """
        # three lines of convolutions
        _target_: ddpm_lightning.models.tiny.Tiny
        channels: ${data.channels}
        width: 4
        """,
    "ddpm_lightning/data/stripes.py": """
        import torch

        from ddpm_lightning.data.loaders import ImageSet

        __all__ = ["stripes"]


        def stripes(count: int) -> ImageSet:
            images = 255 * (torch.arange(8) % 2).to(torch.uint8).expand(count, 1, 8, 8).contiguous()
            return ImageSet(images, torch.zeros(count, dtype=torch.long))
        """,
    "conf/data/stripes.yaml": """
        # black and white
        _target_: ddpm_lightning.data.datamodule.ImageDataModule
        dataset:
          _target_: ddpm_lightning.data.stripes.stripes
          _partial_: true
          count: 64
        channels: 1
        image_size: [8, 8]
        num_classes: null
        batch_size: 8
        val_fraction: 0.25
        flip: false
        on_device: true
        seed: ${seed}
        """,
    "ddpm_lightning/losses/halves.py": """
        import torch
        from torch import Tensor

        from ddpm_lightning.denoiser import Denoiser
        from ddpm_lightning.losses.weightings import Weighting

        __all__ = ["Halves"]


        class Halves(Weighting):
            def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
                return torch.full_like(denoiser.schedule.alpha_bar[t], 0.5)
        """,
    "conf/loss/halves.yaml": """
        # every t counts a half
        defaults:
          - times: late
          - _self_
        _target_: ddpm_lightning.losses.Loss
        weighting:
          _target_: ddpm_lightning.losses.halves.Halves
        """,
    "ddpm_lightning/samplers/halfway.py": """
        from torch import Tensor

        from ddpm_lightning.samplers.base import Sampler, Transition

        __all__ = ["Halfway"]


        class Halfway(Sampler):
            def step(self, at: Transition) -> Tensor:
                return at.step((at.here.x0 + (at.past[-1] if at.past else at.here).x0) / 2)
        """,
    "conf/sampler/halfway.yaml": """
        # the mean of two estimates
        _target_: ddpm_lightning.samplers.halfway.Halfway
        num_steps: 5
        """,
    "ddpm_lightning/losses/late.py": """
        import torch

        from ddpm_lightning.losses.times import TimeDraw

        __all__ = ["Late"]


        class Late(TimeDraw):
            def __call__(self, batch_size, schedule, replica=None):
                t = torch.full((batch_size, 1, 1, 1), schedule.num_steps, device=schedule.alpha_bar.device)
                return t, torch.ones(batch_size, device=t.device)
        """,
    "conf/loss/times/late.yaml": """
        # t = T
        _target_: ddpm_lightning.losses.late.Late
        """,
    "conf/optimizer/radam.yaml": """
        # RAdam
        _target_: torch.optim.RAdam
        _partial_: true
        lr: 1.0e-3
        """,
    "conf/lr_scheduler/half_cosine.yaml": """
        # half a cosine
        _target_: torch.optim.lr_scheduler.CosineAnnealingLR
        _partial_: true
        T_max: 8
        """,
    "ddpm_lightning/callbacks/counter.py": """
        from lightning.pytorch import Callback

        __all__ = ["Counter"]


        class Counter(Callback):
            def __init__(self, folder: str, ema=None):
                self.folder, self.ema = folder, ema

            def on_train_end(self, trainer, pl_module):
                with open(f"{self.folder}/count.txt", "w") as file:
                    file.write(f"{trainer.global_step} {self.ema.current_decay:.2f}")
        """,
    "conf/callbacks/counter.yaml": """
        # the default ones, and how far the run came
        defaults:
          - default
        counter:
          _target_: ddpm_lightning.callbacks.counter.Counter
          folder: ${run_dir}
        """,
    "conf/schedule/square.yaml": """
        # alpha_bar falls as a parabola
        _target_: ddpm_lightning.schedules.families.square
        num_steps: 50
        """,
    "conf/experiment/new_parts.yaml": """
        # @package _global_
        defaults:
          - override /model: tiny
          - override /data: stripes
          - override /loss: halves
          - override /optimizer: radam
          - override /lr_scheduler: half_cosine
          - override /schedule: square
          - override /sampler: halfway
          - override /callbacks: counter
        prediction: half
        trainer:
          max_steps: 4
          val_check_interval: 2
        """,
}
SCHEDULE = '''

__all__ += ["square"]


def square(num_steps: int = 100) -> NoiseSchedule:
    """ᾱ_t = (1 − t/(T+1))²."""
    return from_alpha_bar((1 - torch.arange(1, num_steps + 1).double() / (num_steps + 1)) ** 2)
'''
PREDICTION = '    "half": lambda a, s, d: (-0.5, 0.5),\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the new parts, and the folder of a run that was trained with all of them."""
    root = tmp_path_factory.mktemp("project")
    for name in ("ddpm_lightning", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "sample.py", "evaluate.py"):
        shutil.copy(ROOT / name, root)
    for name, text in PARTS.items():
        assert not (root / name).exists()
        (root / name).write_text(textwrap.dedent(text).lstrip())
    with (root / "ddpm_lightning" / "schedules" / "families.py").open("a") as file:
        file.write(SCHEDULE)
    denoiser = root / "ddpm_lightning" / "denoiser" / "denoiser.py"
    text = denoiser.read_text()
    first = text.index("\n", text.index("PREDICTIONS: ")) + 1
    denoiser.write_text(text[:first] + PREDICTION + text[first:])
    done = run(root, "train.py", "experiment=new_parts", "logger=none", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return root


def run(root, *arguments):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DDPM", "WANDB", "PYTEST", "HYDRA"))}
    env = {**kept, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)


def test_they_train(project):
    saved = torch.load(project / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert saved["config"]["prediction"] == "half"
    assert saved["config"]["model"]["_target_"] == "ddpm_lightning.models.tiny.Tiny"
    assert (project / "run" / "count.txt").read_text() == "4 0.36"  # (1 + 4)/(10 + 4)


def test_they_are_sampled_from(project):
    done = run(project, "sample.py", "ckpt_path=run", "num_samples=4", "sampler=halfway", "format=npz", "out_dir=out")
    assert done.returncode == 0, done.stderr
    assert (project / "out" / "samples.npz").exists()


def test_they_are_resumed(project):
    shutil.copytree(project / "run", project / "again")
    done = run(project, "train.py", "resume=again", "trainer.max_steps=6")
    assert done.returncode == 0, done.stderr
    assert (project / "again" / "count.txt").read_text().startswith("6 ")


def test_the_command_line_knows_them(project):
    shown = run(project, "train.py", "--help").stdout
    assert all(name in shown for name in ("tiny", "stripes", "halves", "radam", "half_cosine", "square", "halfway"))
    done = run(project, "-m", "ddpm_lightning", "schedules", "--num-steps", "20", "--out", "schedules.png")
    assert done.returncode == 0, done.stderr
