import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ddpm_lightning.models import UNet, winograd
from ddpm_lightning.models.layers import Conv3x3

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def exact(x, weight, grad):
    """The convolution and its two gradients in float64."""
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    y = F.conv2d(x, weight, padding=1)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad.double())


def fast(x, weight, grad):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = winograd.conv3x3(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
)
def test_it_equals_the_convolution_and_its_gradients(images, channels, out_channels, rows, columns, layout, of_grad):
    torch.manual_seed(0)
    x = torch.randn(images, channels, 4 * rows, 4 * columns).contiguous(memory_format=layout)
    weight = torch.randn(out_channels, channels, 3, 3)
    grad = torch.randn(images, out_channels, 4 * rows, 4 * columns).contiguous(memory_format=of_grad)
    for ours, theirs in zip(fast(x, weight, grad), exact(x, weight, grad), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_its_rounding_error_is_that_of_a_few_bits():
    torch.manual_seed(0)
    x, weight, grad = torch.randn(2, 128, 32, 32), torch.randn(128, 128, 3, 3), torch.randn(2, 128, 32, 32)
    for ours, theirs in zip(fast(x, weight, grad), exact(x, weight, grad), strict=True):
        assert (ours - theirs).square().mean().sqrt() < 2e-6 * theirs.square().mean().sqrt()


def test_it_takes_a_gradient_that_is_one_value_everywhere():
    x, weight, grad = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3), torch.ones(()).expand(1, 3, 8, 8)
    for ours, theirs in zip(fast(x, weight, grad), exact(x, weight, grad), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "out_channels", "dtype", "answer"),
    [
        ((1, 128, 32, 32), 128, torch.float32, True),
        ((16, 256, 8, 8), 128, torch.float32, True),
        ((15, 128, 8, 8), 128, torch.float32, False),  # too few tiles
        ((16, 127, 32, 32), 128, torch.float32, False),
        ((16, 128, 32, 32), 127, torch.float32, False),
        ((64, 128, 14, 32), 128, torch.float32, False),
        ((64, 128, 32, 30), 128, torch.float32, False),
        ((16, 128, 32, 32), 128, torch.float64, False),
    ],
)
def test_it_is_for_wide_layers_whole_tiles_and_enough_of_them(shape, out_channels, dtype, answer):
    x, weight = torch.empty(shape, dtype=dtype), torch.empty(out_channels, shape[1], 3, 3, dtype=dtype)
    assert winograd.pays(x, weight) is answer
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(x, weight)


def test_in_training_alone():
    torch.manual_seed(0)
    conv, x = Conv3x3(128, 128), torch.randn(1, 128, 32, 32)
    with torch.no_grad():
        own = F.conv2d(x, conv.weight, conv.bias, padding=1)
        assert torch.equal(conv.eval()(x), own)
        trained = conv.train()(x)
    assert not torch.equal(trained, own)
    torch.testing.assert_close(trained, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_and_its_gradient_are_those_of_the_convolution(dtype):
    torch.manual_seed(0)
    conv, x = Conv3x3(3, 5), torch.randn(2, 3, 8, 8)
    torch.nn.init.normal_(conv.bias)
    grads = []
    for training in (True, False):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            y = conv.train(training)(x)
        assert y.dtype == dtype
        grads.append((y.float().detach(), *torch.autograd.grad(y.float().square().sum(), (conv.bias, conv.weight))))
    for ours, theirs in zip(*grads, strict=True):
        digits = 1e-5 if dtype is torch.float32 else 1e-2
        torch.testing.assert_close(ours, theirs, rtol=0, atol=digits * float(theirs.abs().max()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_networks_gradients_are_the_same_with_it(monkeypatch, checkpointing):
    torch.manual_seed(0)
    model = UNet(
        2, 2, base_channels=128, channel_multipliers=(1, 1), num_res_blocks=1, dropout=0, checkpointing=checkpointing
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x, t = torch.randn(4, 2, 16, 16), torch.tensor([0, 10, 500, 999])
    grads = []
    for pays in (winograd.pays, lambda x, weight: False):
        monkeypatch.setattr(winograd, "pays", pays)
        grads.append(torch.autograd.grad(model(x, t).square().mean(), list(model.parameters())))
    scale = max(float(grad.abs().max()) for grad in grads[1])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(*grads, strict=True))
