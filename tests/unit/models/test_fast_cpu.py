import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.models import UNet, fast_cpu
from ddpm_lightning.models.fast_cpu import FastConv3x3, FastDropout, FastUpsample, winograd, winograd_pays
from ddpm_lightning.models.layers import Upsample

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def exact(x, weight, grad):
    """The convolution and its two gradients in float64."""
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    y = F.conv2d(x, weight, padding=1)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad.double())


def fast(x, weight, grad):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = winograd(x, weight)
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
    assert winograd_pays(x, weight) is answer
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd_pays(x, weight)


def test_in_training_alone():
    torch.manual_seed(0)
    conv, x = FastConv3x3(128, 128, 3, padding=1), torch.randn(1, 128, 32, 32)
    with torch.no_grad():
        own = F.conv2d(x, conv.weight, conv.bias, padding=1)
        assert torch.equal(conv.eval()(x), own)
        trained = conv.train()(x)
    assert not torch.equal(trained, own)
    torch.testing.assert_close(trained, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_and_its_gradient_are_those_of_the_convolution(dtype):
    torch.manual_seed(0)
    conv, x = FastConv3x3(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8)
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
    for pays in (winograd_pays, lambda x, weight: False):
        monkeypatch.setattr(fast_cpu, "winograd_pays", pays)
        grads.append(torch.autograd.grad(model(x, t).square().mean(), list(model.parameters())))
    scale = max(float(grad.abs().max()) for grad in grads[1])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(*grads, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 3, 1, 1), (2, 3, 7, 7)])
def test_upsampling_is_nearest_neighbor_and_a_convolution(shape):
    layer = FastUpsample(3).double()
    x, upstream = torch.randn(shape).double().requires_grad_(), None
    outs = layer(x), layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(*outs)
    upstream = torch.randn_like(outs[0])
    gradients = [torch.autograd.grad(out, [x, *layer.parameters()], upstream) for out in outs]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_its_share_and_its_mean(p, layout):
    act, n = FastDropout(p).train(), 400_000
    x = torch.full((1, 4, 250, 400), 1.0).contiguous(memory_format=layout).requires_grad_()
    out = act(F.silu(x))
    assert out.is_contiguous(memory_format=layout)
    kept = out != 0
    assert abs(kept.float().mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    torch.testing.assert_close(out[kept], F.silu(torch.ones(1)).expand(int(kept.sum())) / (1 - p), rtol=2e-5, atol=0)
    # neighbors, rows and lanes of one random number are independent
    for shift in (1, 2, 3, 4, 400):
        one, other = kept.flatten()[:-shift], kept.flatten()[shift:]
        both = (one & other).float().mean()
        assert abs(both - (1 - p) ** 2) < 5 * ((1 - p) ** 2 * (1 - (1 - p) ** 2) / n) ** 0.5
    assert not torch.equal(act(F.silu(x)) != 0, kept)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    y = torch.ones(1, requires_grad=True)
    (slope,) = torch.autograd.grad(F.silu(y), y)
    torch.testing.assert_close(gradient, kept.float() * slope / (1 - p), rtol=2e-5, atol=0)


def test_dropout_is_drawn_from_the_global_generator_and_only_in_training():
    act, x = FastDropout(0.5).train(), torch.randn(3, 2, 5, 5)
    torch.manual_seed(7)
    first = act(x)
    torch.manual_seed(7)
    assert torch.equal(act(x), first)
    assert torch.equal(act.eval()(x), x)
    assert torch.equal(FastDropout(0.0).train()(x), x)


def with_and_without(**settings):
    """The same network with the fast layers and with PyTorch's own."""
    networks = []
    for fast in (True, False):
        torch.manual_seed(0)
        networks.append(UNet(2, 2, dropout=0.0, num_res_blocks=1, fast_cpu=fast, **settings))
    return networks


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", [{}, {"scale_shift_norm": True, "resblock_updown": True, "downsample_padding": 1}])
def test_the_switch_changes_outputs_and_gradients_by_rounding_alone(settings, checkpointing):
    networks = with_and_without(base_channels=128, channel_multipliers=(1, 1), checkpointing=checkpointing, **settings)
    x, t, noise = torch.randn(4, 2, 16, 16), torch.tensor([0, 10, 500, 999]), torch.randn(4, 2, 16, 16)
    results = []
    for network in networks:
        torch.manual_seed(0)
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.05)
        y = network(x, t)
        gradients = torch.autograd.grad((y - noise).square().mean(), list(network.parameters()))
        results.append((y.detach(), network.eval()(x, t).detach(), gradients))
    scale = max(float(gradient.abs().max()) for gradient in results[1][2])
    for ours, theirs in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    for ours, theirs in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)
    assert not torch.equal(results[0][0], results[1][0])


def test_the_switch_changes_neither_parameters_nor_their_names():
    fast, plain = (network.state_dict() for network in with_and_without(base_channels=32))
    assert list(fast) == list(plain)
    assert all(torch.equal(value, plain[name]) for name, value in fast.items())


def test_without_the_switch_every_layer_is_the_plain_one():
    fast, plain = with_and_without(base_channels=32)
    of_ours = (FastConv3x3, FastDropout, FastUpsample)
    assert {type(part) for part in fast.modules()} >= {*of_ours}
    assert not any(isinstance(part, of_ours) for part in plain.modules())


def test_on_another_device_every_layer_is_the_plain_one():
    """The meta device, which counts what it is asked for, stands for a GPU."""
    with torch.device("meta"):
        x = torch.empty(1, 128, 32, 32)
        layers = FastConv3x3(128, 128, 3, padding=1), FastDropout(0.5), FastUpsample(128)
        for layer, plain in zip(layers, (torch.nn.Conv2d, torch.nn.Dropout, Upsample), strict=True):
            with FlopCounterMode(display=False) as ours:
                out = layer(x)
            with FlopCounterMode(display=False) as theirs:
                assert plain.forward(layer, x).shape == out.shape
            assert ours.get_total_flops() == theirs.get_total_flops()
