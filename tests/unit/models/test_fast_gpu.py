"""The Triton kernels, which its interpreter runs on a CPU, against PyTorch in float64."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ddpm_lightning.models import UNet, fast_gpu
from ddpm_lightning.models.layers import ResBlock

pytest.importorskip("triton")
from ddpm_lightning.models import kernels

SHAPES = [  # images, channels, groups, height, width
    (2, 32, 8, 8, 8),
    (3, 24, 4, 7, 5),  # six channels in a group, and no power of two of anything
    (2, 96, 32, 4, 4),  # three in a group
    (1, 16, 8, 20, 20),  # several tiles
    (2, 8, 1, 6, 6),
]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter runs them there, see conftest.py


def error(found, expected):
    return float(((found.double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shifted", "silu"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_against_float64(shape, shifted, silu, dtype):
    images, channels, groups, height, width = shape
    torch.manual_seed(0)
    x = 2 + torch.randn(images, channels, height, width, device=DEVICE)
    given = [x.to(dtype), torch.randn(channels, device=DEVICE), torch.randn(channels, device=DEVICE)]
    if shifted:
        given.append(torch.randn(images, channels, device=DEVICE).to(dtype))
    ours = [value.clone().requires_grad_() for value in given]
    theirs = [value.double().requires_grad_() for value in given]
    dy = torch.randn_like(x)

    y = kernels.norm_silu(*ours, *[None] * (not shifted), None, groups, 1e-6, 0.0, silu)[0]
    summed = theirs[0] + theirs[3][:, :, None, None] if shifted else theirs[0]
    expected = F.group_norm(summed, groups, theirs[1], theirs[2], 1e-6)
    expected = F.silu(expected) if silu else expected
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    close = 3e-6 if dtype == torch.float32 else 8e-3
    assert error(y, expected) < close
    y.backward(dy.to(dtype))
    expected.backward(dy.to(dtype).double())
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.grad.dtype == mine.dtype
        assert error(mine.grad, right.grad) < (2e-5 if dtype == torch.float32 else 2e-2)


def test_dropout_is_a_function_of_the_seed_and_the_same_both_ways():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size, device=DEVICE) for size in ((4, 32, 8, 8), (32,), (32,)))
    first, again, other = (
        kernels.norm_silu(x, weight, bias, None, torch.tensor(seed, device=DEVICE), 8, 1e-6, 0.25)[0]
        for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    kept = first != 0
    assert 0.72 < kept.double().mean() < 0.78
    assert ((other != 0) != kept).double().mean() > 0.2
    plain = kernels.norm_silu(x, weight, bias, None, None, 8, 1e-6, 0.0)[0]
    torch.testing.assert_close(first[kept], plain[kept] / 0.75)

    ours = [value.clone().requires_grad_() for value in (x, weight, bias)]
    kernels.norm_silu(*ours, None, torch.tensor(7, device=DEVICE), 8, 1e-6, 0.25)[0].square().sum().backward()
    theirs = [value.double().requires_grad_() for value in (x, weight, bias)]
    (F.silu(F.group_norm(theirs[0], 8, theirs[1], theirs[2], 1e-6)) * kept / 0.75).square().sum().backward()
    for mine, right in zip(ours, theirs, strict=True):
        assert error(mine.grad, right.grad) < 2e-5


def test_torch_knows_the_operators():
    """Shapes without values, gradients by autograd, and functions without side effects: what `torch.compile` relies on."""
    x, weight, bias, shift = (torch.randn(size, device=DEVICE) for size in ((2, 16, 4, 4), (16,), (16,), (2, 16)))
    given = (x.requires_grad_(), weight, bias, shift, torch.tensor(3, device=DEVICE), 4, 1e-6, 0.1)
    torch.library.opcheck(
        kernels.norm_silu, given, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


@pytest.mark.parametrize("resample", [False, True])
def test_a_block_is_the_plain_one_up_to_rounding(monkeypatch, resample):
    monkeypatch.setattr(fast_gpu, "_usable", lambda x: True)
    model = UNet(1, 1, base_channels=16, channel_multipliers=(1, 2), norm_groups=4, num_res_blocks=1, dropout=0.0,
                 resblock_updown=resample, fast_cpu=False)  # fmt: skip
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain = copy.deepcopy(model)
    for part in plain.modules():
        if isinstance(part, fast_gpu.FastResBlock):
            part.__class__ = ResBlock
        elif isinstance(part, fast_gpu.FastGroupNorm):
            part.__class__ = torch.nn.GroupNorm
    assert sum(type(part) is fast_gpu.FastResBlock for part in model.modules()) >= 6
    assert all(type(part) is fast_gpu.FastGroupNorm for part in (model.norm_out, model.middle_in.attention.norm))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 500])
    for network in (model, plain):
        network(x, t).square().mean().backward()
    torch.testing.assert_close(model(x, t), plain(x, t), rtol=1e-4, atol=1e-4)
    for mine, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, right.grad, rtol=1e-3, atol=1e-4 * float(right.grad.abs().max() + 1e-6))


def test_on_a_cpu_a_block_is_the_plain_one_bit_by_bit():
    torch.manual_seed(0)
    block = ResBlock(8, 16, emb_dim=4, dropout=0.1, norm=lambda channels: torch.nn.GroupNorm(4, channels))
    fast = copy.deepcopy(block)
    fast.__class__ = fast_gpu.FastResBlock
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    torch.manual_seed(1)
    expected = block(x, emb)
    torch.manual_seed(1)
    assert torch.equal(fast(x, emb), expected)


def test_a_norm_alone_is_the_plain_one_and_gives_up_alike(monkeypatch, caplog):
    torch.manual_seed(0)
    plain = torch.nn.GroupNorm(4, 8)
    norm, x = copy.deepcopy(plain), torch.randn(2, 8, 6, 6)
    norm.__class__ = fast_gpu.FastGroupNorm
    assert torch.equal(norm(x), plain(x))  # on a CPU
    monkeypatch.setattr(fast_gpu, "_broken", False)
    monkeypatch.setattr(fast_gpu, "_usable", lambda x: not fast_gpu._broken)
    torch.testing.assert_close(norm(x), plain(x), rtol=1e-5, atol=1e-5)
    assert not caplog.records
    monkeypatch.setattr(kernels, "norm_silu", lambda *_: 1 / 0)
    assert torch.equal(norm(x), plain(x))
    assert [record.message for record in caplog.records] == [
        "the Triton kernels cannot be used; the network runs without them (ZeroDivisionError: division by zero)"
    ]


def test_blocks_that_the_kernels_cannot_compute_stay_plain():
    model = UNet(
        1,
        1,
        base_channels=16,
        channel_multipliers=(1,),
        norm_groups=4,
        num_res_blocks=1,
        attention_levels=(),
        scale_shift_norm=True,
    )
    assert not any(isinstance(part, fast_gpu.FastResBlock) for part in model.modules())
    model = UNet(
        1, 1, base_channels=16, channel_multipliers=(1,), norm_groups=4, num_res_blocks=1, attention_levels=(), dims=1
    )
    assert not any(isinstance(part, fast_gpu.FastResBlock) for part in model.modules())


def test_kernels_that_fail_are_given_up_with_one_warning(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("Failed to find C compiler.")

    block = ResBlock(8, 8, emb_dim=4, dropout=0.0, norm=lambda channels: torch.nn.GroupNorm(4, channels))
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    expected = block(x, emb)
    block.__class__ = fast_gpu.FastResBlock
    block.norm1.__class__ = fast_gpu.FastGroupNorm
    monkeypatch.setattr(fast_gpu, "_broken", False)
    monkeypatch.setattr(fast_gpu, "_usable", lambda x: not fast_gpu._broken)
    monkeypatch.setattr(kernels, "norm_silu", fails)
    for _ in range(2):
        assert torch.equal(block(x, emb), expected)
    warnings = [record.message for record in caplog.records]
    assert warnings == [
        "the Triton kernels cannot be used; the network runs without them (RuntimeError: Failed to find C compiler.)"
    ]
