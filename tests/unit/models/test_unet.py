from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from ddpm_lightning.models import UNet
from ddpm_lightning.models.layers import (
    Downsample,
    ResBlock,
    SelfAttention,
    TimeEmbedding,
    double,
    halve,
    pad_to_multiple,
)
from tests.helpers.configs import ROOT, config_of

TINY = {"base_channels": 16, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 8}

NORM = partial(nn.GroupNorm, 4)


def size(model):
    return sum(p.numel() for p in model.parameters())


def scrambled(model, std=0.1):
    """With no weight left at zero."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def adm(width, multipliers, blocks, attention, head_channels=64):
    return UNet(
        3,
        6,
        base_channels=width,
        channel_multipliers=multipliers,
        num_res_blocks=blocks,
        attention_levels=attention,
        head_channels=head_channels,
        num_classes=1000,
        scale_shift_norm=True,
        resblock_updown=True,
        downsample_padding=1,
        frequency_shift=0,
        norm_eps=1e-5,
        xavier_init=False,
    )


@pytest.mark.parametrize(
    ("choice", "parameters"),
    [
        ("unet_ddpm", 35_746_307),  # Ho et al. 2020, CIFAR-10: 35.7 M
        ("unet_ddpm_256", 113_673_219),  # Ho et al. 2020, CelebA-HQ and LSUN: 114 M
        ("unet_lecture", 35_580_675),  # the lecture's notebook
    ],
)
def test_presets_have_their_sources_number_of_parameters(choice, parameters):
    with torch.device("meta"):
        assert size(instantiate(config_of(f"model={choice}", "data.channels=3", "run_dir=unused").model)) == parameters


@pytest.mark.parametrize(
    ("width", "multipliers", "blocks", "attention", "millions"),
    [
        (192, (1, 2, 3, 4), 3, (1, 2, 3), 296),  # ImageNet 64: Dhariwal & Nichol 2021, Table 4 and appendix I
        (256, (1, 1, 2, 3, 4), 2, (2, 3, 4), 422),  # ImageNet 128
        (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 554),  # ImageNet 256
    ],
)
def test_guided_diffusions_networks_have_their_number_of_parameters(width, multipliers, blocks, attention, millions):
    with torch.device("meta"):
        model = adm(width, multipliers, blocks, attention)
    assert round(size(model) / 1e6) == millions


def test_the_output_is_zero_at_the_start_and_every_branch_adds_nothing():
    model = UNet(1, 1, **TINY)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 999])
    assert torch.equal(model(x, t), torch.zeros(2, 1, 8, 8))
    h, emb = torch.randn(2, 16, 4, 4), torch.randn(2, 64)
    for part in model.modules():
        if isinstance(part, SelfAttention) and part.out.in_channels == 16:
            assert torch.equal(part(h), h)
        if isinstance(part, ResBlock) and part.conv1.in_channels == part.conv2.out_channels == 16:
            assert torch.equal(part(h, emb), h)


def test_where_the_source_does_not_begin_at_zero_neither_do_we():
    model = instantiate(config_of("model=unet_lecture", "model.base_channels=32", "run_dir=unused").model)
    assert model(torch.randn(1, 1, 8, 8), torch.tensor([3])).std() > 0.01
    assert model.middle_in.attention.out.bias is None


def test_q_k_and_v_begin_as_if_each_had_a_layer_of_its_own():
    """`default_init` of Ho et al.'s nn.py for a layer of C in and C out: uniform up to the root of 3 / C, biases zero."""
    attention = UNet(
        3, 3, base_channels=64, channel_multipliers=(1,), num_res_blocks=1, attention_levels=()
    ).middle_in.attention
    for part in attention.qkv.weight.chunk(3):
        assert 0.99 * (3 / 64) ** 0.5 < part.abs().max() <= (3 / 64) ** 0.5
        assert part.std().item() == pytest.approx(1 / 64**0.5, rel=0.05)
    assert not attention.qkv.bias.any()


def test_a_scaled_time_is_that_of_a_shorter_schedule():
    quarter, whole = (TimeEmbedding(32, 8, scale=scale) for scale in (0.25, 1.0))
    quarter.load_state_dict(whole.state_dict())
    t = torch.tensor([0, 1, 250, 999])
    torch.testing.assert_close(quarter(4 * t), whole(t), rtol=0, atol=0)


@pytest.mark.parametrize("shift", [0, 1])
def test_time_embedding_equals_diffusers(shift):
    from diffusers.models.embeddings import get_timestep_embedding

    embedding = TimeEmbedding(32, 8, frequency_shift=shift)
    embedding.net = torch.nn.ModuleList([torch.nn.Linear(1, 1)])  # only for its dtype
    embedding.net.forward = lambda x: x
    t = torch.tensor([0, 1, 17, 999])
    expected = get_timestep_embedding(t, 32, flip_sin_to_cos=False, downscale_freq_shift=shift)
    torch.testing.assert_close(embedding(t), expected, rtol=1e-4, atol=1e-4)


def test_attention_equals_its_definition():
    layer = SelfAttention(8, num_heads=2, norm=NORM)
    x = torch.randn(2, 8, 3, 5)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = F.linear(tokens, layer.qkv.weight[:, :, 0, 0], layer.qkv.bias).chunk(3, -1)
    heads = []
    for i in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(q[..., i] @ k[..., i].transpose(1, 2) / 2, -1)  # √d = 2
        heads.append(weights @ v[..., i])
    projected = F.linear(torch.cat(heads, -1), layer.out.weight[:, :, 0, 0], layer.out.bias)
    expected = x + projected.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_downsampling_pads_below_and_to_the_right():
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert layer(x).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]


def test_downsampling_all_round():
    layer = Downsample(2, padding=1)
    x = torch.randn(1, 2, 6, 4)
    expected = F.conv2d(x, layer.conv.weight, layer.conv.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("resample", [halve, double])
def test_residual_blocks_of_guided_diffusion(resample):
    block = scrambled(
        ResBlock(8, 12, emb_dim=6, dropout=0.3, norm=NORM, scale_shift=True, resample=resample).double(), 0.3
    )
    x_in, emb = torch.randn(2, 8, 4, 6).double(), torch.randn(2, 6).double()
    x, n1, n2 = x_in, block.norm1, block.norm2
    h = F.silu(F.group_norm(x, 4, n1.weight, n1.bias))
    if resample is halve:
        h, x = (z.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)) for z in (h, x))
    else:
        h, x = (z.repeat_interleave(2, 2).repeat_interleave(2, 3) for z in (h, x))
    h = F.group_norm(F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1), 4, n2.weight, n2.bias)
    scale, shift = (emb @ block.emb.weight.T + block.emb.bias)[:, :, None, None].chunk(2, 1)
    h = F.conv2d(F.silu(h * (1 + scale) + shift), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x_in, emb), h + F.conv2d(x, block.skip.weight, block.skip.bias))


def test_padding_repeats_the_edges_and_the_window_is_the_image():
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    padded, (rows, columns) = pad_to_multiple(x, 8)
    assert padded.shape == (1, 1, 8, 8)
    assert torch.equal(padded[..., rows, columns], x)
    assert (padded[..., 0, 0], padded[..., -1, -1]) == (0, 11)
    assert pad_to_multiple(x, 1)[0] is x


PRESETS = sorted({path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")} - {"mlp"})  # which is for points


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("image", [(28, 28), (30, 22), (32, 32), (64, 48)])
@pytest.mark.parametrize("choice", PRESETS)
def test_every_preset_takes_any_size_and_number_of_channels(choice, image, channels):
    config = config_of(f"model={choice}", f"data.channels={channels}", "run_dir=unused").model
    with torch.device("meta"):
        out = instantiate(config)(torch.empty(2, channels, *image), torch.zeros(2, dtype=torch.long))
    assert out.shape == (2, channels, *image)


@pytest.mark.parametrize("image", [(9, 8), (7, 5), (1, 1), (8, 8)])
def test_odd_sizes_run_and_depend_on_every_pixel(image):
    model = scrambled(UNet(1, 1, **TINY, dropout=0.0))
    x = torch.randn(1, 1, *image, requires_grad=True)
    out = model(x, torch.tensor([5]))
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert (gradient != 0).all()


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = scrambled(UNet(1, 1, **TINY, dropout=0.5, checkpointing=checkpointing)).train()
        torch.manual_seed(1)
        model(torch.ones(2, 1, 8, 8), torch.tensor([1, 5])).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_no_label_is_a_label_of_its_own():
    model = scrambled(UNet(1, 1, num_classes=3, **TINY))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 5])
    assert torch.equal(model(x, t), model(x, t, torch.tensor([3, 3])))
    assert (model(x, t) - model(x, t, torch.tensor([0, 1]))).abs().max() > 1e-3


def test_the_network_sees_the_time_and_keeps_images_apart():
    model = UNet(3, 3, dropout=0.5, **TINY).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(1, 3, 8, 12).expand(2, -1, -1, -1)
    out = model(x, torch.tensor([3, 500]))
    assert (out[0] - out[1]).abs().max() > 1e-3
    torch.testing.assert_close(model(x[:1], torch.tensor([3]))[0], out[0], rtol=1e-4, atol=1e-5)


def test_labels_change_the_output():
    model = UNet(1, 1, num_classes=3, **TINY).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, t = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1), torch.tensor([5, 5])
    out = model(x, t, torch.tensor([0, 2]))
    assert (out[0] - out[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(base_channels=20), "base_channels must be a multiple of norm_groups=32, got 20"),
        (
            lambda: UNet(base_channels=32, num_heads=3),
            r"base_channels \* channel_multipliers\[\d\] must be a multiple of num_heads=3, got 64",
        ),
        (lambda: UNet(attention_levels=(4,)), r"attention_levels must be a list of integers from 0 to 3, got \(4,\)"),
        (lambda: UNet(dropout=1.0), r"dropout must be a number in \[0, 1\), got 1.0"),
        (lambda: UNet(num_res_blocks=0), "num_res_blocks must be an integer from 1 to 100, got 0"),
        (lambda: UNet(channel_multipliers=()), "channel_multipliers must be a non-empty list"),
        (lambda: UNet(channel_multipliers=2), "channel_multipliers must be a non-empty list"),
        (lambda: UNet(downsample_padding=2), "downsample_padding must be 0 or 1, got 2"),
        (lambda: UNet(base_channels=64, head_channels=48), "must be a multiple of head_channels=48, got 128"),
        (lambda: UNet(num_classes=0), "num_classes must be an integer from 1 to 10000000 or null, got 0"),
        (
            lambda: UNet(1, 1, **TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1)),
            "3 channels, but the model has in_channels=1",
        ),
        (
            lambda: UNet(1, 1, **TINY)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long()),
            "labels were given",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
