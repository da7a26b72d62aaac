import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.data.datasets import digits
from ddpm_lightning.data.source import Batch
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.images import from_uint8
from ddpm_lightning.losses import VLB, Hybrid, Importance, LogNormal, Loss, MinSNR, Stratified
from ddpm_lightning.models import UNet
from ddpm_lightning.module import DDPM
from tests.helpers.modules import tiny


def test_training_step_is_algorithm_25_1():
    module = tiny()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x0 = torch.randn(6, 1, 8, 8).clamp(-1, 1)
    torch.manual_seed(3)
    out = module.training_step(Batch(x0, None, torch.arange(6)), 0)
    torch.manual_seed(3)
    t = torch.randint(1, 1001, (6, 1, 1, 1))
    noise = torch.randn_like(x0)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0).float()[t - 1]
    eps = module.denoiser.model(abar.sqrt() * x0 + (1 - abar).sqrt() * noise, t.flatten() - 1)
    torch.testing.assert_close(out["loss"], ((noise - eps) ** 2).mean(), rtol=1e-5, atol=1e-6)
    assert torch.equal(out["t"], t.flatten())


def test_a_loss_refuses_a_denoiser_that_it_cannot_train():
    for loss in (Hybrid(), Loss(times=Importance(10))):
        with pytest.raises(ValueError, match="must be|learned_variance=true"):
            DDPM(tiny().denoiser, loss, torch.optim.Adam)


def test_validation_depends_on_the_image_not_on_the_batch(monkeypatch):
    module = tiny().eval()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x0 = from_uint8(digits().images[:12])

    def mean_loss(chunks):
        logged = []
        monkeypatch.setattr(module, "log_dict", lambda m, batch_size, **_: logged.append((m["val/loss"], batch_size)))
        for ids in torch.arange(12).split(chunks):
            torch.rand(3)  # the global generator has no say
            module.validation_step(Batch(x0[ids], None, ids), 0)
        return sum(v * n for v, n in logged).item() / 12

    with torch.no_grad():
        assert mean_loss([12]) == pytest.approx(mean_loss([5, 7]), rel=1e-5)


@pytest.mark.parametrize("times", [None, Stratified(), LogNormal(), Importance(1000)])
@pytest.mark.parametrize("loss", [Loss, lambda times: Loss(MinSNR(), times=times), VLB, Hybrid])
def test_a_training_step_never_waits_for_its_device(loss, times):
    """On a device without values nothing can be read back: neither `.item()` nor a choice by a value."""
    torch.manual_seed(0)
    objective = loss(times=times)
    options = {"base_channels": 16, "channel_multipliers": (1, 1), "num_res_blocks": 1, "norm_groups": 8}
    learned = isinstance(objective, Hybrid)
    model = UNet(1, 1 + learned, dropout=0.1, num_classes=3, **options)
    module = DDPM(Denoiser(model, schedules.linear(), learned_variance=learned), objective, torch.optim.Adam)
    x0, y = torch.empty(6, 1, 8, 8, device="meta"), torch.empty(6, dtype=torch.long, device="meta")
    module.to("meta")
    module.all_gather = lambda parts: parts
    module.training_step(Batch(x0, y, torch.arange(6)), 0)["loss"].backward()


@pytest.mark.parametrize(("algorithm", "value"), [("norm", 0.01), ("value", 1e-4), (None, 0.01), ("norm", None)])
def test_gradients_are_clipped_and_their_norm_kept(algorithm, value):
    module = tiny()
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in module.parameters()]
    norm = torch.cat([g.flatten() for g in before]).norm()
    module.configure_gradient_clipping(None, value, algorithm)
    torch.testing.assert_close(module.grad_norm, norm)
    for p, g in zip(module.parameters(), before, strict=True):
        expected = g if value is None else g.clamp(-value, value) if algorithm == "value" else g * value / norm
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-9)
