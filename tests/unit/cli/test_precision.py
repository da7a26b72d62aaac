import pytest
import torch

from tests.helpers.configs import config_of


@pytest.mark.parametrize(
    ("gpu", "bf16", "accelerator", "precision"),
    [
        (False, False, "auto", "32-true"),
        (True, True, "auto", "bf16-mixed"),
        (True, True, "gpu", "bf16-mixed"),
        (True, True, "cpu", "32-true"),
        (True, False, "gpu", "32-true"),
    ],
)
def test_bfloat16_is_the_default_where_the_device_has_it(monkeypatch, gpu, bf16, accelerator, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert config_of(f"trainer.accelerator={accelerator}").trainer.precision == precision
    assert config_of(f"trainer.accelerator={accelerator}", "trainer.precision=32-true").trainer.precision == "32-true"
