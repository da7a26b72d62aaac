"""The package without its programs: one's own Trainer and loader, no Hydra."""

import re
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ddpm_lightning import (
    DDIM,
    DDPM,
    MLP,
    Denoiser,
    DiT,
    Guided,
    Loss,
    UNet,
    UserError,
    load_denoiser,
    save_denoiser,
    schedules,
)
from tests.helpers.configs import ROOT
from tests.helpers.scripts import script

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec",
    "ignore:.*num_workers",
    "ignore:The number of training batches",
    "ignore:You defined a `validation_step`",
)


def test_the_script_in_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)[1]
    lines = [line for line in code.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) <= 8
    found = {}
    exec(code.replace("Trainer(", "Trainer(accelerator='cpu', logger=False, enable_progress_bar=False, "), found)
    assert found["samples"].shape == (4, 1, 8, 8)
    assert found["samples"].isfinite().all()
    result = script(
        "sample.py", "ckpt_path=mine.ckpt", "num_samples=2", "sampler.num_steps=2", "device=cpu", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr


def trained(loader, network, **options):
    module = DDPM(Denoiser(network, schedules.linear(100)), Loss(), torch.optim.Adam, **options)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        val_check_interval=1,
    )
    trainer.fit(module, loader, loader)
    return module, trainer.callback_metrics


@pytest.mark.parametrize("labeled", [False, True])
def test_plain_loaders_train_as_well_with_labels_that_the_model_does_not_take(labeled):
    torch.manual_seed(0)
    images, labels = 2 * torch.rand(8, 1, 8, 8) - 1, torch.arange(8) % 3
    data = TensorDataset(images, labels) if labeled else images
    tiny = {"base_channels": 8, "channel_multipliers": (1, 2), "norm_groups": 4}
    module, metrics = trained(DataLoader(data, batch_size=4), UNet(1, 1, **tiny))
    assert all(p.isfinite().all() for p in module.parameters())
    assert metrics["val/bits_per_dim"] > 0


NETWORKS = {
    "unet": lambda: UNet(1, 1, base_channels=8, channel_multipliers=(1, 2), norm_groups=4, num_classes=3),
    "dit": lambda: DiT(1, 1, patch_size=2, hidden_size=16, depth=1, num_heads=2),
    "mlp": lambda: MLP(2, 4, hidden_size=16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_denoiser_is_saved_as_it_is(name, tmp_path):
    learned = name == "mlp"
    denoiser = Denoiser(NETWORKS[name](), schedules.cosine(50), prediction="v", learned_variance=learned).eval()
    for p in denoiser.parameters():
        nn.init.normal_(p, std=0.1)
    save_denoiser(denoiser, tmp_path / "mine.ckpt")
    held = load_denoiser(tmp_path / "mine.ckpt")
    x = torch.randn(2, 2, 1, 1) if name == "mlp" else torch.randn(2, 1, 8, 8)
    t = torch.tensor([1, 50])[:, None, None, None]
    assert torch.equal(held(x, t), denoiser(x, t))
    assert torch.equal(held.schedule.double().log_snr, denoiser.schedule.double().log_snr)
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.ckpt"]


def test_a_network_that_does_not_know_its_settings_is_refused_before_a_file_is_made(tmp_path):
    class Own(nn.Module):
        pass

    with pytest.raises(UserError, match="Own cannot be saved without its config"):
        save_denoiser(Denoiser(Own(), schedules.linear()), tmp_path / "mine.ckpt")
    assert not any(tmp_path.iterdir())


def test_hydras_own_compose_reads_our_configs_after_an_import(tmp_path):
    """In a fresh process, where nothing else has registered the resolvers."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)[2]
    code = code.replace("trainer.max_steps=100", "trainer.max_steps=1").replace(
        "model=unet_small", "model.base_channels=8"
    )
    code = code.replace('"run_dir=', '"model.norm_groups=4", "trainer.accelerator=cpu", "logger=none", "run_dir=')
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "outputs" / "mine" / "summary.json").exists()


class Echo(nn.Module):
    """Gives back what it was asked, so that conditions can be read from its output."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.asked = []

    def null(self, y):
        if isinstance(y, dict):
            return {key: torch.full_like(value, -7) for key, value in y.items()}
        return torch.full_like(y, -7)

    def forward(self, x, t, y=None):
        self.asked.append(y)
        one = y if isinstance(y, torch.Tensor) else next(iter(y.values()))
        return self.scale * x + one.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))


CONDITIONS = {
    "an embedding": lambda: torch.randn(64, 5),
    "an image": lambda: torch.randn(64, 1, 4, 4),
    "several": lambda: {"text": torch.randn(64, 5), "mask": torch.randn(64, 1, 4, 4)},
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_dropped_whole(name):
    y, model = CONDITIONS[name](), Echo()
    module = DDPM(Denoiser(model, schedules.linear(10)), Loss(), torch.optim.Adam, label_dropout=0.5)
    module.training_step((torch.rand(64, 1, 4, 4), y), 0)
    given = y if isinstance(y, dict) else {"y": y}
    asked = model.asked[0] if isinstance(y, dict) else {"y": model.asked[0]}
    dropped = {key: (value == -7).flatten(1) for key, value in asked.items()}
    assert all(torch.equal(mask.all(1), mask.any(1)) for mask in dropped.values())  # an image loses all of it or none
    (first, *others) = [mask.all(1) for mask in dropped.values()]
    assert all(torch.equal(first, other) for other in others)
    assert 16 < first.sum() < 48
    assert all(torch.equal(asked[key][~first], value[~first]) for key, value in given.items())


@pytest.mark.parametrize("name", CONDITIONS)
def test_guidance_at_0_and_1_is_the_model_without_and_with_the_condition(name):
    y, denoiser = CONDITIONS[name](), Denoiser(Echo(), schedules.linear(10), prediction="x0")
    x, t = torch.randn(64, 1, 4, 4), torch.tensor(5)
    with_it, without = denoiser(x, t, y), denoiser(x, t, denoiser.null(y))
    assert torch.equal(Guided(denoiser, 1.0)(x, t, y), with_it)
    assert torch.equal(Guided(denoiser, 0.0)(x, t, y), without)
    torch.testing.assert_close(Guided(denoiser, 3.0)(x, t, y), without + 3 * (with_it - without), rtol=1e-5, atol=1e-5)


class Convolution(nn.Module):
    """A network for data of any number of axes."""

    def __init__(self, channels, axes):
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.layers = nn.Sequential(kind(channels, 4, 3, padding=1), nn.SiLU(), kind(4, channels, 3, padding=1))

    def forward(self, x, t, y=None):
        return self.layers(x)


@pytest.mark.parametrize("shape", [(3, 12), (4, 6, 6), (2, 5, 6, 6)], ids=["a row", "a latent", "a video"])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_data_of_any_shape_train_and_are_sampled(shape, offset):
    torch.manual_seed(0)
    x = torch.randn(8, *shape)
    denoiser = Denoiser(Convolution(shape[0], len(shape) - 1), schedules.linear(20))
    module = DDPM(denoiser, Loss(offset_noise=offset), torch.optim.Adam, bits_per_dim=False)
    before = [p.detach().clone() for p in module.parameters()]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        val_check_interval=1,
    )
    trainer.fit(module, DataLoader(x, batch_size=4), DataLoader(x, batch_size=4))
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert not any(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    samples = DDIM(5, clip=None)(denoiser, torch.randn(3, *shape))
    assert samples.shape == (3, *shape)
    assert samples.isfinite().all()
